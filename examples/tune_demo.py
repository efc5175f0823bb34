"""Tunes the shapes generator in the package with ImageReward-mini, and writes a page of held-out prompts before and after.

python examples/tune_demo.py               # `make tune-demo`: a few minutes on two cores
python examples/tune_demo.py runs/mine     # another folder; the same command again continues a run that was interrupted

`ImageReward-mini` is what the generator is tuned with. The judge of the shapes world counts faults exactly and takes no part in tuning.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

import image_reward as ir
from image_reward.comparisons.shapes import prompt_specs
from image_reward.comparisons.shapes_judge import judge
from image_reward.recipes import read_toml
from image_reward.reports.document import Block, Column, Grid, Report, compared
from image_reward.reports.render import write
from image_reward.tuning import Tuning, load_pipeline, tune
from image_reward.tuning.pipelines import call_arguments_of

RECIPE = Path(__file__).with_name("tune_shapes.toml")
SHOWN = 24


def main(output: str = "runs/tune-demo", images_per_prompt: int = 4) -> Path:
    config = replace(read_toml(RECIPE, Tuning()), output=output)
    result = tune(config)
    prompts = [spec.prompt for spec in prompt_specs("one", "test")] * images_per_prompt
    pipe = load_pipeline(config.model, device="cpu")
    versions = {"before": images(pipe, config, prompts)}
    pipe.load_lora_weights(result.model)
    versions["after"] = images(pipe, config, prompts)

    scorer = ir.load("ImageReward-mini", "cpu")
    points = {name: [judge(prompt, image).points for prompt, image in zip(prompts, made, strict=True)] for name, made in versions.items()}
    rewards = {name: scorer.score(prompts, made) for name, made in versions.items()}
    rows = [
        [name, f"{fmean(points[name]):.2f}", f"{points[name].count(0) / len(prompts):.0%}", f"{fmean(rewards[name]):+.2f}"]
        for name in versions
    ]
    table = Grid(
        [Column("generator"), Column("judge's penalty points"), Column("faultless"), Column("reward")],
        rows,
        f"{len(prompts)} images of {len(set(prompts))} held-out prompts",
        "Points are the faults that an exact judge reads off the pixels: fewer are better. It took no part in tuning.",
    )
    lines = {
        name: [[f"{p} points, reward {r:+.2f}"] for p, r in zip(points[name][:SHOWN], rewards[name][:SHOWN], strict=True)]
        for name in versions
    }
    blocks: list[Block] = [
        table,
        "Below, the first prompts, each with the same noise before and after: they were not chosen by their result.",
        *compared(prompts[:SHOWN], {name: made[:SHOWN] for name, made in versions.items()}, lines),
    ]
    lead = f"{config.model} tuned with {', '.join(config.reward)} by {result.kept_step} steps. The run's own page: {result.report}."
    data = {
        "points": {name: fmean(each) for name, each in points.items()},
        "rewards": {name: fmean(each) for name, each in rewards.items()},
    }
    answer = f"{rows[0][1]} penalty points before, {rows[1][1]} after."
    page = Path(output) / "before_and_after.html"
    write(Report("Before and after tuning", lead, blocks, data, answer), page)
    print(f"{answer} Before and after: {page}; the run: {result.report}")
    return page


def images(pipe: object, config: Tuning, prompts: Sequence[str], batch_size: int = 60) -> list[Image.Image]:
    """Image i has the seed i."""
    made = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        arguments = call_arguments_of(pipe, {"num_inference_steps": config.denoising_steps, "guidance_scale": config.guidance_scale})
        made += pipe(list(batch), generator=generators, **arguments).images  # type: ignore[operator]
    return made


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "__array_", DeprecationWarning)  # schedulers of diffusers with NumPy 2
    main(*sys.argv[1:2])
