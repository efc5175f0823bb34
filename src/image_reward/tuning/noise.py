"""The best initial noise for one prompt, found by the gradient of a reward: no weight of the generator changes.

The method is ReNO (Eyring et al. 2024, arXiv 2406.04312), for generators of one step or a few.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from image_reward.errors import InputError, TrainingError
from image_reward.prompts import check_prompts
from image_reward.scorers.base import Scorer
from image_reward.scorers.judge import Judge
from image_reward.scorers.together import single_scorers
from image_reward.tuning.sampling import check_call_arguments, differentiable, replaced, sample
from image_reward.tuning.selection import Model, loaded

_MOMENTUM = 0.9  # of the released code (ExplainableML/ReNO)


@dataclass(frozen=True)
class OptimizedNoise:
    """The best image of an optimisation of its initial noise, and the way there."""

    prompt: str
    rewards: list[float]
    """Of the image of each iteration; the first is that of the noise which the optimisation starts from."""
    latents: Tensor = field(repr=False)
    """The noise of the best image, as the pipeline's argument ``latents``, without gradients."""
    image: Image.Image = field(repr=False)
    """The best image."""

    @property
    def iteration(self) -> int:
        """That of the best image, counted from 0; the first of several that are equally good."""
        return max(range(len(self.rewards)), key=self.rewards.__getitem__)

    @property
    def reward(self) -> float:
        """Of the best image, before its pixels were rounded to 8 bits."""
        return self.rewards[self.iteration]

    @property
    def starting_reward(self) -> float:
        """Of the image before the first step."""
        return self.rewards[0]


def optimize_noise(
    pipe: Any,
    prompt: str,
    model: Model = "ImageReward-v1.0",
    *,
    steps: int = 50,
    num_inference_steps: int = 1,
    grad_steps: int | Collection[int] | None = None,
    seed: int = 0,
    latents: Tensor | None = None,
    lr: float = 5.0,
    max_grad_norm: float = 0.1,
    regularization: float = 0.01,
    **call_arguments: Any,
) -> OptimizedNoise:
    """Optimise the initial noise of one image for a reward, and keep the best image (ReNO, Eyring et al. 2024, arXiv 2406.04312).

    Each iteration makes the image of the present noise z, and takes a step of SGD with Nesterov momentum 0.9 down the gradient of
    -reward + regularization * ``norm_penalty(z)``. The best image is that of the highest reward, whatever its penalty. Defaults are the
    paper's, for one-step generators and rewards of ImageReward's scale.

    Args:
        pipe: A text-to-image pipeline of diffusers. Its weights and the scorer's are untouched, and get no gradients.
        prompt: For generator and scorer.
        model: A loaded scorer that gives gradients to pixels, or what ``image_reward.load`` takes. An ensemble is exploited less.
        steps: Iterations, each of which makes one image; the first is that of the starting noise.
        num_inference_steps: Denoising steps of an image.
        grad_steps: The denoising steps that carry gradients, as for ``sample``; all of them by default.
        seed: Of the starting noise, which is the pipeline's own for ``generator=torch.Generator().manual_seed(seed)``: that of ``best_of``.
            A scheduler that draws further noise at every step draws it with the seed ``seed + 1``, in each iteration the same.
        latents: The noise to start from in place of the seed's, as the pipeline's argument ``latents`` for one image.
        lr: Learning rate.
        max_grad_norm: To which the Euclidean norm of the gradient is clipped.
        regularization: Weight of ``norm_penalty``; 0 for none.
        call_arguments: Further arguments of the pipeline: ``guidance_scale``, ``height`` and so on.

    Raises ``InputError`` for arguments that make no sense, a scorer without gradients, or a pipeline whose initial noise cannot be known;
    ``PromptError`` as ``sample`` does; and ``TrainingError`` where a reward or gradient is not finite.
    """
    check_prompts([prompt])
    if not prompt.strip():
        raise InputError("the prompt is empty; an image is optimised for the words of a prompt")
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number of at least 1, not {steps!r}")
    for name, value, lowest in (
        ("lr", lr, "above 0"),
        ("max_grad_norm", max_grad_norm, "above 0"),
        ("regularization", regularization, "0 or more"),
    ):
        if not (math.isfinite(value) and (value >= 0 if name == "regularization" else value > 0)):
            raise InputError(f"{name} must be {lowest} and finite, not {value}")
    check_call_arguments(pipe, "optimize_noise()", call_arguments)
    scorer = loaded(model)
    check_gives_gradients(scorer)
    grad_steps = num_inference_steps if grad_steps is None else grad_steps

    with torch.inference_mode(False), torch.enable_grad(), _frozen([*_networks(pipe), scorer]):
        start = initial_latents(pipe, prompt, num_inference_steps, seed, call_arguments) if latents is None else latents
        if not isinstance(start, Tensor) or not start.is_floating_point() or len(start) != 1:
            raise InputError("latents must be the noise of one image: a float tensor [1, ...], as the pipeline takes it")
        # Steps are smaller than the spacing of half-precision numbers; the pipeline gets its own dtype.
        noise = start.detach().to(torch.promote_types(start.dtype, torch.float32), copy=True).requires_grad_()
        optimizer = torch.optim.SGD([noise], lr=lr, momentum=_MOMENTUM, nesterov=True)
        rewards: list[float] = []
        for iteration in range(steps):
            used = noise.to(start.dtype)
            pixels = sample(pipe, prompt, steps=num_inference_steps, grad_steps=grad_steps, seed=seed + 1, latents=used, **call_arguments)
            reward = scorer.rewards([prompt], pixels)
            if not reward.requires_grad:
                raise no_gradients(scorer.name, "best-of")
            rewards.append(reward.item())
            if not math.isfinite(rewards[-1]):
                raise _not_finite("reward", iteration, rewards[-1])
            if rewards[-1] > max(rewards[:-1], default=-math.inf):
                best_pixels, best_latents = pixels.detach(), used.detach().clone()
            if iteration == steps - 1:
                break
            optimizer.zero_grad()
            loss = -reward.sum().to(noise) + regularization * norm_penalty(noise).sum()
            loss.backward(inputs=[noise])
            norm = nn.utils.clip_grad_norm_(noise, max_grad_norm).item()
            if not math.isfinite(norm):
                raise _not_finite("gradient's norm", iteration, norm)
            optimizer.step()
    array = best_pixels[0].permute(1, 2, 0).float().mul(255).round().to(torch.uint8).cpu().numpy()
    return OptimizedNoise(prompt, rewards, best_latents, Image.fromarray(array))


