"""Each loss against probabilities worked out another way: by enumeration, or from the papers' formulas in plain floats."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor

from image_reward.metrics import win_probability
from image_reward.training.losses import davidson, log_tie_parameter, pairwise_logistic, plackett_luce, rao_kupper

REWARDS = [0.3, -1.2, 2.5, 0.9]


def pairs(values: list[float]) -> tuple[Tensor, Tensor]:
    both = torch.tensor(list(itertools.permutations(values, 2)), dtype=torch.float64)
    return both[:, 0], both[:, 1]


def test_the_pairwise_loss_is_minus_log_of_scipys_logistic_function() -> None:
    first, second = pairs(REWARDS)
    expected = -np.log(expit((first - second).numpy()))
    assert pairwise_logistic(first, second, torch.ones(len(first))).numpy() == pytest.approx(expected, rel=1e-6)


def test_a_soft_label_is_the_minimum_at_its_own_log_odds() -> None:
    def loss(d: float) -> float:
        return float(pairwise_logistic(torch.tensor(d), torch.tensor(0.0), torch.tensor(0.8)))

    assert minimize_scalar(loss, bounds=(-5, 5), method="bounded").x == pytest.approx(math.log(0.8 / 0.2), abs=1e-3)
    assert loss(1.0) == pytest.approx(-0.8 * math.log(expit(1.0)) - 0.2 * math.log(expit(-1.0)), rel=1e-6)


@pytest.mark.parametrize(("name", "model", "parameter"), [("davidson", davidson, 0.7), ("rao-kupper", rao_kupper, 1.9)])
def test_a_tie_models_three_probabilities_sum_to_one_and_are_those_of_compare(name: str, model: object, parameter: float) -> None:
    first, second = pairs(REWARDS)
    log_parameter = torch.tensor([math.log(parameter)], dtype=torch.float64)
    win = model(first, second, torch.ones_like(first), log_parameter).neg().exp()  # type: ignore[operator]
    lose = model(second, first, torch.ones_like(first), log_parameter).neg().exp()  # type: ignore[operator]
    tie = model(first, second, torch.full_like(first, 0.5), log_parameter).neg().exp()  # type: ignore[operator]
    assert (win + tie + lose).numpy() == pytest.approx(np.ones(len(first)), rel=1e-9)
    expected = [win_probability(float(a - b), name, parameter) for a, b in zip(first, second, strict=True)]
    assert win.numpy() == pytest.approx(expected, rel=1e-9)


def test_davidson_and_rao_kupper_are_the_papers_formulas() -> None:
    a, b = torch.tensor([1.1], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    half, p, q, nu, theta = torch.tensor([0.5]), math.exp(1.1), math.exp(-0.4), 0.6, 1.7
    tie = nu * math.sqrt(p * q) / (p + q + nu * math.sqrt(p * q))
    assert float(davidson(a, b, half, torch.tensor([math.log(nu)], dtype=torch.float64))) == pytest.approx(-math.log(tie), rel=1e-7)
    tie = (theta**2 - 1) * p * q / ((p + theta * q) * (theta * p + q))
    assert float(rao_kupper(a, b, half, torch.tensor([math.log(theta)], dtype=torch.float64))) == pytest.approx(-math.log(tie), rel=1e-7)


def test_the_tie_parameters_stay_where_they_are_defined() -> None:
    free = torch.linspace(-20, 20, 9)
    assert (log_tie_parameter("rao-kupper", free).exp() >= 1).all()
    assert (log_tie_parameter("davidson", free).exp() > 0).all()


def test_plackett_luce_probabilities_of_all_orders_sum_to_one_and_the_best_first_is_softmax() -> None:
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    total, first_is_best = 0.0, np.zeros(4)
    for order in itertools.permutations(range(4)):  # order[i] is the rank of image i
        ranks = torch.tensor(order)
        probability = float(plackett_luce(rewards, ranks[:, None] < ranks).sum().neg().exp())
        total += probability
        first_is_best[order.index(0)] += probability
    assert total == pytest.approx(1.0, rel=1e-9)
    assert first_is_best == pytest.approx(torch.softmax(rewards, 0).numpy(), rel=1e-9)


def test_plackett_luce_of_two_images_is_the_pairwise_loss_and_prompts_do_not_mix() -> None:
    rewards = torch.tensor([0.2, 1.0, -3.0, 0.5])
    beats = torch.zeros(4, 4, dtype=torch.bool)
    beats[1, 0] = beats[2, 3] = True
    expected = pairwise_logistic(rewards[[1, 2]], rewards[[0, 3]], torch.ones(2))
    assert torch.allclose(plackett_luce(rewards, beats), expected)


def test_plackett_luce_leaves_a_tied_image_out_of_the_others_choice() -> None:
    rewards, ranks = torch.tensor([0.1, 0.9, -0.5]), torch.tensor([1, 1, 2])
    terms = plackett_luce(rewards, ranks[:, None] < ranks)
    assert terms.tolist() == pytest.approx([math.log(1 + math.exp(-0.6)), math.log(1 + math.exp(-1.4))], rel=1e-5)


def test_extreme_rewards_give_finite_losses_and_gradients() -> None:
    first = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    one, log_parameter = torch.ones(3), torch.tensor([0.5], requires_grad=True)
    for target in (one, one / 2):
        loss = pairwise_logistic(first, -first, target).sum() + davidson(first, -first, target, log_parameter).sum()
        loss = loss + rao_kupper(first, -first, target, log_parameter).sum()
        loss.backward()
        assert torch.isfinite(loss)
    assert torch.isfinite(first.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(log_parameter.grad).all()  # type: ignore[arg-type]
