"""Loss, accuracy and spread of the rewards, measured while training and on validation data."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from image_reward.training.data import MicroBatch, TrainingSteps


class Measures:
    """Sums over micro-batches and processes, and the metrics that follow from them.

    All sums are one float64 tensor, so that one reduction adds them over processes.
    """

    names = ("loss", "terms", "correct", "untied", "squares", "degrees_of_freedom", "images", "rewards", "rewards_squared", "unreadable")

    def __init__(self, values: Tensor | None = None) -> None:
        self.values = torch.zeros(len(self.names), dtype=torch.float64) if values is None else values

    @property
    def sums(self) -> dict[str, float]:
        return dict(zip(self.names, self.values.tolist(), strict=True))

    @classmethod
    def of(cls, rewards: Tensor, loss: Tensor, micro: MicroBatch) -> Measures:
        """Of one micro-batch: raw rewards [N] and the sum of the loss's terms."""
        rewards, kept = rewards.detach().double(), micro.judged
        better, worse = micro.beats.nonzero().unbind(dim=1)
        counts = torch.bincount(micro.prompt[kept], minlength=len(micro.names))
        totals = torch.zeros(len(counts), dtype=rewards.dtype, device=rewards.device).index_add(0, micro.prompt[kept], rewards[kept])
        deviations = rewards - (totals / counts.clamp(min=1))[micro.prompt]
        values = [
            loss.detach().double(),
            torch.tensor(float(micro.num_terms)),
            (rewards[better] > rewards[worse]).sum(),  # a scorer's tie is wrong
            torch.tensor(float(len(better))),
            deviations[kept].square().sum(),
            (counts - 1).clamp(min=0).sum(),
            kept.sum(),
            rewards[kept].sum(),
            rewards[kept].square().sum(),
            torch.tensor(float(micro.num_unreadable)),
        ]
        return cls(torch.stack([value.double().to(rewards.device) for value in values]))

    def __add__(self, other: Measures) -> Measures:
        return Measures(self.values.to(other.values.device) + other.values)

    def over_processes(self, accelerator: Accelerator) -> Measures:
        if accelerator.num_processes == 1:
            return self
        return Measures(accelerator.reduce(self.values.to(accelerator.device), "sum"))

    @property
    def loss(self) -> float | None:
        return self.sums["loss"] / self.sums["terms"] if self.sums["terms"] else None

    @property
    def accuracy(self) -> float | None:
        """Pairwise accuracy over the untied pairs of all prompts together."""
        return self.sums["correct"] / self.sums["untied"] if self.sums["untied"] else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the raw rewards among the images of one prompt, over all prompts."""
        return math.sqrt(self.sums["squares"] / self.sums["degrees_of_freedom"]) if self.sums["degrees_of_freedom"] else None

    def as_dict(self) -> dict[str, float | None]:
        """For the log."""
        return {"loss": self.loss, "accuracy": self.accuracy, "std": self.std}

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and standard deviation of the raw rewards over all images."""
        mean = self.sums["rewards"] / self.sums["images"]
        return mean, math.sqrt(max(self.sums["rewards_squared"] / self.sums["images"] - mean * mean, 0.0))


@torch.no_grad()
def measure_all(learner: nn.Module, steps: TrainingSteps, accelerator: Accelerator, workers: int) -> Measures:
    """Measures of one pass over the data, without dropout, over all processes."""
    learner.eval()
    measures = Measures()
    for micro_batches in steps.loader(workers):
        for micro in micro_batches:
            micro = micro.to(accelerator.device)
            with accelerator.autocast():
                rewards, loss = learner(micro)
            measures += Measures.of(rewards, loss, micro)
    if isinstance(learner, FSDPModule):
        learner.reshard()  # FSDP keeps the outermost weights gathered for a backward pass, and there is none
    return measures.over_processes(accelerator)
