"""Comparisons that a tiny network can learn: grey squares, the brighter the better."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.training import RewardTraining
from image_reward.types import Comparison

NETWORK = BlipConfig(
    image_size=16,
    patch_size=8,
    vision_width=16,
    vision_layers=3,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    text_hidden=32,
    projection_width=8,
    head_widths=(16,),
)


@torch.no_grad()
def rewards_of_noise(network: ImageRewardNetwork, num_images: int = 6) -> Tensor:
    """Rewards [num_images] of the same random pixels every time, with one prompt."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(num_images, 3, network.config.image_size, network.config.image_size, generator=draw)
    return network.eval()(pixels, torch.tensor([[101, 2000, 102]]).expand(num_images, -1))


def comparisons(number: int, seed: int = 0, sizes: tuple[int, ...] = (4, 5, 2, 6), ties: bool = False) -> list[Comparison]:
    draw = random.Random(seed)
    found = []
    for i in range(number):
        levels = draw.sample(range(0, 250, 10), sizes[i % len(sizes)])
        if ties:
            levels[1] = levels[0]
        images = tuple(np.full((16, 16, 3), level, dtype=np.uint8) for level in levels)
        ranks = tuple(1 + sum(other > level for other in set(levels)) for level in levels)
        found.append(Comparison(f"prompt {i}", images, ranks, id=f"c{i}"))
    return found


def config(output: Path, **changes: Any) -> RewardTraining:
    values: dict[str, Any] = {
        "output": str(output), "start": "scratch", "network": NETWORK, "freeze": 0.0, "epochs": 2, "batch_images": 16, "micro_images": 8,
        "lr": 3e-3, "workers": 0, "log_every": 1, "cpu": True, "dropout": False,
    }  # fmt: skip
    return RewardTraining(**values | changes)
