from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from image_reward.metrics import expected_maximum, win_rate


@pytest.mark.parametrize("num", [1, 2, 5, 9])
def test_expected_maximum_is_the_mean_over_all_subsets(num: int) -> None:
    rewards = np.random.default_rng(num).normal(size=num).round(1)  # with ties
    by_hand = [np.mean([max(subset) for subset in combinations(rewards, n)]) for n in range(1, num + 1)]
    assert expected_maximum(rewards) == pytest.approx(by_hand)


def test_expected_maximum_of_many() -> None:
    curve = expected_maximum(np.arange(1000.0))
    assert curve[[0, 1, 9, 999]] == pytest.approx([499.5, 1001 * 2 / 3 - 1, 1001 * 10 / 11 - 1, 999])  # n (N + 1) / (n + 1) - 1


def test_win_rate_by_hand() -> None:
    # 1 > 0, 1 = 1, 1 < 2; 3 wins all: 4 wins and a draw of 6
    assert win_rate([1.0, 3.0], [0.0, 1.0, 2.0]) == pytest.approx(4.5 / 6)
    assert win_rate([0.0, 1.0, 2.0], [1.0, 3.0]) == pytest.approx(1.5 / 6)


def test_several_at_once() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert expected_maximum(a) == pytest.approx(np.array([expected_maximum(row) for row in a]))
    assert win_rate(a, b) == pytest.approx(np.array([win_rate(x, y) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("rewards", [[], [[]], [1.0, float("nan")]])
def test_rewards_that_make_no_sense(rewards: list[float]) -> None:
    for metric in (expected_maximum, lambda r: win_rate(r, [1.0]), lambda r: win_rate([1.0], r)):
        with pytest.raises(ValueError, match="rewards"):
            metric(rewards)
