from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from image_reward.evaluation.generators import HumanRanking, Selection, benchmark
from image_reward.prompt_sets import Prompt

PROMPTS = [Prompt("p1", "a cat", "animals"), Prompt("p2", "a green car", "things")]
REWARDS = {"a": [[1.0, 3.0], [0.0, 1.0]], "b": [[0.0, 1.0], [2.0, 2.0]], "c": [[-1.0, -3.0], [0.0, 1.0]]}


def measured(**options: Any) -> Any:
    rewards = {"S": {g: dict(zip(("p1", "p2"), values, strict=True)) for g, values in REWARDS.items()}}
    return benchmark(rewards, Selection(PROMPTS, [2, 2], [], {}), num_resamples=500, **options)


def test_statistics_by_hand() -> None:
    found = measured()
    assert (found.num_prompts, found.num_images, found.images_per_prompt) == (2, 4, (2, 2))
    (scorer,) = found.scorers
    by_name = {generator.name: generator for generator in scorer.generators}
    assert [g.name for g in scorer.generators] == ["a", "b", "c"]  # a and b tie; in the order given
    assert [g.rank for g in scorer.generators] == [1, 1, 3]
    assert [g.mean.value for g in scorer.generators] == pytest.approx([1.25, 1.25, -0.75])
    assert [g.median for g in scorer.generators] == pytest.approx([1.0, 1.5, -0.5])
    # p1: a beats b in 3.5 of 4 and c in 4; b beats c in 4. p2: a beats b in 0 of 4 and draws with c; b beats c in 4.
    assert np.array(scorer.win_matrix) == pytest.approx(np.array([[0.5, 3.5 / 8, 6 / 8], [4.5 / 8, 0.5, 1], [2 / 8, 0, 0.5]]))
    assert by_name["a"].win_rate.value == pytest.approx((3.5 / 8 + 6 / 8) / 2)
    assert by_name["a"].prompt_win_rate.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert by_name["c"].prompt_win_rate.value == pytest.approx((0 + 0 + 0.5 + 0) / 4)
    assert [b.value for b in by_name["a"].best_of] == pytest.approx([1.25, 2.0])
    assert by_name["a"].by_category == {"animals": 2.0, "things": 0.5}
    # two prompts: the resampled mean of a is 0.5, 1.25 or 2 (with 1/4, 1/2, 1/4)
    assert (by_name["a"].mean.low, by_name["a"].mean.high) == (0.5, 2.0)
    assert (by_name["c"].rank_low, by_name["c"].rank_high) == (2, 3)  # where only p2 is drawn, it ties with a
    assert [(d.a, d.b, d.value) for d in scorer.differences] == [("a", "b", 0.0), ("a", "c", 2.0), ("b", "c", 2.0)]
    assert all(d.p_value <= d.p_holm <= 1 for d in scorer.differences)
    assert scorer.spearman is None


def test_agreement_with_the_human_ranking() -> None:
    human = HumanRanking.of("me", {"b": 3.0, "a": 2.0, "c": 1.0})
    (scorer,) = measured(human=human).scorers
    assert scorer.spearman.value == pytest.approx(0.8660254)  # ranks 1.5, 1.5, 3 against 2, 1, 3
    assert scorer.kendall_tau_b.value == pytest.approx(2 / np.sqrt(6))
    assert -1 <= scorer.spearman.low <= scorer.spearman.value <= scorer.spearman.high <= 1
    (scorer,) = measured(human=HumanRanking.of("me", {"a": 1.0, "b": 1.0})).scorers
    assert scorer.spearman is None  # they are tied


def test_fewer_images_and_a_single_generator() -> None:
    rewards = {"S": {"a": {"p1": [1.0, 3.0, 5.0], "p2": [0.0]}}}
    found = benchmark(rewards, Selection(PROMPTS, [2, 1], ["p3"], {"a": 1}), num_resamples=10)
    (generator,) = found.scorers[0].generators
    assert generator.mean.value == pytest.approx((2.0 + 0.0) / 2)
    assert len(generator.best_of) == 1
    assert generator.win_rate is generator.prompt_win_rate is None
    assert found.scorers[0].differences == []
    assert found.images_per_prompt == (1, 2)
    assert found.per_prompt[0].rewards == {"S": {"a": [1.0, 3.0]}}
    with pytest.raises(ValueError, match="rewards must be finite"):
        benchmark({"S": {"a": {"p1": [float("nan")], "p2": [0.0]}}}, Selection(PROMPTS, [1, 1], [], {}), num_resamples=10)


def test_as_dict_is_json() -> None:
    found = measured(human=HumanRanking.of("me", {"b": 3.0, "a": 2.0, "c": 1.0}))
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert json.loads(text)["per_prompt"][1]["rewards"]["S"]["b"] == [2.0, 2.0]
    assert "per_prompt" not in found.as_dict(per_prompt=False)
