"""What tuning minimises, or watches: pure functions of rewards and of a denoiser's predictions, one number for each image.

B is the number of images. A noisy sample is x = a x0 + s e, with the clean sample x0 and noise e; a flow model has a = 1 - s and predicts
the velocity e - x0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from image_reward.errors import InputError

Prediction = Literal["epsilon", "v_prediction", "flow_prediction", "sample"]
"""What a denoiser predicts, in the names of diffusers' schedulers."""


def target_reward(untuned_rewards: Tensor, quantile: float = 0.9) -> float:
    """The target of ``hinge``: a quantile in [0, 1] of the rewards [N] of images that the generator made before it was tuned.

    A target means something for one scorer and one generator only: 2 is ImageReward's (ReFL, Xu et al. 2023, arXiv 2304.05977), FlowBP
    has 0.55 for HPSv2.1 (arXiv 2606.11075) and SRPO 0.7 (arXiv 2509.06942). A quantile needs no such constant.

    Raises ``InputError`` for no rewards, rewards that are not finite, or a quantile outside [0, 1].

    >>> target_reward(torch.tensor([0.0, 1.0, 2.0]), 0.75)
    1.5
    """
    if not untuned_rewards.numel() or not bool(untuned_rewards.isfinite().all()):
        raise InputError("the target needs the rewards of at least one image, all of them finite")
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile must be from 0 to 1, not {quantile}")
    return float(torch.quantile(untuned_rewards.detach().double(), quantile))


def hinge(rewards: Tensor, target: float) -> Tensor:
    """relu(target - r) [B], of rewards [B]: ReFL's loss (Xu et al. 2023, arXiv 2304.05977, algorithm 1, with target 2).

    It has no gradient for an image that has reached the target, which bounds over-optimisation.

    >>> hinge(torch.tensor([-1.0, 1.5, 3.0]), 2.0)
    tensor([3.0000, 0.5000, 0.0000])
    """
    return F.relu(target - rewards)


def negative(rewards: Tensor) -> Tensor:
    """-r [B], of rewards [B]: the loss of DRaFT (Clark et al. 2024, arXiv 2309.17400). It never saturates.

    >>> negative(torch.tensor([2.0]))
    tensor([-2.])
    """
    return -rewards


def prompt_margin(rewards: Tensor, other_rewards: Tensor) -> Tensor:
    """How much higher an image's reward [B] for its own prompt is than the mean of those for K other prompts [B, K]: [B].

    An image that a scorer likes for any prompt exploits the scorer: the margin of good images is large, and that of a generator that has
    learnt one texture for all prompts is near 0, however high its rewards are. SRPO's relative reward of two prompts is its kin
    (arXiv 2509.06942). Minimise ``hinge`` or ``negative`` of it, or watch it.

    >>> prompt_margin(torch.tensor([2.0, 2.5]), torch.tensor([[-1.0, -1.5], [2.25, 2.75]]))
    tensor([3.2500, 0.0000])
    """
    if other_rewards.ndim != 2 or len(other_rewards) != len(rewards) or not other_rewards.shape[1]:
        raise InputError(f"other_rewards must be [{len(rewards)}, K] with K of at least 1, not {list(other_rewards.shape)}")
    return rewards - other_rewards.mean(dim=1)


def divergence_from_untuned(prediction: Tensor, untuned_prediction: Tensor) -> Tensor:
    """The mean squared difference [B] of the predictions [B, ...] of tuned and untuned denoiser, for the same noisy samples.

    Where the samples are those of the tuned model's rollout, it is the KL divergence of one denoising step from that of the untuned model,
    up to a factor that depends on the step alone: both are normal distributions with one variance (DPOK, Fan et al. 2023, arXiv
    2305.16381; Flow-GRPO, Liu et al. 2025, arXiv 2505.05470). With LoRA, the untuned prediction is that without the adapter. It passes no
    gradient to the untuned prediction.

    >>> divergence_from_untuned(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    return _mean_squared(prediction - untuned_prediction.detach())


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noisy samples a x0 + s e [B, ...], of clean samples and noise [B, ...], a and s [B].

    >>> add_noise(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([0.8]), torch.tensor([0.6]))
    tensor([[2.2000]])
    """
    return _as(alpha, clean) * clean + _as(sigma, clean) * noise


def denoising_loss(prediction: Tensor, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, kind: Prediction) -> Tensor:
    """The mean squared error [B] with which generators are pretrained.

    ``prediction`` [B, ...] is the denoiser's for ``add_noise(clean, noise, alpha, sigma)``. ``kind`` says what is predicted: "epsilon", the
    noise e (DDPM, Ho et al. 2020, arXiv 2006.11239, eq. 14); "v_prediction", a e - s x0 (Salimans & Ho 2022, arXiv 2202.00512);
    "flow_prediction", e - x0 (rectified flow, Liu et al. 2022, arXiv 2209.03003, with the sign of SD3 and FLUX); "sample", x0. ReFL adds
    it, on images of pretraining, to keep the generator from exploiting the reward (arXiv 2304.05977).

    >>> one = torch.ones(1, 1)
    >>> denoising_loss(one, 2 * one, 0.5 * one, torch.tensor([0.8]), torch.tensor([0.6]), "v_prediction")  # 0.8 * 0.5 - 0.6 * 2 = -0.8
    tensor([3.2400])
    """
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = _as(alpha, clean) * noise - _as(sigma, clean) * clean
    elif kind == "flow_prediction":
        target = noise - clean
    elif kind == "sample":
        target = clean
    else:
        raise InputError(f"a denoiser predicts one of {', '.join(get_args(Prediction))}, not {kind!r}")
    return _mean_squared(prediction - target)


def smoothed_reward(reward: Callable[[Tensor], Tensor], pixels: Tensor, radius: float = 1e-2) -> Tensor:
    """The lowest reward [B] nearby, to first order: r(x + d) with d = -radius * g / \\|g\\|, g = dr/dx and Euclidean norms for each image.

    Reward hacking goes with steep rewards: an image that is good for a reason keeps its reward when it is disturbed (RSA-FT, CVPR 2026,
    with radius 1e-2). ``reward`` maps pixels [B, 3, H, W] to rewards [B], each of its own image alone; it is called twice. The gradient
    to ``pixels`` is that of r at x + d, where d counts as constant. x + d is clamped to [0, 1], as pixels are.

    >>> smoothed_reward(lambda x: 3 * x.sum(dim=(1, 2, 3)), torch.ones(1, 1, 1, 1), radius=0.5)
    tensor([1.5000])
    """
    return reward(worst_nearby(reward, pixels, radius))


def worst_nearby(reward: Callable[[Tensor], Tensor], pixels: Tensor, radius: float) -> Tensor:
    """The pixels x + d of ``smoothed_reward``, with the gradient of x."""
    with torch.enable_grad():
        at = pixels.detach().requires_grad_()
        (slope,) = torch.autograd.grad(reward(at).sum(), at)
    lengths = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
    return (pixels - radius * slope / _as(lengths, slope)).clamp(0, 1)


def _as(values: Tensor, samples: Tensor) -> Tensor:
    """One value [B] for each sample [B, ...]."""
    return values.reshape(-1, *[1] * (samples.ndim - 1))


def _mean_squared(difference: Tensor) -> Tensor:
    return difference.float().square().flatten(1).mean(dim=1)
