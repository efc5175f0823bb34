"""Images of a diffusers pipeline with gradients to its weights, without code for each pipeline.

A pipeline's ``__call__`` is a differentiable function under ``torch.no_grad``: without that decorator, encoding of prompts, guidance,
scheduler and decoder are on the graph as they are. What remains to be decided is which calls of the denoiser carry gradients, and
whether its input is cut from the graph. Both are decided around the denoiser's ``forward``; the steps are counted by the scheduler,
because pipelines call the denoiser once or several times a step. The methods (ReFL, DRaFT-K, AlignProp, DRTune, …) differ in little else.
"""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from image_reward.errors import ImageRewardError, InputError, PromptError
from image_reward.prompts import check_prompts

_DENOISERS = ("unet", "transformer", "transformer_2")  # Wan 2.2 has two transformers, for early and late steps
_NOISY_SAMPLE = ("hidden_states", "sample", "x")  # the denoiser's first parameter, where a pipeline passes it by name
_OWN = {"prompt", "generator", "output_type", "return_dict", "num_images_per_prompt", "num_videos_per_prompt"}


def sample(
    pipe: Any,
    prompts: str | Sequence[str],
    *,
    steps: int,
    grad_steps: int | Collection[int] = 2,
    seed: int | Sequence[int],
    detach_input: bool = False,
    stop_at: int | None = None,
    **call_arguments: Any,
) -> Tensor:
    """Generate one image for each prompt: pixels [B, 3, H, W] in [0, 1], in the pipeline's dtype, with gradients.

    They are the images that ``pipe(prompt, num_inference_steps=steps, generator=...)`` makes with generators of the same seeds.

    Args:
        pipe: A text-to-image pipeline of diffusers. Freeze what is not tuned (``pipe.vae.requires_grad_(False)``, the text encoders).
        prompts: One prompt, or one for each image.
        steps: Denoising steps.
        grad_steps: The steps whose calls of the denoiser carry gradients: the number of last steps (all, where there are fewer), or the
            steps themselves, counted from 0 for the noisiest. Other calls store nothing for the backward pass.
        seed: Of the first image; further images have the seeds that follow. Or one seed for each image. An image depends on its own
            seed only, and not on what it shares a batch with, apart from rounding.
        detach_input: Cut the noisy sample that enters the denoiser from the graph, so that gradients pass between steps by the scheduler's
            arithmetic alone (DRTune, ECCV 2024; FlowBP, arXiv 2606.11075). No gradient then passes through two calls in a row.
        stop_at: The step after which the clean image that it predicts is decoded, in place of the remaining steps (ReFL, arXiv 2304.05977).
        call_arguments: Further arguments of the pipeline: ``guidance_scale``, ``height``, ``negative_prompt``, ``latents`` and so on.

    A safety checker or watermark of the pipeline is bypassed: neither passes gradients. The decoder clamps pixels to [0, 1], and pixels
    at the limits get no gradient.

    Raises ``InputError`` for arguments that make no sense, and where no gradient can reach the images; ``PromptError`` for a prompt
    that is longer than the pipeline's text encoders read.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_prompts(prompts)
    if not prompts:
        raise InputError("sample() needs at least one prompt")
    active = _active_steps(steps, grad_steps)
    check_call_arguments(pipe, "sample()", call_arguments, "num_inference_steps")
    check_lengths(pipe, prompts, call_arguments.get("max_sequence_length"))
    with differentiable(pipe, steps=steps, active=active, detach_input=detach_input, stop_at=stop_at) as call:
        images = called(pipe, call, prompts, steps, _seeds(seed, len(prompts)), call_arguments)
    if active and torch.is_grad_enabled() and not images.requires_grad:
        raise InputError(
            f"no gradient reaches the images of {type(pipe).__name__}: no weight of its denoiser requires gradients, or it is not "
            "differentiable; call requires_grad_(True) on what is tuned, or pass grad_steps=0"
        )
    return images


def called(
    pipe: Any, call: Callable[..., Any], prompts: Sequence[str], steps: int, seeds: Sequence[int], call_arguments: Mapping[str, Any]
) -> Tensor:
    """Pixels [B, 3, H, W] in [0, 1] of a call within ``differentiable``, one seed for each prompt."""
    with refusals(pipe):
        images = call(
            prompt=list(prompts),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            return_dict=False,
            **call_arguments,
        )[0]
    return single_frame(pipe, images)


@contextmanager
def refusals(pipe: Any) -> Iterator[None]:
    """A ``ValueError`` of a pipeline's own in the block, for a size that is not a multiple of 8 and the like, is an ``InputError``."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, ImageRewardError):
            raise
        raise InputError(f"{type(pipe).__name__} refused the call: {error}") from error


