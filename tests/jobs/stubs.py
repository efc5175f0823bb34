"""Scorers that are quick, and misbehave where a prompt tells them to. Worker processes import this file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from image_reward.errors import InputError
from image_reward.images import ImageLike, ImageTransform
from image_reward.jobs import score_files
from image_reward.prompts import PromptTokenizer
from image_reward.scorers import Processor, Scorer, TwoTowerBatch, TwoTowerProcessor, TwoTowerScorer

score_here = partial(score_files, workers=0)
"""Jobs that need no worker processes, which take seconds to start."""


class Brightness(TwoTowerScorer[Tensor]):
    """The mean of the pixels in [0, 1] plus the number of words of the prompt, and what the words ask for."""

    def __init__(self, name: str = "brightness", weight: float = 1.0, seconds: float = 0.0) -> None:
        super().__init__()
        self.name = name
        self.prepare = TwoTowerProcessor(ImageTransform(8), PromptTokenizer(max_tokens=8))
        self.weight = torch.nn.Parameter(torch.tensor(weight), requires_grad=False)
        self.seconds = seconds
        self.images_seen = 0
        self.largest = 0
        self.memory = 10_000
        word = self.prepare.tokenizer.token_id
        self.kill, self.nan, self.refuse, self.crash = word("kill"), word("nan"), word("no"), word("crash")

    def encode_images(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.memory:
            raise torch.OutOfMemoryError("stub out of memory")
        time.sleep(self.seconds * len(pixels))
        self.images_seen += len(pixels)
        self.largest = max(self.largest, len(pixels))
        return pixels.float().mean(dim=(1, 2, 3)) / 255

    def score_pairs(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        if (ids == self.kill).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (ids == self.refuse).any():
            raise InputError("the stub refuses this prompt")
        if (ids == self.crash).any():
            raise TypeError("the stub has a defect")
        rewards = self.weight * features[:, None] + mask.sum(dim=-1) - 2
        return torch.where((ids == self.nan).any(dim=-1), torch.nan, rewards)


@dataclass
class KillingProcessor(Processor[TwoTowerBatch]):
    """As that of ``Brightness``, but the prompt "kill" ends the process that prepares it, unless that is the job's own."""

    inner: TwoTowerProcessor

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> TwoTowerBatch:
        if "kill" in prompts and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(prompts, images)


class KilledDecoders(Scorer[TwoTowerBatch]):
    """``Brightness``, prepared by a ``KillingProcessor``."""

    name = "brightness"

    def __init__(self) -> None:
        super().__init__()
        self.brightness = Brightness()
        self.prepare = KillingProcessor(self.brightness.prepare)

    def forward(self, batch: TwoTowerBatch) -> Tensor:
        return self.brightness(batch)


def load_killed_decoders(_: str | None) -> list[KilledDecoders]:
    return [KilledDecoders()]


def load(device: str | None, names: Iterable[str] = ("brightness",), **options: Any) -> list[Brightness]:
    return [Brightness(name, **options).to(device or "cpu") for name in names]


def draw(folder: Path, count: int, side: int = 8) -> list[str]:
    """Plain pictures, each of its own brightness: 0.png, 1.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (side, side), (number % 256,) * 3).save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def stop_this_process() -> None:
    """As a signal does that the process did not start with blocked."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
