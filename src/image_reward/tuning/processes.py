"""What the processes of a run share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from image_reward.errors import InputError
from image_reward.tuning.config import Tuning

T = TypeVar("T")


def accelerator_of(config: Tuning) -> Accelerator:
    cpu = config.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and cpu:
        raise InputError("precision fp16 does not work on a CPU; use bf16 or fp32")
    return Accelerator(cpu=cpu, mixed_precision="fp16" if config.precision == "fp16" else "no", project_dir=config.output)


def over_processes(accelerator: Accelerator, num: int, size: int, compute: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """What ``compute`` makes of the places from 0 to ``num``, in micro-batches of ``size``, which the processes share."""
    mine = list(range(accelerator.process_index, num, accelerator.num_processes))
    done = [
        (place, result)
        for start in range(0, len(mine), size)
        for place, result in zip(mine[start : start + size], compute(mine[start : start + size]), strict=True)
    ]
    return [result for _, result in sorted(gather_object(done), key=lambda pair: pair[0])]


def reduce_gradients(accelerator: Accelerator, weights: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all processes; a weight without one has zeros, so that every process has the same."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    flat = accelerator.reduce(flat, "sum")
    start = 0
    for weight in weights:
        weight.grad = flat[start : start + weight.numel()].view_as(weight).clone()
        start += weight.numel()
