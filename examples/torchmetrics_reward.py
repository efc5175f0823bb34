"""A mean reward as a torchmetrics Metric: rewards are not clamped, and a mean over several processes is that over all images."""

from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics import Metric

import image_reward as ir


class MeanReward(Metric):
    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, model: str = "ImageReward-v1.0", **options: Any) -> None:
        super().__init__(**options)
        self.scorer = ir.load(model)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Sequence[Any], prompts: Sequence[str]) -> None:
        rewards = self.scorer.score(list(prompts), list(images))
        self.total += sum(rewards)
        self.count += len(rewards)

    def compute(self) -> torch.Tensor:
        return (self.total / self.count).float()
