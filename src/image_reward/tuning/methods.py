"""How each method makes the images that its loss is computed on. The methods differ in little else.

A method's choice is drawn once for each step of the optimizer, so that all images and processes of a step share it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import clean_from, generate
from image_reward.tuning.sampling import sample


@dataclass(frozen=True)
class Rollout:
    """Which denoising steps of an image carry gradients, and how."""

    steps: int
    grad_steps: frozenset[int]
    """Counted from 0 for the noisiest."""
    detach_input: bool = False
    stop_at: int | None = None
    repeats: int = 1
    """With more than 1, the last step is repeated so often, each time with new noise."""


def refl(steps: int, draws: random.Random) -> Rollout:
    """ReFL (Xu et al. 2023, arXiv 2304.05977): of 40 steps, one from the last ten at random; the clean image that it predicts is scored.

    >>> refl(40, random.Random(0)).stop_at in range(30, 40)
    True
    """
    step = draws.randint(steps - max(1, round(steps / 4)), steps - 1)
    return Rollout(steps, frozenset({step}), stop_at=step)


def draft(steps: int, grad_steps: int, repeats: int = 1) -> Rollout:
    """DRaFT-K (Clark et al. 2024, arXiv 2309.17400): the last K steps. With K = 1 and ``repeats``, DRaFT-LV.

    >>> sorted(draft(25, 3).grad_steps)
    [22, 23, 24]
    """
    return Rollout(steps, frozenset(range(steps - grad_steps, steps)), repeats=repeats if grad_steps == 1 else 1)


def sparse(steps: int, grad_steps: int, draws: random.Random) -> Rollout:
    """A few random steps, step i with weight (i + 1)^2, with the denoiser's input cut from the graph (FlowBP-Sparse, arXiv 2606.11075).

    Gradients reach the early steps, which set the layout, without passing through the steps after them.

    >>> len(sparse(25, 2, random.Random(0)).grad_steps)
    2
    """
    left, chosen = list(range(steps)), []
    for _ in range(grad_steps):
        (step,) = draws.choices(left, weights=[(each + 1) ** 2 for each in left])
        left.remove(step)
        chosen.append(step)
    return Rollout(steps, frozenset(chosen), detach_input=True)


def noise_levels(steps: int, repeats: int, draws: random.Random) -> list[int]:
    """Denoising steps at random, none again before all have been drawn.

    >>> sorted(noise_levels(3, 6, random.Random(0)))
    [0, 0, 1, 1, 2, 2]
    """
    return [step for _ in range(-(-repeats // steps)) for step in draws.sample(range(steps), steps)][:repeats]


def rollout(config: Tuning, draws: random.Random) -> Rollout:
    """That of a step of a resolved ``config``, for a method with gradients of the reward."""
    assert config.denoising_steps is not None
    assert config.grad_steps is not None
    if config.method == "refl":
        return refl(config.denoising_steps, draws)
    if config.method == "draft":
        return draft(config.denoising_steps, config.grad_steps, config.repeats)
    return sparse(config.denoising_steps, config.grad_steps, draws)


def images(pipe: Any, chosen: Rollout, prompts: Sequence[str], seeds: Sequence[int], **call_arguments: Any) -> Iterator[Tensor]:
    """Pixels [B, 3, H, W] in [0, 1] with gradients, once or ``repeats`` times; the loss is the mean over these.

    One is made after the last was used, so that a backward pass between them frees its graph.
    """
    if chosen.repeats == 1:
        yield sample(
            pipe,
            prompts,
            steps=chosen.steps,
            grad_steps=chosen.grad_steps,
            seed=seeds,
            detach_input=chosen.detach_input,
            stop_at=chosen.stop_at,
            **call_arguments,
        )
        return
    made = generate(pipe, prompts, steps=chosen.steps, seeds=seeds, **call_arguments)
    for repeat in range(chosen.repeats):
        noise = noise_like(made.latents, [seed_of(seed, "again", repeat) for seed in seeds])
        yield clean_from(pipe, prompts, made.latents, noise, made.levels, chosen.steps - 1, seeds, **call_arguments)


def seed_of(*key: object) -> int:
    """A seed that follows from ``key``, and is unrelated to those of other keys."""
    # PyTorch's generator on a CPU reads the low 32 bits of a seed alone.
    return random.Random(" ".join(map(str, key))).getrandbits(32)


def noise_like(latents: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal numbers of the shape [B, ...], each row from a seed of its own: the same in whatever batch and on whatever device."""
    rows = [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(latents.device)


def best_candidates(rewards: Tensor) -> Tensor:
    """The place [B] of the best of K candidates for each prompt, of rewards [B, K]; the first of several that are equally good.

    >>> best_candidates(torch.tensor([[0.5, 1.5, 1.5], [2.0, 0.0, 1.0]]))
    tensor([1, 0])
    """
    return rewards.argmax(dim=1)


def published_scheduler(pipe: Any) -> Any:
    """The scheduler with which ReFL rolls out: DDPM's of the pipeline's noise schedule; the pipeline's own where it predicts a velocity."""
    scheduler = pipe.scheduler
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas", False):
        return scheduler
    from diffusers import DDPMScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "timestep_spacing")
    config = {name: scheduler.config[name] for name in (*names, "steps_offset", "rescale_betas_zero_snr") if name in scheduler.config}
    return DDPMScheduler(**config, clip_sample=False)
