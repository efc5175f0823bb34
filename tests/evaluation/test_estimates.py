from __future__ import annotations

import math

import numpy as np
import pytest

from image_reward import metrics
from image_reward.evaluation.estimates import PromptColumns, none_if_nan
from image_reward.metrics import Interval


def drawn(num: int = 40) -> tuple[PromptColumns[str], list[str]]:
    """Two columns that go together, one with weights and gaps, one without any number."""
    random = np.random.default_rng(0)
    columns = PromptColumns[str]()
    difficulty = random.random(num)
    columns.add("first", difficulty)
    columns.add("second", difficulty - 0.1)
    columns.add("weighted", np.where(np.arange(num) % 4, difficulty, math.nan), np.arange(num))
    columns.add("none", np.full(num, math.nan))
    return columns, [f"prompt {i}" for i in range(num)]


def test_means_are_weighted_and_leave_prompts_without_a_number_out() -> None:
    columns, prompts = drawn()
    means = columns.means(prompts, num_resamples=100, confidence=0.9, seed=0)
    inside = np.arange(40) % 4 != 0
    assert means.values["weighted"] == pytest.approx(np.average(columns["first"][inside], weights=np.arange(40)[inside]))
    assert means.num_prompts == {"first": 40, "second": 40, "weighted": 30, "none": 0}
    assert means.interval("none") == Interval(None, None, None, 0)


def test_intervals_are_those_of_each_column_alone() -> None:
    columns, prompts = drawn()
    means = columns.means(prompts, num_resamples=200, confidence=0.9, seed=3)
    for name in ("first", "second"):
        alone = metrics.bootstrap(columns[name], groups=prompts, num_resamples=200, seed=3)
        estimate = means.interval(name)
        assert (estimate.low, estimate.high) == pytest.approx(metrics.interval(alone, 0.9))
        assert estimate.value == pytest.approx(columns[name].mean())
        assert estimate.num_prompts == 40


def test_columns_are_paired_because_they_share_their_draws() -> None:
    columns, prompts = drawn()
    [found] = columns.means(prompts, num_resamples=200, confidence=0.95, seed=0).differences("reward", {"a": "first", "b": "second"})
    assert (found.metric, found.a, found.b) == ("reward", "a", "b")
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))  # what makes a prompt hard cancels out


def test_rows_of_one_prompt_are_drawn_together() -> None:
    columns, _ = drawn()
    apart = columns.means([str(i) for i in range(40)], 500, 0.95, 0).interval("first")
    together = columns.means([str(i // 20) for i in range(40)], 500, 0.95, 0).samples["first"]
    assert len(np.unique(together.round(9))) == 3  # of two prompts: one twice, the other twice, or each once
    assert apart.low is not None


def test_nothing_is_compared_where_one_side_has_no_number() -> None:
    columns, prompts = drawn()
    assert columns.means(prompts, 50, 0.95, 0).differences("reward", {"a": "first", "b": "none"}) == []


def test_nan_is_none_for_json() -> None:
    assert none_if_nan(math.nan) is None
    assert none_if_nan(np.float64(0.5)) == 0.5