def single_frame(pipe: Any, images: Tensor) -> Tensor:
    """Images [B, 3, H, W], or the only frame of videos [B, F, 3, H, W]."""
    if images.ndim == 5:
        check_single_frame(pipe, images.shape[1])
        return images[:, 0]
    return images


def check_single_frame(pipe: Any, num_frames: int) -> None:
    """Raise ``InputError`` unless a pipeline for videos has made an image."""
    if num_frames != 1:
        raise InputError(f"{type(pipe).__name__} made videos of {num_frames} frames; ask for an image by num_frames=1")


@contextmanager
def differentiable(
    pipe: Any,
    *,
    steps: int,
    active: Collection[int],
    detach_input: bool = False,
    start_at: int = 0,
    stop_at: int | None = None,
) -> Iterator[Callable[..., Any]]:
    """Within the block, the pipeline as a function that gradients pass through: ``with differentiable(...) as call: call(prompt=...)``.

    ``call`` takes the pipeline's own arguments, among them ``num_inference_steps=steps``; ``output_type="pt"`` gives tensors in [0, 1].
    ``active`` are the steps, counted from 0, whose denoiser calls carry gradients. A scheduler may call the denoiser several times a step
    (Heun's, and the first step of PNDM): those calls belong to one step. ``detach_input`` and ``stop_at`` are those of ``sample``.
    ``start_at`` leaves out the steps before it, for noisy samples of the caller's own (see ``denoising.starting_from``).

    The pipeline is as it was when the block ends, also by an exception. Its scheduler is used as a copy.

    Raises ``InputError`` for a pipeline without a denoiser or a scheduler that it knows, and for steps out of range.
    """
    denoisers = denoisers_of(pipe)
    if not callable(getattr(getattr(pipe, "scheduler", None), "set_timesteps", None)):
        raise InputError(f"{type(pipe).__name__} has no scheduler, which counts the denoising steps")
    active = frozenset(_active_steps(steps, active))
    if stop_at is not None and not (isinstance(stop_at, int) and max(active, default=0) <= stop_at < steps):
        raise InputError(f"stop_at must be a step from {max(active, default=0)}, the last with gradients, to {steps - 1}, not {stop_at}")
    if not 0 <= start_at <= min(active, default=steps - 1):
        raise InputError(f"start_at must be a step from 0 to {min(active, default=steps - 1)}, not {start_at}")
    rollout = _Rollout(copy.copy(pipe.scheduler), steps, active, start_at, stop_at)
    with ExitStack() as restored:
        restored.callback(rollout.release)
        replacements: dict[str, Any] = {"scheduler": rollout.scheduler, "_progress_bar_config": {"disable": True}}
        # Both work on NumPy arrays, and would fail on pixels that carry gradients.
        replacements |= {name: None for name in ("safety_checker", "watermark") if getattr(pipe, name, None) is not None}
        for name, value in replacements.items():
            restored.enter_context(replaced(pipe, name, value))
        for denoiser in denoisers:
            restored.enter_context(replaced(denoiser, "forward", rollout.denoiser_forward(denoiser.forward, detach_input)))
        call = type(pipe).__call__
        yield functools.partial(getattr(call, "__wrapped__", call), pipe)


