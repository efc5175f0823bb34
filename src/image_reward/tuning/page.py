"""The page of a tuning run, which is rewritten at each evaluation: verdict, curves, and the same noises at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from image_reward.files import written_whole
from image_reward.reports.document import Block, Card, Cards, Column, Grid, Plot, Report
from image_reward.reports.numbers import counted
from image_reward.reports.plots import curves, figure, style
from image_reward.tuning.card import CURVES
from image_reward.tuning.config import Tuning
from image_reward.tuning.monitors import Evaluation, Verdict, mean
from image_reward.tuning.strengths import COLUMNS, EXPLAINED, Strength, standardised, strength_blocks

PAGE, EVALUATIONS = "report.html", "evaluations"
_MOST_PROMPTS, _MOST_IMAGES, _SIDE = 6, 2, 192  # of a grid: prompts, images of each, and pixels of an image
_MOST_GRIDS = 8


def evaluation_grid(folder: Path, step: int, pixels: Tensor, images_per_prompt: int) -> None:
    """Write the first images [N, 3, H, W] of the first prompts as one picture, a prompt in each row."""
    columns = min(images_per_prompt, _MOST_IMAGES)
    rows = min(len(pixels) // images_per_prompt, _MOST_PROMPTS)
    scale = min(1.0, _SIDE / max(pixels.shape[-2:]))
    height, width = (max(1, round(scale * side)) for side in pixels.shape[-2:])
    sheet = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for row in range(rows):
        for column in range(columns):
            array = (pixels[row * images_per_prompt + column] * 255).round().byte().permute(1, 2, 0).numpy()
            image = Image.fromarray(np.ascontiguousarray(array)).resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * (width + 2), row * (height + 2)))
    folder.mkdir(exist_ok=True)
    with written_whole(folder / f"{step:06d}.png") as temporary:
        sheet.save(temporary, format="PNG")


def page(
    folder: Path,
    config: Tuning,
    history: Sequence[Evaluation],
    verdict: Verdict,
    held_out: Sequence[str],
    log: Sequence[Mapping[str, Any]],
    target: float | None,
    strengths: Sequence[Strength] = (),
) -> Report:
    """The page of the run in a folder. ``strengths``: the LoRA's, once the run is over."""
    blocks: list[Block] = [_pictures(folder, history, held_out)]
    if find_spec("matplotlib") is not None:
        blocks += _plots(history, log)
    blocks.append(_table(history))
    if strengths:
        blocks += strength_blocks(strengths)
    step, last = history[-1].step, config.max_steps
    state = "is stopped" if verdict.stop else "is complete" if step >= last else "goes on"
    lead = (
        f"{config.model or 'The generator'} tuned with {', '.join(config.reward)} by the method {config.method}; the run {state} after "
        f"step {step:,} of at most {last:,}. All numbers are of {counted(len(history[0].rewards), 'image')} of "
        f"{counted(len(held_out), 'held-out prompt')}, with the same noise at every evaluation. A higher reward does not prove that "
        "the images are better: look at them, and at scorers that were not tuned with."
    )
    data = {
        "verdict": verdict.sentence,
        "kept_step": verdict.last_good,
        "target": target,
        "evaluations": [{"step": each.step, **each.summary()} for each in history],
        "strengths": [{"strength": each.strength, **each.evaluation.summary()} for each in strengths],
    }
    return Report("Tuning a generator", lead, blocks, data, answer=verdict.sentence)


def draw_curves(folder: Path, history: Sequence[Evaluation], log: Sequence[Mapping[str, Any]]) -> Path | None:
    """Write the first plot of the page as a picture; None without matplotlib, and for a run without steps."""
    if find_spec("matplotlib") is None or len(history) < 2:
        return None
    with style(), written_whole(folder / CURVES) as temporary:
        _plots(history, log)[0].figure.savefig(temporary, format="png", dpi=120)
    return folder / CURVES


def _pictures(folder: Path, history: Sequence[Evaluation], held_out: Sequence[str]) -> Cards:
    shown = {round(place) for place in np.linspace(0, len(history) - 1, min(len(history), _MOST_GRIDS))}
    cards = [
        Card(str(path), f"step {each.step}", [f"reward {each.reward:+.3f}"])
        for place, each in enumerate(history)
        if place in shown and (path := folder / EVALUATIONS / f"{each.step:06d}.png").exists()
    ]
    rows = "; ".join(f"{number}. {prompt}" for number, prompt in enumerate(held_out[:_MOST_PROMPTS], start=1))
    return Cards(cards, "The same noises at each evaluation", f"A prompt in each row: {rows}.")


def _plots(history: Sequence[Evaluation], log: Sequence[Mapping[str, Any]]) -> list[Plot]:
    steps = [each.step for each in history]
    rewards: dict[str, list[float]] = {"reward": [each.reward for each in history]}
    for name, values in (("prompt margin", "margins"), ("mirrored", "mirrored"), ("blurred", "blurred")):
        if getattr(history[0], values):
            added = 0.0 if values == "margins" else 1.0
            rewards[name] = [mean(getattr(each, values)) + added * each.reward for each in history]
    plots = [
        _curves(
            "The reward, and what should rise with it",
            "reward on held-out prompts",
            steps,
            rewards,
            "Mirrored and blurred: rewards of the same images mirrored and slightly blurred. Better images keep most of their reward; the "
            "margin is the reward less that for another prompt.",
        )
    ]
    if watched := {name: [standardised(history[0].watched[name], each.watched[name]) for each in history] for name in history[0].watched}:
        plots.append(_curves("Scorers that are watched", "rise in standard deviations", steps, watched, "They are not tuned with."))
    pixels = {"drift": [mean(each.drifts) for each in history]}
    if history[0].distances:
        pixels["distance within a prompt"] = [mean(each.distances) for each in history]
    plots.append(
        _curves(
            "Pixels",
            "root mean squared difference",
            steps,
            pixels,
            "Drift: from the untuned generator's image with the same noise. Distance: between images of one prompt.",
        )
    )
    training = [line for line in log if line["kind"] == "train"]
    if len(training) > 1:
        own = {name: [line[name] for line in training] for name in ("reward", "loss") if name in training[0]}
        plots.append(_curves("Training", "mean of a step", [line["step"] for line in training], own, ""))
    return plots


def _curves(title: str, measure: str, steps: Sequence[int], series: Mapping[str, Sequence[float]], caption: str) -> Plot:
    drawn = figure(7.2, 3.6)
    axes = drawn.subplots()
    curves(axes, steps, series)
    axes.set(xlabel="step", ylabel=measure)
    words = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in series.items())
    return Plot(drawn, title, f"{measure} against the step: {words}", caption)


def _table(history: Sequence[Evaluation]) -> Grid:
    names = COLUMNS | {"above_target": "above target"} | {f"watch {name}": name for name in history[0].watched}
    summaries = [(str(each.step), each.summary()) for each in history]
    shown = [key for key in names if any(summary.get(key) is not None for _, summary in summaries)]
    cells = [[step, *(_cell(key, summary.get(key)) for key in shown)] for step, summary in summaries]
    return Grid([Column("step"), *(Column(names[key]) for key in shown)], cells, "Evaluations", EXPLAINED)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if key == "above_target" else f"{value:.3f}"
