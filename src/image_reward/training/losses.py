"""Losses on the raw rewards of ranked images, one number per term; the caller sums them and divides by the number of terms.

All act on the head's raw output. d is the difference of two raw rewards, p = exp(reward) an image's strength, sigmoid is logistic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_logistic(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
    """-target log sigmoid(d) - (1 - target) log sigmoid(-d), d = first - second; all [P].

    With target 1 it is ImageReward's loss over the untied pairs of a prompt (Xu et al. 2023, arXiv 2304.05977, eq. 1), which is Bradley &
    Terry (1952). A target between 0 and 1 is the share of annotators who preferred the first image (soft labels); for two images that is
    a cross-entropy with the same minimum as Pick-a-Pic's KL divergence (Kirstain et al. 2023, arXiv 2305.01569, sec. 4).

    >>> pairwise_logistic(torch.tensor([2.0]), torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([0.6931])
    """
    difference = first - second
    return target * F.softplus(-difference) + (1 - target) * F.softplus(difference)


def davidson(first: Tensor, second: Tensor, target: Tensor, log_nu: Tensor) -> Tensor:
    """Davidson (1970), doi 10.1080/01621459.1970.10481082. ``target`` [P] is 1 where the first image won and 1/2 for a tie.

    P(first) = p1 / (p1 + p2 + nu sqrt(p1 p2)), P(tie) = nu sqrt(p1 p2) / (the same), nu >= 0: two equal images tie with probability
    nu / (2 + nu).
    """
    half = (first - second) / 2
    logits = torch.stack([half, -half, log_nu.expand_as(half)])  # all divided by sqrt(p1 p2)
    return logits.logsumexp(dim=0) - torch.where(target == 0.5, logits[2], logits[0])


def rao_kupper(first: Tensor, second: Tensor, target: Tensor, log_theta: Tensor) -> Tensor:
    """Rao & Kupper (1967), doi 10.1080/01621459.1967.10482901. ``target`` [P] is 1 where the first image won and 1/2 for a tie.

    P(first) = p1 / (p1 + theta p2) = sigmoid(d - log theta), P(tie) = (theta^2 - 1) p1 p2 / ((p1 + theta p2) (theta p1 + p2)), theta >= 1.
    """
    difference = first - second
    first_loses = F.softplus(log_theta - difference)
    tie = first_loses + F.softplus(log_theta + difference) - torch.log(torch.expm1(2 * log_theta))
    return torch.where(target == 0.5, tie, first_loses)


def plackett_luce(rewards: Tensor, beats: Tensor) -> Tensor:
    """-log of the probability that each image is chosen from itself and those ranked below it: one term per image that beats another.

    Luce (1959) and Plackett (1975): a ranking is a series of choices of the best of what is left. ``rewards`` [N]; ``beats`` [N, N], bool:
    row i is True at the images ranked below i. An image tied with i takes no part in i's choice, as a tie takes no part in the
    pairwise loss; for two images this is the pairwise loss.
    """
    choices = beats.any(dim=1)
    itself = torch.eye(len(beats), dtype=torch.bool, device=beats.device)
    below = torch.where(beats | itself, rewards, -torch.inf)[choices]  # [C, N]
    return below.logsumexp(dim=1) - rewards[choices]


def log_tie_parameter(loss: str, free: Tensor) -> Tensor:
    """The unconstrained parameter that is learnt -> Davidson's log nu, or Rao & Kupper's log theta > 0."""
    return free if loss == "davidson" else F.softplus(free)