def denoisers_of(pipe: Any) -> list[nn.Module]:
    """The networks of a pipeline that predict noise or velocity. Raises ``InputError`` where none is known."""
    denoisers = [module for name in _DENOISERS if isinstance(module := getattr(pipe, name, None), nn.Module)]
    if not denoisers:
        raise InputError(f"{type(pipe).__name__} has no denoiser that is known: none of {', '.join(_DENOISERS)} is a network")
    return denoisers


@dataclass(frozen=True)
class DenoiserCall:
    """One call of a denoiser with gradients, during a rollout."""

    denoiser: nn.Module
    args: tuple[Any, ...] = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    prediction: Tensor = field(repr=False)
    """[B, ...], or [2 B, ...] where the pipeline guides with one call for both halves; on the graph of the rollout."""

    def repeated(self, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The prediction for the same inputs by the denoiser as it is now, or with other ``weights`` by name, without gradients."""
        with torch.no_grad():
            return _prediction(functional_call(self.denoiser, dict(weights or {}), self.args, self.kwargs))


@contextmanager
def recorded_calls(pipe: Any) -> Iterator[list[DenoiserCall]]:
    """The list of the denoiser's calls with gradients in the block, for what is computed on the states of a rollout.

    The divergence from the untuned model, with LoRA::

        with recorded_calls(pipe) as calls:
            pixels = sample(pipe, prompts, steps=25, seed=0)
        pipe.unet.disable_adapters()
        divergence = sum(divergence_from_untuned(call.prediction, call.repeated()).mean() for call in calls)
        pipe.unet.enable_adapters()

    Raises ``InputError`` as ``differentiable`` does.
    """
    calls: list[DenoiserCall] = []

    def record(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        prediction = _prediction(output)
        if prediction.requires_grad:
            calls.append(DenoiserCall(denoiser, _detached(args), _detached(kwargs), prediction))

    with ExitStack() as hooks:
        for denoiser in denoisers_of(pipe):
            hooks.enter_context(denoiser.register_forward_hook(record, with_kwargs=True))
        yield calls


class _Rollout:
    """Counts the steps of one run of a pipeline through a scheduler of its own."""

    def __init__(self, scheduler: Any, steps: int, active: frozenset[int], start_at: int, stop_at: int | None) -> None:
        self.scheduler, self.steps, self.active = scheduler, steps, active
        self.num_calls = steps
        self.call = 0  # of the scheduler's step
        self.all_timesteps: Tensor | None = None
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        # Pipelines look at the parameters of both methods, which ``wraps`` keeps.
        @functools.wraps(set_timesteps)
        def counted_set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.num_calls, self.all_timesteps = len(scheduler.timesteps), None
            self.call = self._first_call_of(start_at)
            if start_at or stop_at is not None:
                self.all_timesteps = scheduler.timesteps
                scheduler.timesteps = self.all_timesteps[self.call : self._first_call_of(steps if stop_at is None else stop_at + 1)]
            if start_at and hasattr(scheduler, "set_begin_index"):
                type(scheduler).set_begin_index(scheduler, self.call)
                scheduler.set_begin_index = lambda *_, **__: None  # pipelines set it to 0
            return result

        @functools.wraps(step)
        def counted_step(*args: Any, **kwargs: Any) -> Any:
            if self.all_timesteps is not None:
                # The pipeline holds the short list by now. The scheduler needs all: multistep solvers lower their order near the end.
                scheduler.timesteps, self.all_timesteps = self.all_timesteps, None
            self.call += 1
            if stop_at is None or self.call < self._first_call_of(stop_at + 1):
                return step(*args, **kwargs)
            arguments = inspect.signature(step).bind(*args, **kwargs).arguments
            as_tuple = not arguments.get("return_dict", True)
            output = step(**arguments | {"return_dict": True})
            clean = predicted_clean(scheduler, output, arguments["model_output"], arguments["timestep"], arguments["sample"])
            clean = clean.to(output.prev_sample.dtype)
            if as_tuple:
                return (clean,)
            output.prev_sample = clean
            return output

        scheduler.set_timesteps, scheduler.step = counted_set_timesteps, counted_step

    def _first_call_of(self, step: int) -> int:
        return -(-step * self.num_calls // self.steps)  # rounded up: the first call with call * steps // num_calls >= step

    @property
    def step(self) -> int:
        """The denoising step of the next call. Heun's 2 n - 1 calls and the n + 1 of PNDM fall on the steps that they belong to."""
        return self.call * self.steps // self.num_calls

    def denoiser_forward(self, forward: Callable[..., Any], detach_input: bool) -> Callable[..., Any]:
        @functools.wraps(forward)
        def with_gradients_where_active(*args: Any, **kwargs: Any) -> Any:
            if detach_input:
                args, kwargs = _without_graph(args, kwargs)
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.step in self.active):
                return forward(*args, **kwargs)

        return with_gradients_where_active

    def release(self) -> None:
        """Break the circle of references through which the scheduler would keep the graph of the last run in memory."""
        del self.scheduler.set_timesteps, self.scheduler.step
        vars(self.scheduler).pop("set_begin_index", None)


