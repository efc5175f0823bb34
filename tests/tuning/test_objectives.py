from __future__ import annotations

from typing import Any

import pytest
import torch

from image_reward.errors import InputError
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import objectives


def test_the_target_is_a_quantile_of_untuned_rewards() -> None:
    rewards = torch.tensor([-1.0, 3.0, 0.0, 1.0, 2.0])
    assert objectives.target_reward(rewards, 0.5) == 1.0
    assert objectives.target_reward(rewards) == pytest.approx(2.6)  # 0.9 of the way along 4 gaps: 3.6
    assert objectives.target_reward(rewards, 1.0) == 3.0


@pytest.mark.parametrize(
    ("rewards", "quantile", "message"),
    [
        ([], 0.5, "at least one image"),
        ([1.0, float("nan")], 0.5, "all of them finite"),
        ([1.0], 1.5, "quantile must be from 0 to 1, not 1.5"),
    ],
)
def test_targets_that_make_no_sense(rewards: list[float], quantile: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        objectives.target_reward(torch.tensor(rewards), quantile)


def test_the_hinge_closes_at_its_target() -> None:
    rewards = torch.tensor([-0.5, 1.75, 2.5], requires_grad=True)
    loss = objectives.hinge(rewards, 2.0)
    assert loss.tolist() == [2.5, 0.25, 0.0]
    loss.sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [-1.0, -1.0, 0.0]


def test_the_negative_reward_never_closes() -> None:
    rewards = torch.tensor([-0.5, 9.0], requires_grad=True)
    loss = objectives.negative(rewards)
    assert loss.tolist() == [0.5, -9.0]
    loss.sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [-1.0, -1.0]


def test_the_prompt_margin() -> None:
    margin = objectives.prompt_margin(torch.tensor([2.0, 0.5]), torch.tensor([[1.0, -2.0, 4.0], [0.5, 0.5, 0.5]]))
    assert margin.tolist() == [1.0, 0.0]
    for others in (torch.zeros(2), torch.zeros(3, 1), torch.zeros(2, 0)):
        with pytest.raises(InputError, match=r"other_rewards must be \[2, K\] with K of at least 1, not "):
            objectives.prompt_margin(torch.zeros(2), others)


def test_the_divergence_passes_gradients_to_the_tuned_model_alone() -> None:
    tuned = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]], requires_grad=True)
    untuned = torch.tensor([[[1.0, 0.0]], [[3.0, 1.0]]], requires_grad=True)
    divergence = objectives.divergence_from_untuned(tuned, untuned)
    assert divergence.tolist() == [2.0, 5.0]  # (0 + 4) / 2 and (9 + 1) / 2
    divergence.sum().backward()
    assert tuned.grad is not None
    assert tuned.grad.tolist() == [[[0.0, 2.0]], [[-3.0, -1.0]]]
    assert untuned.grad is None


def test_the_divergence_of_half_precision_is_computed_in_single() -> None:
    assert objectives.divergence_from_untuned(torch.full((1, 4), 300.0).half(), torch.zeros(1, 4).half()).tolist() == [90000.0]


CLEAN, NOISE = torch.tensor([[1.0, -2.0], [4.0, 0.0]]), torch.tensor([[0.5, 1.0], [1.0, -1.0]])
ALPHA, SIGMA = torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6])


def test_noise_is_added_at_each_sample_s_own_level() -> None:
    expected = torch.tensor([[0.6 + 0.4, -1.2 + 0.8], [3.2 + 0.6, -0.6]])
    torch.testing.assert_close(objectives.add_noise(CLEAN, NOISE, ALPHA, SIGMA), expected)
    images = objectives.add_noise(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), ALPHA, SIGMA)
    assert images[:, 2, 1, 1].tolist() == ALPHA.tolist()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("epsilon", [[0.5, 1.0], [1.0, -1.0]]),
        ("v_prediction", [[0.6 * 0.5 - 0.8 * 1, 0.6 * 1 + 0.8 * 2], [0.8 * 1 - 0.6 * 4, -0.8]]),
        ("flow_prediction", [[-0.5, 3.0], [-3.0, -1.0]]),
        ("sample", [[1.0, -2.0], [4.0, 0.0]]),
    ],
)
def test_the_pretraining_loss(kind: Any, target: list[list[float]]) -> None:
    exact = torch.tensor(target)
    assert objectives.denoising_loss(exact, CLEAN, NOISE, ALPHA, SIGMA, kind).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    off = exact + torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    assert objectives.denoising_loss(off, CLEAN, NOISE, ALPHA, SIGMA, kind).tolist() == pytest.approx([5.0, 2.0])


def test_a_prediction_that_no_denoiser_makes() -> None:
    with pytest.raises(InputError, match="predicts one of epsilon, v_prediction, flow_prediction, sample, not 'velocity'"):
        objectives.denoising_loss(CLEAN, CLEAN, NOISE, ALPHA, SIGMA, "velocity")  # type: ignore[arg-type]


def test_the_smoothed_reward_is_that_of_the_disturbed_image() -> None:
    """r = |x|^2 / 2 has the slope x, so the worst disturbance shortens x by the radius: (|x| - radius)^2 / 2, with the gradient there."""
    pixels = torch.tensor([[0.3, 0.4], [0.6, 0.8]]).reshape(2, 1, 1, 2).requires_grad_()

    def reward(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.square().flatten(1).sum(dim=1) / 2

    smoothed = objectives.smoothed_reward(reward, pixels, radius=0.1)
    assert smoothed.tolist() == pytest.approx([0.08, 0.405])
    smoothed.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.flatten().tolist() == pytest.approx([0.24, 0.32, 0.54, 0.72])
    with torch.no_grad():
        assert objectives.smoothed_reward(reward, pixels, radius=0.1).tolist() == pytest.approx([0.08, 0.405])


def test_a_disturbed_image_stays_an_image() -> None:
    pixels = torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1)
    steps = torch.tensor([-1.0, 2.0, 2.0]).reshape(1, 3, 1, 1)  # |steps| = 3
    for sign, expected in ((-1, [0.9, 0.7, 0.2]), (1, [1.0, 0.3, 0.0])):
        scored: list[torch.Tensor] = []

        def reward(at: torch.Tensor, sign: int = sign, scored: list[torch.Tensor] = scored) -> torch.Tensor:
            scored.append(at)
            return (sign * at * steps).flatten(1).sum(dim=1)

        objectives.smoothed_reward(reward, pixels, radius=0.3)
        assert scored[-1].flatten().tolist() == pytest.approx(expected)


def test_where_the_reward_is_flat_nothing_is_disturbed() -> None:
    assert objectives.smoothed_reward(lambda pixels: pixels.flatten(1).sum(dim=1) * 0 + 7, torch.ones(2, 3, 2, 2)).tolist() == [7.0, 7.0]


def test_the_smoothed_reward_of_a_scorer_is_lower(scorer: ImageRewardScorer) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    smoothed = objectives.smoothed_reward(lambda pixels: scorer.rewards("a cat", pixels), pixels, radius=0.1)
    assert (smoothed < scorer.rewards("a cat", pixels)).all()
