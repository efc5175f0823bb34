"""How well a generator follows held-out prompts of the shapes world: the judge's penalty points, and the rewards of ImageReward-mini.

python benchmarks/shapes_generator.py                                    # the generator in the package
python benchmarks/shapes_generator.py runs/shapes-generator --kinds relation --steps 20 --grid grid.png
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image

import image_reward as ir
from image_reward import metrics
from image_reward.comparisons.shapes import PromptKind, draw, faultless, prompt_specs
from image_reward.comparisons.shapes_judge import judge
from image_reward.tuning import load_pipeline
from image_reward.tuning.shapes_generator import build, held_out_images

Images = list[tuple[str, Any]]


@dataclass
class Benchmark:
    pipeline: Annotated[str, tyro.conf.Positional] = "shapes-generator"
    num_images: int = 500
    """For each kind of prompt. Held-out prompts take turns."""
    kinds: tuple[PromptKind, ...] = ("one", "count", "relation")
    steps: tuple[int, ...] = (8,)
    guidance_scales: tuple[float, ...] = (3.0,)
    grid: Path | None = None
    """Also save a picture: in each row, images of one prompt."""

    def run(self) -> None:
        scorer = ir.load("ImageReward-mini", "cpu")
        scorer.batch_size = 64
        pipe = load_pipeline(self.pipeline, device="cpu")
        torch.manual_seed(0)
        untrained = build()
        for kind in self.kinds:
            self.report(f"{kind}: drawn", self.drawn(kind), scorer)
            self.report(f"{kind}: random weights", held_out_images(untrained, self.num_images, kind=kind, steps=8), scorer)
            untrained.vae = pipe.vae
            self.report(f"{kind}: random denoiser", held_out_images(untrained, self.num_images, kind=kind, steps=8), scorer)
            for steps in self.steps:
                for scale in self.guidance_scales:
                    made = held_out_images(pipe, self.num_images, kind=kind, steps=steps, guidance_scale=scale)
                    self.report(f"{kind}: {self.pipeline}, {steps} steps, guidance {scale:g}", made, scorer)
        if self.grid:
            self.save_grid(pipe)

    def drawn(self, kind: PromptKind) -> Images:
        specs = prompt_specs(kind, "test")
        stride = max(1, len(specs) // self.num_images)
        chosen = [specs[i * stride % len(specs)] for i in range(self.num_images)]
        return [(spec.prompt, draw(faultless(spec, 77, i))) for i, spec in enumerate(chosen)]

    def report(self, name: str, images: Images, scorer: ir.Scorer) -> None:
        prompts = [prompt for prompt, _ in images]
        verdicts = [judge(prompt, image) for prompt, image in images]
        points = [verdict.points for verdict in verdicts]
        rewards = scorer.score(prompts, [image for _, image in images])
        intervals = [metrics.interval(metrics.bootstrap(values, groups=prompts, num_resamples=2000)) for values in (points, rewards)]
        faults = Counter(name for verdict in verdicts for name in set(verdict.names))
        shares = ", ".join(f"{fault} {count / len(images):.0%}" for fault, count in faults.most_common())
        (low, high), (least, most) = intervals
        print(
            f"{name:<44} points {np.mean(points):.2f} [{low:.2f}, {high:.2f}]  reward {np.mean(rewards):+.2f} [{least:+.2f}, {most:+.2f}]  "
            f"faultless {points.count(0) / len(points):.0%}; {shares}",
            flush=True,
        )

    def save_grid(self, pipe: Any, columns: int = 8) -> None:
        assert self.grid is not None
        prompts = [
            spec.prompt for kind in self.kinds for spec in prompt_specs(kind, "test")[:: max(1, len(prompt_specs(kind, "test")) // 4)][:4]
        ]
        rows = []
        for prompt in prompts:
            generators = [torch.Generator().manual_seed(seed) for seed in range(columns)]
            arguments = {"num_inference_steps": self.steps[0], "guidance_scale": self.guidance_scales[0]}
            rows.append(pipe([prompt] * columns, generator=generators, output_type="np", **arguments).images)
            print(prompt)
        pixels = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(self.grid, optimize=True)


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
