"""A LoRA at several strengths, from the untuned to the tuned generator, so that a person can choose one.

The scale of a LoRA interpolates between both (DRaFT, Clark et al. 2024, arXiv 2309.17400, section 5.3), which is the cheapest cure of
over-optimisation: it needs no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_reward.errors import InputError
from image_reward.reports.document import Block, Column, Grid, Plot, Report
from image_reward.reports.numbers import counted, decimal
from image_reward.reports.plots import curves, figure
from image_reward.scorers.base import Scorer
from image_reward.tuning import lora, monitors
from image_reward.tuning.monitors import Evaluation, mean
from image_reward.tuning.sampling import sample

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Strength:
    """What a LoRA does at one strength, on the same prompts and noises at each."""

    strength: float
    """0 is the untuned generator, 1 the tuned one."""
    evaluation: Evaluation
    """Its drifts are from the images of the untuned generator."""


def sweep(
    pipe: Any,
    prompts: Sequence[str],
    scorers: Mapping[str, Scorer[Any]],
    strengths: Sequence[float] = STRENGTHS,
    seeds: Sequence[int] = (0, 1),
    *,
    steps: int = 25,
    **call_arguments: Any,
) -> list[Strength]:
    """Measure the LoRA of a pipeline (``lora.attach`` or ``lora.load``) at several strengths.

    Args:
        prompts: At least two, which it was not tuned on.
        scorers: The first is the reward that it was tuned with; the others are watched.
        strengths: At which images are made; above 1 the LoRA extrapolates.
        seeds: Of the images of each prompt.
        steps: Denoising steps.
        call_arguments: Further arguments of the pipeline, such as ``guidance_scale``.

    Raises ``InputError`` for fewer than two prompts, no scorers, seeds or strengths, and a pipeline without a LoRA.
    """
    for name, values, least in (("prompts", prompts, 2), ("scorers", scorers, 1), ("strengths", strengths, 1), ("seeds", seeds, 1)):
        if len(values) < least:
            raise InputError(f"the sweep needs at least {counted(least, name.removesuffix('s'))}, and got {len(values)}")
    texts = [prompt for prompt in prompts for _ in seeds]
    others = [prompts[(place + 1) % len(prompts)] for place in range(len(prompts)) for _ in seeds]

    def images() -> Tensor:
        with torch.no_grad():
            made = [sample(pipe, prompt, steps=steps, grad_steps=0, seed=seed, **call_arguments) for prompt in prompts for seed in seeds]
        return torch.cat(made).float().cpu().mul(255).round().div(255)  # as saved images are

    with lora.disabled(pipe):
        untuned = images()
    (_, reward), *_ = scorers.items()
    rows = []
    for strength in strengths:
        with lora.strength(pipe, strength):
            pixels = images()
        scored = {name: tuple(scorer.score(texts, list(pixels))) for name, scorer in scorers.items()}
        rewards, watched = next(iter(scored.values())), dict(list(scored.items())[1:])
        own = reward.score(others, list(pixels)) if reward.reads_prompt else []
        rows.append(
            Strength(
                float(strength),
                Evaluation(
                    step=0,
                    rewards=rewards,
                    watched=watched,
                    margins=tuple(a - b for a, b in zip(rewards, own, strict=False)),
                    distances=monitors.distances(pixels, texts),
                    drifts=monitors.drifts(pixels, untuned),
                ),
            )
        )
    return rows


def strength_report(rows: Sequence[Strength], name: str = "The LoRA") -> Report:
    """The rows as a report: a table, and a plot where there is matplotlib."""
    data = {"strengths": [{"strength": row.strength, **row.evaluation.summary()} for row in rows]}
    lead = f"Means of {counted(len(rows[0].evaluation.rewards), 'image')} at each strength, with the same prompts and noises."
    return Report(f"{name} at several strengths", lead, strength_blocks(rows), data)


def strength_blocks(rows: Sequence[Strength]) -> list[Block]:
    blocks: list[Block] = [strength_table(rows)]
    if find_spec("matplotlib") is not None and len(rows) > 1:
        blocks.append(_plot(rows))
    return blocks


COLUMNS = {
    "reward": "reward",
    "margin": "prompt margin",
    "mirrored": "mirrored",
    "blurred": "blurred",
    "distance": "distance",
    "drift": "drift",
}
"""Titles of what is measured, by the names in ``Evaluation.summary``."""
EXPLAINED = "Mirrored and blurred are changes of the reward when the image is mirrored or blurred."


def strength_table(rows: Sequence[Strength]) -> Grid:
    columns = COLUMNS | {f"watch {name}": name for name in rows[0].evaluation.watched}
    summaries = [row.evaluation.summary() for row in rows]
    shown = [key for key in columns if any(summary.get(key) is not None for summary in summaries)]
    cells = [[f"{row.strength:g}", *(decimal(each.get(key), 3) for key in shown)] for row, each in zip(rows, summaries, strict=True)]
    return Grid(
        [Column("strength"), *(Column(columns[key]) for key in shown)],
        cells,
        "Strengths of the LoRA",
        "A lower strength gives up some of the reward for less drift; choose it by the images and the scorers that were not tuned with."
        + (f" {EXPLAINED}" if "blurred" in shown else ""),
    )


def _plot(rows: Sequence[Strength]) -> Plot:
    first = rows[0].evaluation
    series = {"reward": [standardised(first.rewards, row.evaluation.rewards) for row in rows]}
    for name in first.watched:
        series[name] = [standardised(first.watched[name], row.evaluation.watched[name]) for row in rows]
    if first.margins:
        series["prompt margin"] = [standardised(first.margins, row.evaluation.margins) for row in rows]
    drawn = figure(7.2, 3.6)
    axes = drawn.subplots()
    curves(axes, [mean(row.evaluation.drifts) for row in rows], series)
    axes.set(xlabel="drift from the untuned generator", ylabel="rise in standard deviations")
    words = "; ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in series.items())
    strengths = ", ".join(f"{row.strength:g}" for row in rows)
    return Plot(
        drawn,
        "Reward against drift",
        f"rise against drift: {words}",
        f"The points are the strengths {strengths}. Drift: root mean squared difference of pixels.",
    )


def standardised(untuned: Sequence[float], now: Sequence[float]) -> float:
    """The rise of a mean in standard deviations of the untuned generator's values.

    >>> standardised([0.0, 2.0], [2.0, 2.0])
    1.0
    """
    return (mean(now) - mean(untuned)) / max(float(np.std(untuned)), 1e-9)
