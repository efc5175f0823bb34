"""Tuning runs of seconds: a tiny Stable Diffusion, scorers that are a mean of pixels, a few steps.

``tiny_runs.py CONFIG.toml [KILL_AT_STEP]`` is such a run in a process of its own, for tests that kill it or start several.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny_pipelines
import torch
from torch import Tensor

from image_reward.recipes import read_toml
from image_reward.runs import Progress
from image_reward.scorers.base import Scorer
from image_reward.tuning import Tuning, TuningResult, tune

PROMPTS = [f"a {colour} {animal}" for colour in ("red", "blue", "tan") for animal in ("cat", "dog", "cow", "ant")]
HELD_OUT = ["a red fox", "a blue hen"]


class Rows(list[float]):
    def select(self, rows: Sequence[int]) -> Rows:
        return Rows(self[row] for row in rows)


def pixels_of(image: Any) -> Tensor:
    """A tensor [3, H, W] in [0, 1], or what an ensemble opens of it."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


class Channel(Scorer[Rows]):
    """A channel's mean less that of the others: a reward that any image can have more of. ``factor`` -1 prefers the others."""

    reads_prompt = False

    def __init__(self, channel: int, factor: float = 10.0, name: str = "redness") -> None:
        super().__init__()
        self.name, self.channel, self.factor = name, channel, factor
        self.prepare = lambda _, images: Rows(float(self._means(pixels_of(image)[None])) for image in images)

    def _means(self, pixels: Tensor) -> Tensor:
        means = pixels.float().mean(dim=(2, 3))
        return self.factor * (1.5 * means[:, self.channel] - 0.5 * means.sum(dim=1))

    def forward(self, batch: Rows) -> Tensor:
        return torch.tensor(batch)

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        assert len(prompts) == len(pixels)
        return self._means(pixels)


def scorers() -> dict[str, Scorer[Any]]:
    return {
        "redness": Channel(0),
        "pallor": Channel(0, -10.0, "pallor"),
        "greenness": Channel(1, name="greenness"),
        "redder": Channel(0, 20.0, "redder"),
    }


def config(folder: Path, **changes: Any) -> Tuning:
    values: dict[str, Any] = {
        "reward": ("redness",),
        "output": str(folder),
        "denoising_steps": 3,
        "height": 16,
        "width": 16,
        "max_steps": 6,
        "batch_images": 4,
        "micro_images": 2,
        "lora_rank": 4,
        "lr": 2e-2,
        "evaluate_every": 3,
        "num_held_out": 2,
        "cpu": True,
    } | changes
    if values.get("method") == "best-of":
        values = {"candidates": 3} | values
    is_pretrained = values.get("pretraining_weight", float(values.get("method") == "refl"))
    if is_pretrained and not values.get("pretraining_images"):
        values = {"pretraining_samples": 4} | values
    return Tuning(**values)


def run(settings: Tuning, **options: Any) -> TuningResult:
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    return tune(settings, options.pop("pipe", pipe), **{"prompts": PROMPTS, "held_out": HELD_OUT, "scorers": scorers()} | options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("WARNINGS_ARE_ERRORS"):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array_", DeprecationWarning)
        warnings.filterwarnings("ignore", category=SyntaxWarning)  # torchao's, from Python 3.12 on, where its files are not compiled yet
    if len(sys.argv) > 2:
        kill_at = int(sys.argv[2])

        def kill(_: Progress, step: int, *__: object) -> None:
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        Progress.step = kill  # type: ignore[method-assign]
    run(read_toml(Path(sys.argv[1]), Tuning()))
