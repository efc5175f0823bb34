"""The ordinary denoising loss, and single denoising steps, for any pipeline of diffusers.

A generator is pretrained by adding noise to clean samples and asking the denoiser to undo it. What the denoiser is given besides (text,
sizes, positions of patches, guidance) differs between pipelines, and each one's ``__call__`` knows it. So its own call is run for one
step, from a noisy sample that takes the place of its initial noise, and is ended where it hands the prediction to the scheduler.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from image_reward.errors import InputError
from image_reward.tuning.objectives import Prediction, add_noise, denoising_loss
from image_reward.tuning.sampling import called, check_call_arguments, differentiable, refusals, replaced


@dataclass(frozen=True)
class NoiseLevels:
    """The noise of each denoising step of a schedule: the noisy sample of step i is alphas[i] x0 + sigmas[i] e."""

    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    prediction: Prediction
    """What the denoiser predicts."""
    exploding: bool
    """Whether the scheduler holds noisy samples divided by alpha, as Euler's for noise prediction does ("variance exploding")."""

    @classmethod
    def of(cls, scheduler: Any, steps: int) -> NoiseLevels:
        """Of a scheduler whose timesteps are set. Raises ``InputError`` for one that does not say its noise levels."""
        timesteps = scheduler.timesteps
        calls = torch.tensor([-(-step * len(timesteps) // steps) for step in range(steps)])  # the first of each step
        flow = not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas", False)
        prediction = scheduler.config.get("prediction_type", "flow_prediction" if flow else "epsilon")
        if (flow and prediction != "flow_prediction") or prediction not in ("epsilon", "v_prediction", "flow_prediction", "sample"):
            raise InputError(
                f"the noise levels of {type(scheduler).__name__} with prediction_type {prediction!r} are not known; use another scheduler"
            )
        if len(getattr(scheduler, "sigmas", ())) >= len(timesteps) and hasattr(scheduler, "step_index"):
            sigmas = torch.as_tensor(scheduler.sigmas)[calls].double().cpu()
            alphas = 1 - sigmas if flow else (sigmas**2 + 1) ** -0.5
            sigmas = sigmas if flow else sigmas * alphas
        elif flow:
            raise InputError(f"the noise levels of {type(scheduler).__name__} are not known; use another scheduler")
        else:
            squared = scheduler.alphas_cumprod.cpu()[timesteps.cpu().long()[calls]].double()
            alphas, sigmas = squared**0.5, (1 - squared) ** 0.5
        initial = float(getattr(scheduler, "init_noise_sigma", 1.0))
        return cls(tuple(alphas.tolist()), tuple(sigmas.tolist()), prediction, exploding=not flow and initial != 1.0)


@dataclass(frozen=True)
class Generated:
    """Images without gradients, and the clean samples that they were decoded from."""

    pixels: Tensor = field(repr=False)
    """[B, 3, H, W] in [0, 1]"""
    latents: Tensor = field(repr=False)
    """[B, ...], as the scheduler holds them."""
    levels: NoiseLevels = field(repr=False)


def generate(pipe: Any, prompts: Sequence[str], *, steps: int, seeds: Sequence[int], **call_arguments: Any) -> Generated:
    """The images of ``sample`` for the same prompts and seeds, without gradients, and their clean samples.

    Raises what ``sample`` raises for arguments that make no sense, and ``InputError`` for a scheduler whose noise levels are not known.
    """
    check_call_arguments(pipe, "generate()", call_arguments, "num_inference_steps", "latents")
    with torch.no_grad(), differentiable(pipe, steps=steps, active=()) as call:
        step = pipe.scheduler.step
        last: list[Tensor] = []

        @functools.wraps(step)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            last[:] = [output[0] if isinstance(output, tuple) else output.prev_sample]
            return output

        with replaced(pipe.scheduler, "step", recorded):
            images = called(pipe, call, prompts, steps, seeds, call_arguments)
        levels = NoiseLevels.of(pipe.scheduler, steps)
    return Generated(images, last[0], levels)


def clean_from(
    pipe: Any,
    prompts: Sequence[str],
    latents: Tensor,
    noise: Tensor,
    levels: NoiseLevels,
    step: int,
    seeds: Sequence[int],
    **arguments: Any,
) -> Tensor:
    """Pixels [B, 3, H, W] with gradients of ``step`` alone: clean samples, noised again to that step, and denoised from there.

    For ``step`` the last, it is one sample of DRaFT-LV (Clark et al. 2024, arXiv 2309.17400).
    """
    steps = len(levels.alphas)
    with differentiable(pipe, steps=steps, active={step}, start_at=step) as call, starting_from(pipe, _noisy(latents, noise, levels, step)):
        return called(pipe, call, prompts, steps, seeds, arguments)


def pretraining_loss(
    pipe: Any, prompts: Sequence[str], latents: Tensor, noise: Tensor, levels: NoiseLevels, step: int, **arguments: Any
) -> Tensor:
    """The denoising loss [B] of clean samples [B, ...] with noise of one denoising step of the schedule, with gradients.

    ``arguments`` are the pipeline's, without guidance: see ``unguided``.
    """
    steps, captured = len(levels.alphas), []
    with (
        differentiable(pipe, steps=steps, active={step}, start_at=step) as call,
        starting_from(pipe, _noisy(latents, noise, levels, step)),
    ):

        @functools.wraps(pipe.scheduler.step)
        def capture(model_output: Tensor, *_: Any, **__: Any) -> None:
            captured.append(model_output)
            raise _CapturedError

        with replaced(pipe.scheduler, "step", capture), suppress(_CapturedError), refusals(pipe):
            call(prompt=list(prompts), num_inference_steps=steps, output_type="latent", return_dict=False, **arguments)
    prediction = captured[0]
    alpha, sigma = (torch.full((len(latents),), values[step], device=latents.device) for values in (levels.alphas, levels.sigmas))
    return denoising_loss(prediction.float(), latents.float(), noise.float(), alpha, sigma, levels.prediction)


class _CapturedError(Exception):
    """Ends a pipeline's call once its prediction is known."""


@contextmanager
def starting_from(pipe: Any, noisy: Tensor) -> Iterator[None]:
    """In the block, the pipeline begins with this noisy sample [B, ...] in place of random noise.

    Raises ``InputError`` for a pipeline whose initial noise does not come from ``prepare_latents``.
    """
    prepare = getattr(pipe, "prepare_latents", None)
    if not callable(prepare):
        raise InputError(f"{type(pipe).__name__} has no prepare_latents(), through which a denoising step is reached")

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        output = prepare(*args, **kwargs)
        own = output[0] if isinstance(output, tuple | list) else output
        if own.shape != noisy.shape:
            raise InputError(
                f"the samples of {type(pipe).__name__} are {list(own.shape)} here, and those to be denoised {list(noisy.shape)}"
            )
        mine = noisy.to(own)
        return type(output)((mine, *output[1:])) if isinstance(output, tuple | list) else mine

    with replaced(pipe, "prepare_latents", prepared):
        yield


def unguided(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments without classifier-free guidance, as generators are pretrained. Distilled guidance (FLUX) stays."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    kept = {name: value for name, value in arguments.items() if name not in ("true_cfg_scale", "negative_prompt")}
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if "guidance_scale" in parameters and not getattr(getattr(denoiser, "config", None), "guidance_embeds", False):
        with replaced(pipe, "_guidance_scale", 1.0):  # Z-Image guides above 0, others above 1
            kept["guidance_scale"] = 0.0 if getattr(pipe, "do_classifier_free_guidance", False) else 1.0
    return kept


def encode_images(pipe: Any, pixels: Tensor, like: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] as clean samples, of the form that ``generate`` has for images of that size; no gradients.

    ``like``: such a sample [1, ...]. The mode of the encoder's distribution is taken. Raises ``InputError`` where the form is another.
    """
    vae = pipe.vae
    weight = next(vae.parameters())
    with torch.no_grad():
        images = (2 * pixels - 1).to(weight)
        video = any(isinstance(module, torch.nn.Conv3d) for module in vae.modules()) or type(vae).__name__.endswith(("Wan", "QwenImage"))
        encoded = vae.encode(images.unsqueeze(2) if video else images)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    config = vae.config
    if (mean := getattr(config, "latents_mean", None)) is not None and (std := getattr(config, "latents_std", None)) is not None:
        shape = (1, -1, *[1] * (latents.ndim - 2))
        latents = (latents - torch.tensor(mean).view(shape).to(latents)) / torch.tensor(std).view(shape).to(latents)
        if not video:
            latents = latents * config.scaling_factor
    else:
        latents = (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
    if latents.shape[1:] != like.shape[1:] and hasattr(pipe, "_pack_latents"):
        flat = latents[:, :, 0] if latents.ndim == 5 else latents
        latents = pipe._pack_latents(flat, *flat.shape)
    if latents.shape[1:] != like.shape[1:]:
        raise InputError(
            f"images cannot be encoded for {type(pipe).__name__}: its samples are {list(like.shape[1:])}, and the encoder gives "
            f"{list(latents.shape[1:])}; use the generator's own images for the pretraining loss (leave out pretraining_images)"
        )
    return latents.float()


def _noisy(latents: Tensor, noise: Tensor, levels: NoiseLevels, step: int) -> Tensor:
    alpha, sigma = levels.alphas[step], levels.sigmas[step]
    if levels.exploding:
        alpha, sigma = 1.0, sigma / alpha
    one = torch.ones(len(latents), device=latents.device)
    return add_noise(latents.float(), noise.float(), alpha * one, sigma * one)
