"""Rewards of the images that a pipeline of diffusers is making, before they are finished: of the clean image that a step predicts."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from image_reward.errors import InputError
from image_reward.prompts import check_prompts
from image_reward.scorers.base import Scorer
from image_reward.tuning.sampling import check_call_arguments, differentiable, predicted_clean, replaced, single_frame
from image_reward.tuning.selection import Model, loaded


@dataclass
class RewardPreview:
    """A ``callback_on_step_end`` with what it has seen; ``reward_preview`` makes it."""

    scorer: Scorer[Any] = field(repr=False)
    prompts: list[str]
    """One for each image, or one for all."""
    steps: frozenset[int]
    rewards: dict[int, list[float]] = field(default_factory=dict)
    """By step, one for each image."""
    images: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """By step: pixels [B, 3, H, W] in [0, 1], on the CPU."""
    _decode: Callable[[], Tensor] | None = field(default=None, repr=False)

    def __call__(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        if step in self.steps:
            if self._decode is None:
                raise InputError("call the pipeline within the block of reward_preview(), with the preview as callback_on_step_end")
            pixels = self._decode().float().cpu()
            if len(self.prompts) not in (1, len(pixels)):
                raise InputError(f"{len(self.prompts)} prompts and {len(pixels)} images: give one prompt for each image, or one for all")
            prompts = self.prompts * (len(pixels) // len(self.prompts))
            self.rewards[step], self.images[step] = self.scorer.score(prompts, list(pixels)), pixels
        return callback_kwargs


@contextmanager
def reward_preview(
    pipe: Any, prompts: str | Sequence[str], model: Model = "ImageReward-v1.0", *, steps: Collection[int], **call_arguments: Any
) -> Iterator[RewardPreview]:
    """Score the clean images that a pipeline predicts at some steps, while it runs::

        with reward_preview(pipe, prompt, scorer, steps={5, 10, 15}, height=512, width=512) as preview:
            image = pipe(prompt, num_inference_steps=30, height=512, width=512, callback_on_step_end=preview).images[0]
        preview.rewards  # {5: [...], 10: [...], 15: [...]}

    The images are not changed. A preview costs about as much as one step for one image and decoding: the pipeline decodes by itself, in
    a call whose only step is skipped, so this works for any that takes ``callback_on_step_end``. A reward in the middle of a run tells
    little before the composition is settled; see docs/tuning.md.

    Args:
        prompts: One for each image of the call, or one for all.
        model: A loaded scorer, or what ``image_reward.load`` takes.
        steps: As the pipeline numbers them for its callback, from 0.
        call_arguments: Those of the call that decide size and form of its images, such as ``height`` and ``max_sequence_length``.

    Raises ``InputError`` for arguments that make no sense, and from within the call where its scheduler predicts no clean image.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_prompts(prompts)
    if not prompts:
        raise InputError("reward_preview() needs at least one prompt")
    if wrong := [step for step in steps if not (isinstance(step, int) and step >= 0)]:
        raise InputError(f"steps must be whole numbers from 0, not {', '.join(map(repr, wrong))}")
    if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
        raise InputError(f"{type(pipe).__name__} takes no callback_on_step_end, so nothing can be seen while it runs")
    check_call_arguments(pipe, "reward_preview()", call_arguments, "num_inference_steps", "latents", "callback_on_step_end")
    preview = RewardPreview(loaded(model), prompts, frozenset(steps))
    step = pipe.scheduler.step

    @functools.wraps(step)
    def recorded_step(*args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(step).bind(*args, **kwargs).arguments
        as_tuple = not arguments.get("return_dict", True)
        output = step(**arguments | {"return_dict": True})
        seen = (arguments["model_output"], arguments["timestep"], arguments["sample"])

        def decode() -> Tensor:
            clean = predicted_clean(scheduler, output, *seen).to(output.prev_sample.dtype)
            return _decoded(pipe, clean, prompts[0], call_arguments)

        preview._decode = decode
        return output.to_tuple() if as_tuple else output

    scheduler = pipe.scheduler
    try:
        with replaced(scheduler, "step", recorded_step):
            yield preview
    finally:
        preview._decode = None  # which holds the latents of the last step


@torch.no_grad()
def _decoded(pipe: Any, clean: Tensor, prompt: str, call_arguments: dict[str, Any]) -> Tensor:
    """Pixels [B, 3, H, W] in [0, 1] of clean latents, by a copy of the pipeline that takes them for the result of its only step."""
    twin = copy.copy(pipe)
    scheduler = copy.copy(pipe.scheduler)
    vars(scheduler).pop("step", None)  # that of the running pipeline
    with replaced(twin, "scheduler", scheduler), differentiable(twin, steps=1, active=()) as call:
        step = twin.scheduler.step

        @functools.wraps(step)
        def skipped_step(*args: Any, **kwargs: Any) -> Any:
            arguments = inspect.signature(step).bind(*args, **kwargs).arguments
            output = step(**arguments | {"return_dict": True})
            output.prev_sample = clean
            return output.to_tuple() if not arguments.get("return_dict", True) else output

        with replaced(twin.scheduler, "step", skipped_step):
            images = call(
                prompt=[prompt],
                num_inference_steps=1,
                generator=torch.Generator().manual_seed(0),  # whatever it draws must not move the global generator
                output_type="pt",
                return_dict=False,
                **call_arguments,
            )[0]
    return single_frame(pipe, images)