def norm_penalty(noise: Tensor) -> Tensor:
    """\\|z\\|^2 / 2 - (d - 1) log \\|z\\| [B], of noise z [B, ...] of d numbers for each image: lowest at the norm sqrt(d - 1).

    The norm r of d standard normal numbers has the chi distribution of d degrees of freedom, whose density is
    r^(d - 1) exp(-r^2 / 2) / (2^(d / 2 - 1) Gamma(d / 2)). This is its negative logarithm less (d / 2 - 1) log 2 + log Gamma(d / 2), a
    constant. It keeps the noise as long as the noise that a generator was trained on, in any direction (ReNO, arXiv 2406.04312; after
    Samuel et al. 2023, arXiv 2306.08687).

    >>> norm_penalty(torch.tensor([[3.0, 4.0]]))  # 12.5 - log 5
    tensor([10.8906])
    """
    norms = noise.flatten(1).norm(dim=1)
    return 0.5 * norms**2 - (noise[0].numel() - 1) * norms.log()


def initial_latents(pipe: Any, prompt: str, num_inference_steps: int, seed: int, call_arguments: Mapping[str, Any]) -> Tensor:
    """The argument ``latents`` [1, ...] that is the same to a pipeline as ``generator=torch.Generator().manual_seed(seed)``.

    Pipelines differ in what they do with the argument: some multiply it by the scheduler's first noise level, some take it packed into
    patches. So two candidates are tried, the numbers that ``prepare_latents`` draws and what it makes of them, and the one that it turns
    into the same noisy sample is the argument. The pipeline is stopped before its first denoising step.

    Raises ``InputError`` where neither is.
    """
    unknown = InputError(
        f"the shape of the initial noise of {type(pipe).__name__} is not known: it has no prepare_latents() that takes latents as its call "
        "does; pass the noise to start from as latents="
    )
    prepare = getattr(pipe, "prepare_latents", None)
    if not callable(prepare):
        raise unknown

    @functools.wraps(prepare)
    def stops(*args: Any, **kwargs: Any) -> None:
        raise _FirstLatentsError(args, kwargs)

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), differentiable(pipe, steps=num_inference_steps, active=()) as call, replaced(pipe, "prepare_latents", stops):
        try:
            call(prompt=[prompt], num_inference_steps=num_inference_steps, generator=[generator], **call_arguments)
        except _FirstLatentsError as stopped:
            # Within the block, where the scheduler has the noise levels of this call.
            if (latents := _as_argument(prepare, *stopped.args)) is not None:
                return latents
    raise unknown


class _FirstLatentsError(Exception):
    """Ends a pipeline's call at ``prepare_latents``; its args are those of the method."""


class _NormalDraws(TorchFunctionMode):
    """Keeps what ``torch.randn`` returns within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        if func is torch.randn:
            self.draws.append(output)
        return output


def _as_argument(prepare: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The ``latents`` that give what ``prepare_latents`` gives without them."""
    with _NormalDraws() as recorded:
        noisy = _first(prepare(*args, **kwargs))
    arguments = inspect.signature(prepare).bind(*args, **kwargs)
    if "latents" not in inspect.signature(prepare).parameters:
        return None
    for candidate in (*recorded.draws, noisy):
        latents = candidate.to(noisy.device)
        arguments.arguments["latents"] = latents
        try:
            again = _first(prepare(*arguments.args, **arguments.kwargs))
        except (RuntimeError, ValueError):  # of a shape that it does not take
            continue
        if again.shape == noisy.shape and torch.equal(again, noisy):
            return latents
    return None


def _first(output: Any) -> Tensor:
    """The latents, which some pipelines return with the positions of their patches."""
    return output[0] if isinstance(output, tuple | list) else output


def check_gives_gradients(scorer: Scorer[Any], otherwise: str = "best-of") -> None:
    """Raise ``InputError`` for a scorer without gradients, which says what does without them too."""
    for single in single_scorers([scorer]):
        if type(single).rewards is Scorer.rewards or isinstance(single, Judge):
            raise no_gradients(single.name, otherwise)
    scorer.check_evaluating()


def no_gradients(name: str, otherwise: str) -> InputError:
    return InputError(f"{name} gives no gradients to pixels; choose a scorer that does, or {otherwise}")


def _networks(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


@contextmanager
def _frozen(networks: Iterable[nn.Module]) -> Iterator[None]:
    """No weight requires a gradient in the block."""
    weights = [weight for network in networks for weight in network.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _not_finite(what: str, iteration: int, value: float) -> TrainingError:
    return TrainingError(
        f"the {what} of iteration {iteration} is {value}; try a lower lr, or bfloat16 or float32 where pipeline or scorer is in float16"
    )