def predicted_clean(scheduler: Any, output: Any, model_output: Tensor, timestep: Any, noisy: Tensor) -> Tensor:
    """The clean sample x0 that a denoiser predicts from a noisy one, in a call of ``scheduler.step`` that gave ``output``.

    It is the scheduler's own where it has one. Otherwise, with the noisy sample x = a x0 + s e: (x - s eps) / a for a predicted noise eps,
    a x - s v for v-prediction, and x - s v for the velocity v = e - x0 of flow models, where a = 1 - s.

    Raises ``InputError`` for a scheduler that does not say its noise levels.
    """
    for name in ("pred_original_sample", "denoised"):
        if (clean := getattr(output, name, None)) is not None:
            return clean
    flow = not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas", False)
    prediction = scheduler.config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    kind = f"{type(scheduler).__name__} with prediction_type {prediction!r}"
    if prediction == "sample":
        return model_output
    noisy, model_output = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (noisy, model_output))
    if flow and prediction != "flow_prediction":  # the preconditioning of EDM, and others of their own
        raise InputError(f"the clean image cannot be derived from {kind}; use another scheduler, or no stop_at")
    if hasattr(scheduler, "sigmas") and getattr(scheduler, "step_index", None) is not None:
        sigma = scheduler.sigmas[scheduler.step_index - 1].to(noisy)  # step() has moved on by one
        if flow:
            return noisy - sigma * model_output
        alpha = (sigma**2 + 1) ** -0.5
        sigma = sigma * alpha
    elif hasattr(scheduler, "alphas_cumprod"):
        squared = scheduler.alphas_cumprod[int(timestep)].to(noisy)
        alpha, sigma = squared**0.5, (1 - squared) ** 0.5
    else:
        raise InputError(f"the clean image cannot be derived from {kind}; use another scheduler, or no stop_at")
    if prediction == "epsilon":
        return (noisy - sigma * model_output) / alpha
    if prediction == "v_prediction":
        return alpha * noisy - sigma * model_output
    raise InputError(f"the clean image cannot be derived from {kind}; use another scheduler, or no stop_at")


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute for the block. It is written past ``__setattr__``, with which pipelines and modules register parts."""
    attributes = vars(owner)
    before = {name: attributes[name]} if name in attributes else {}
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(before)


def _without_graph(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The denoiser's arguments with the noisy sample cut from the graph. Text embeddings keep theirs: an encoder may be tuned too."""
    if args:
        return (_detached(args[0]), *args[1:]), dict(kwargs)
    for name in _NOISY_SAMPLE:
        if name in kwargs:
            return args, {**kwargs, name: _detached(kwargs[name])}
    raise InputError(f"detach_input knows no noisy sample among the denoiser's arguments {', '.join(kwargs)}")


def _detached(value: Any) -> Any:
    """A copy without graph: of a tensor, or of what holds tensors (Z-Image passes a list of images)."""
    if isinstance(value, list | tuple):
        return type(value)(_detached(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _detached(item) for key, item in value.items()}
    return value.detach() if isinstance(value, Tensor) else value


def _prediction(output: Any) -> Tensor:
    prediction = output[0]
    return torch.stack(list(prediction)) if isinstance(prediction, list | tuple) else prediction


def _active_steps(steps: int, grad_steps: int | Collection[int]) -> list[int]:
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number of at least 1, not {steps!r}")
    if isinstance(grad_steps, int):
        if grad_steps < 0:
            raise InputError(f"grad_steps must be the number of last steps or a set of steps, not {grad_steps}")
        return list(range(max(steps - grad_steps, 0), steps))
    if wrong := [step for step in grad_steps if not (isinstance(step, int) and 0 <= step < steps)]:
        raise InputError(f"steps with gradients must be from 0 to {steps - 1} for {steps} steps, not {', '.join(map(repr, wrong))}")
    return sorted(set(grad_steps))


def _seeds(seed: int | Sequence[int], num_images: int) -> list[int]:
    if not isinstance(seed, Sequence):
        return list(range(operator.index(seed), operator.index(seed) + num_images))
    if len(seed) != num_images:
        raise InputError(f"{len(seed)} seeds for {num_images} prompts: give one seed for each prompt, or the first of them")
    return list(seed)


def check_call_arguments(pipe: Any, caller: str, call_arguments: Mapping[str, Any], *own: str) -> None:
    """Raise ``InputError`` for arguments that the pipeline does not take, or that the caller sets itself: ``own``, and those of any."""
    if taken := sorted((_OWN | set(own)) & call_arguments.keys()):
        raise InputError(
            f"{caller} sets {', '.join(taken)} of the pipeline itself; it has arguments of its own for prompts, seeds and numbers"
        )
    parameters = inspect.signature(type(pipe).__call__).parameters
    # Many pipelines also take **kwargs, for arguments of the past, and would ignore a misspelt one.
    if "prompt" in parameters and (unknown := sorted(call_arguments.keys() - parameters.keys())):
        raise InputError(f"{type(pipe).__name__} takes no {', '.join(unknown)}")


def check_lengths(pipe: Any, prompts: Sequence[str], asked: int | None) -> None:
    """Raise ``PromptError`` for a prompt that no text encoder reads to its end. Where there are several, it is enough that one does."""
    tokenizers = [tokenizer for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if (tokenizer := getattr(pipe, name, None)) is not None]
    parameters = inspect.signature(type(pipe).__call__).parameters
    if asked is None and "max_sequence_length" in parameters:
        asked = parameters["max_sequence_length"].default
    # CLIP has a fixed number of positions; other encoders are cut at the pipeline's ``max_sequence_length``, where it has one.
    limits = [
        asked if asked is not None and not type(tokenizer).__name__.startswith("CLIP") else tokenizer.model_max_length
        for tokenizer in tokenizers
    ]
    for prompt in prompts:
        lengths = [len(tokenizer(prompt, verbose=False).input_ids) for tokenizer in tokenizers]
        if tokenizers and all(length > limit for length, limit in zip(lengths, limits, strict=True)):
            longest = max(range(len(limits)), key=limits.__getitem__)
            raise PromptError(
                f"the prompt {prompt[:60] + '…' if len(prompt) > 60 else prompt!r} has {lengths[longest]} tokens, and the text encoders of "
                f"{type(pipe).__name__} read {limits[longest]}: shorten it; the generator would never see its end"
            )
