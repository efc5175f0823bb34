"""Each metric against an independent computation: scipy, scikit-learn, or counting by hand."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score as sklearn_accuracy
from sklearn.metrics import log_loss as sklearn_log_loss

from image_reward import metrics
from image_reward.metrics import PairCounts


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def examples(random: np.random.Generator, num: int = 200) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rewards and ranks of 2 to 9 images, both with ties."""
    found = []
    for n in random.integers(2, 10, size=num):
        rewards = random.normal(size=n).round(int(random.integers(0, 3)))
        found.append((rewards, random.integers(1, 6, size=n)))
    return found


# --- pairs ---


def test_counts_are_those_of_a_loop_over_the_pairs(random: np.random.Generator) -> None:
    for rewards, ranks in examples(random):
        correct = wrong = predicted_ties = human_ties = tied_by_both = 0
        for i, j in itertools.combinations(range(len(ranks)), 2):
            if ranks[i] == ranks[j]:
                human_ties += 1
                tied_by_both += rewards[i] == rewards[j]
                continue
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            correct += rewards[better] > rewards[worse]
            wrong += rewards[better] < rewards[worse]
            predicted_ties += rewards[better] == rewards[worse]
        counts = metrics.count_pairs(rewards, ranks)
        assert counts == PairCounts(correct, wrong, predicted_ties, human_ties, tied_by_both)
        assert metrics.num_pairs(ranks) == (counts.untied, counts.human_ties)


@pytest.mark.parametrize(
    ("predicted_ties", "human_ties", "expected", "pairs"),
    [
        ("wrong", "excluded", 6 / 10, 10),
        ("half", "excluded", 7 / 10, 10),
        ("excluded", "excluded", 6 / 8, 8),
        ("wrong", "half", 8 / 14, 14),
        ("half", "half", 9 / 14, 14),
        ("excluded", "half", 8 / 12, 12),
        ("wrong", "answer", 7 / 14, 14),
        ("half", "answer", 8 / 14, 14),
        ("excluded", "answer", 7 / 12, 12),
    ],
)
def test_accuracy_treats_ties_as_it_is_told(predicted_ties: str, human_ties: str, expected: float, pairs: int) -> None:
    counts = PairCounts(correct=6, wrong=2, predicted_ties=2, human_ties=4, tied_by_both=1)
    assert metrics.pairwise_accuracy(counts, predicted_ties, human_ties) == (pytest.approx(expected), pairs)


def test_accuracy_without_pairs_is_nan_and_unknown_treatments_are_named() -> None:
    assert math.isnan(metrics.pairwise_accuracy(PairCounts(0, 0, 0, 3))[0])
    with pytest.raises(ValueError, match="predicted_ties must be one of wrong, half, excluded, not 'ignored'"):
        metrics.pairwise_accuracy(PairCounts(1, 1, 1, 1), "ignored")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="human_ties must be one of excluded, half, answer, not 'wrong'"):
        metrics.pairwise_accuracy(PairCounts(1, 1, 1, 1), "wrong", "wrong")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "metric", [metrics.count_pairs, metrics.kendall_tau_b, metrics.spearman, lambda r, h: metrics.recall_at_k(r, h, 1)]
)
def test_what_cannot_be_compared_is_an_error(metric) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="reward 1 is nan; rewards must be finite"):
        metric([0.0, math.nan], [1, 2])
    with pytest.raises(ValueError, match="rewards must be finite"):
        metric([math.inf, 0.0], [1, 2])
    with pytest.raises(ValueError, match=r"rewards of shape \(3,\) and ranks of shape \(2,\)"):
        metric([0.0, 1.0, 2.0], [1, 2])
    with pytest.raises(ValueError, match="at least two"):
        metric([0.0], [1])
    for ranks in ([0, 1], [1.5, 2], [1, math.nan]):
        with pytest.raises(ValueError, match="integers from 1"):
            metric([0.0, 1.0], ranks)


# --- ties and verdicts ---


def pairs_of(rewards: np.ndarray, human: np.ndarray) -> tuple[list[float], list[int]]:
    """Differences and outcomes of all pairs; ``human``: higher is better."""
    places = list(itertools.combinations(range(len(human)), 2))
    return [rewards[i] - rewards[j] for i, j in places], [int(np.sign(human[i] - human[j])) for i, j in places]


def calibrated_by_trying(differences: list[float], outcomes: list[int], weights: list[float]) -> tuple[float, float]:
    """Every threshold that changes anything, each pair judged anew."""
    best = (0.0, -1.0)
    for threshold in sorted({0.0, *map(abs, differences)}):
        right = 0.0
        for d, outcome, weight in zip(differences, outcomes, weights, strict=True):
            answer = 0 if abs(d) <= threshold else 1 if d > 0 else -1
            right += weight * (answer == outcome)
        if right / sum(weights) > best[1] + 1e-12:
            best = threshold, right / sum(weights)
    return best


def test_tie_calibration_is_that_of_trying_every_threshold(random: np.random.Generator) -> None:
    for rewards, ranks in examples(random):
        differences, outcomes = pairs_of(rewards, -ranks)
        for weights in (None, random.integers(1, 5, size=len(outcomes)).tolist()):
            found = metrics.calibrate_ties(differences, outcomes, weights)
            assert tuple(found) == pytest.approx(calibrated_by_trying(differences, outcomes, weights or [1.0] * len(outcomes)))
            if not weights:
                counts = metrics.count_pairs(rewards, ranks, found.threshold)
                assert metrics.pairwise_accuracy(counts, human_ties="answer")[0] == pytest.approx(found.accuracy)


def test_tie_calibration_is_that_of_its_authors() -> None:
    """The values that the tests of google-research/mt-metrics-eval (Apache-2.0, commit 0b82d96, tau_optimization_test.py) expect. The
    package of that name on PyPI is another one."""
    zero = metrics.calibrate_ties(*pairs_of(np.array([0, 2, 6, 8]), np.array([1, 2, 3, 4])))
    assert zero == (0, 1.0)
    four = metrics.calibrate_ties(*pairs_of(np.array([0, 2, 6, 8]), np.array([1, 1, 1, 4])))
    assert four == (4, pytest.approx(4 / 6))
    # the mean over rows, of which None is left out
    rows = [
        ([0, 5, 2, 3, 2], [1, 5, 2, 1, 1]),
        ([2, 1, 5, 3], [2, 2, 1, 4]),
        ([9, 1, 5, 3, 8], [5, 9, 2, 8, 7]),
        ([9, 3, 4, 1], [7, 6, 3, 2]),
    ]
    pairs = [pairs_of(np.array(metric), np.array(human)) for metric, human in rows]
    weights = [1 / len(outcomes) for _, outcomes in pairs for _ in outcomes]
    found = metrics.calibrate_ties([d for row, _ in pairs for d in row], [o for _, row in pairs for o in row], weights)
    assert found == (1, pytest.approx(0.4916666666666668))


def test_a_scorer_that_ties_what_annotators_tie_is_right_at_a_threshold() -> None:
    found = metrics.calibrate_ties([0.1, -0.2, 0.9, -0.8], [0, 0, 1, -1])
    assert found == (0.2, 1.0)
    assert metrics.calibrate_ties([0.5, 0.25], [1, 1]) == (0, 1.0)  # where nothing is tied, nothing needs to be
    assert metrics.calibrate_ties([0.0, 0.0], [0, 1]) == (0, 0.5)
    with pytest.raises(ValueError, match=r"\(2,\) differences, \(1,\) outcomes"):
        metrics.calibrate_ties([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="rewards must be finite"):
        metrics.calibrate_ties([math.inf], [1])
    with pytest.raises(ValueError, match="outcomes are 1"):
        metrics.calibrate_ties([0.1], [2])


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_tie_calibration_needs_weights_that_are_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights are finite numbers from 0, of which at least one is larger"):
        metrics.calibrate_ties([3.0, 1.0], [0, 1], weights)


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1.7e308 / 5])
def test_pearson_does_not_depend_on_the_scale(scale: float) -> None:
    expected = metrics.pearson([1.0, 2.0, 5.0], [1.0, 3.0, 2.0])
    assert metrics.pearson(np.array([1.0, 2.0, 5.0]) * scale, [1.0, 3.0, 2.0]) == pytest.approx(expected)


@pytest.mark.parametrize(("difference", "std"), [(math.nan, 1.0), (1.0, math.inf), (1.0, -1.0)])
def test_an_uncertain_win_needs_a_finite_difference(difference: float, std: float) -> None:
    with pytest.raises(ValueError, match="both are finite, and the latter is at least 0"):
        metrics.uncertain_win_probability(difference, std)


def test_label_match_and_position_bias_are_those_of_counting(random: np.random.Generator) -> None:
    labels = ["A>B", "B>A", "A=B=Good", "A=B=Bad"]
    predicted, human = random.choice(labels, size=(2, 500)).tolist()
    assert metrics.label_match(predicted, human) == sklearn_accuracy(human, predicted)
    one, other = random.integers(-1, 2, size=(2, 500)).tolist()
    flipped = first = second = 0
    for shown_a_first, shown_b_first in zip(one, other, strict=True):
        better = {1: "a", -1: "b", 0: "tie"}[shown_a_first], {1: "b", -1: "a", 0: "tie"}[shown_b_first]
        flipped += better[0] != better[1]
        first += better == ("a", "b")
        second += better == ("b", "a")
    assert metrics.position_bias(one, other) == (flipped / 500, first / 500, second / 500)
    with pytest.raises(ValueError, match="a label is one of A>B, B>A, A=B=Good, A=B=Bad, not 'A'"):
        metrics.label_match(["A"], ["A>B"])
    with pytest.raises(ValueError, match=r"a label is one of .*, not None"):
        metrics.label_match([None, "A>B"], ["A>B", "A"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="0 labels of a judge and 1 of annotators"):
        metrics.label_match([], ["A>B"])
    with pytest.raises(ValueError, match="verdicts are 1"):
        metrics.position_bias([2], [0])
    with pytest.raises(ValueError, match="one in each order"):
        metrics.position_bias([1], [0, 1])


# --- the best and the worst ---


def test_recall_and_filter_are_those_of_sorting_where_nothing_is_tied(random: np.random.Generator) -> None:
    for n in range(2, 9):
        for _ in range(20):
            rewards, ranks = random.normal(size=n), random.permutation(n) + 1
            best_first = np.argsort(-rewards)
            for k in range(1, n + 1):
                assert metrics.recall_at_k(rewards, ranks, k) == (ranks.argmin() in best_first[:k])
                assert metrics.filter_at_k(rewards, ranks, k) == (ranks.argmax() in best_first[-k:])


def test_random_rewards_recall_the_best_of_8_as_often_as_chance_says(random: np.random.Generator) -> None:
    ranks = np.arange(1, 9)
    for k, chance in ((1, 0.125), (2, 0.25), (4, 0.5)):
        assert np.mean([metrics.recall_at_k(random.normal(size=8), ranks, k) for _ in range(4000)]) == pytest.approx(chance, abs=0.03)


def test_ties_in_recall_and_filter() -> None:
    assert metrics.recall_at_k([0.0, 0.0, 0.0], [1, 2, 3], k=2) == 0  # not deciding gains nothing
    assert metrics.filter_at_k([0.0, 0.0, 0.0], [1, 2, 3], k=2) == 0
    assert metrics.recall_at_k([0.0, 0.0, 0.0], [1, 2, 3], k=3) == 1
    assert metrics.recall_at_k([0.1, 0.9, 0.5], [1, 1, 2], k=1) == 1  # one of the two that people put first
    assert metrics.recall_at_k([0.9, 0.9, 0.5], [1, 1, 2], k=1) == 1  # either of them is right
    assert metrics.filter_at_k([0.9, 0.1, 0.5], [1, 4, 4], k=1) == 1
    assert math.isnan(metrics.recall_at_k([0.9, 0.1], [2, 2], k=1))
    assert math.isnan(metrics.filter_at_k([0.9, 0.1], [2, 2], k=1))


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_images_is_an_error(k: int) -> None:
    for metric in (metrics.recall_at_k, metrics.filter_at_k):
        with pytest.raises(ValueError, match=f"between 1 and the number of images, 3, not {k}"):
            metric([0.1, 0.2, 0.3], [1, 2, 3], k)


# --- rank correlation ---


def test_rank_correlations_are_scipys(random: np.random.Generator) -> None:
    defined = 0
    for rewards, ranks in examples(random):
        if len(set(rewards)) == 1 or len(set(ranks)) == 1:
            assert math.isnan(metrics.kendall_tau_b(rewards, ranks))
            assert math.isnan(metrics.spearman(rewards, ranks))
            continue
        defined += 1
        assert metrics.kendall_tau_b(rewards, ranks) == pytest.approx(stats.kendalltau(rewards, -ranks).statistic)
        assert metrics.spearman(rewards, ranks) == pytest.approx(stats.spearmanr(rewards, -ranks).statistic)
    assert defined > 100


def test_correlations_over_many_images_are_scipys_in_blocks_too(monkeypatch: pytest.MonkeyPatch, random: np.random.Generator) -> None:
    rewards, ratings = random.normal(size=300).round(1), random.integers(2, 11, size=300) / 2
    whole = metrics.kendall_tau_b(rewards, metrics.ranks_of(ratings))
    assert whole == pytest.approx(stats.kendalltau(rewards, ratings).statistic)
    assert metrics.spearman(rewards, metrics.ranks_of(ratings)) == pytest.approx(stats.spearmanr(rewards, ratings).statistic)
    assert metrics.pearson(rewards, ratings) == pytest.approx(stats.pearsonr(rewards, ratings).statistic)
    monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", 1000)
    assert metrics.kendall_tau_b(rewards, metrics.ranks_of(ratings)) == whole
    assert math.isnan(metrics.pearson([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]))  # whose mean is not exactly 0.1
    with pytest.raises(ValueError, match="there must be one of each for every image"):
        metrics.pearson([1.0], [1.0, 2.0])


# --- probabilities ---


def test_win_probabilities_are_the_published_formulas(random: np.random.Generator) -> None:
    a, b = random.normal(size=(2, 50))
    p_a, p_b = np.exp(a), np.exp(b)
    np.testing.assert_allclose(metrics.win_probability(a - b), p_a / (p_a + p_b))
    np.testing.assert_allclose(metrics.win_probability(a - b, "davidson", 0.7), p_a / (p_a + p_b + 0.7 * np.sqrt(p_a * p_b)))
    np.testing.assert_allclose(metrics.win_probability(a - b, "rao-kupper", 1.4), p_a / (p_a + 1.4 * p_b))
    with pytest.raises(ValueError, match="davidson or rao-kupper, not 'elo'"):
        metrics.win_probability([0.0], "elo")


@pytest.mark.parametrize(("tie_model", "parameter"), [(None, 0.0), ("davidson", 0.5), ("rao-kupper", 1.5)])
def test_win_probabilities_of_huge_differences_are_sure(tie_model: str | None, parameter: float) -> None:
    np.testing.assert_array_equal(metrics.win_probability([2000.0, -2000.0], tie_model, parameter), [1.0, 0.0])


def test_log_loss_is_scikit_learns(random: np.random.Generator) -> None:
    p, y = random.random(500), random.integers(0, 2, 500)
    p[:2], y[:2] = (0.0, 1.0), (1, 0)  # sure and wrong
    assert metrics.log_loss(p, y).mean() == pytest.approx(sklearn_log_loss(y, p))
    soft = metrics.log_loss([0.7], [0.25])
    assert soft[0] == pytest.approx(-0.25 * math.log(0.7) - 0.75 * math.log(0.3))


def test_calibration_is_scikit_learns(random: np.random.Generator) -> None:
    p, y = random.random(500), random.integers(0, 2, 500)
    bins = metrics.calibration(p, y, num_bins=7)
    frequency, probability = calibration_curve(y, p, n_bins=7)
    np.testing.assert_allclose([b.frequency for b in bins], frequency)
    np.testing.assert_allclose([b.probability for b in bins], probability)
    assert sum(b.num for b in bins) == 500


def test_expected_calibration_error_by_hand() -> None:
    bins = metrics.calibration([0.55, 0.58, 0.95], [1, 0, 1], num_bins=5, low=0.5)
    assert [b.num for b in bins] == [2, 0, 0, 0, 1]
    assert math.isnan(bins[1].frequency)
    assert metrics.expected_calibration_error(bins) == pytest.approx((2 * abs(0.5 - 0.565) + abs(1 - 0.95)) / 3)
    always_right = metrics.calibration(np.full(10, 1.0), np.ones(10))
    assert metrics.expected_calibration_error(always_right) == 0


def test_probabilities_outside_their_range_are_errors() -> None:
    for bad in ([1.1], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]"):
            metrics.log_loss(bad, [1])
    with pytest.raises(ValueError, match="outcomes must be in"):
        metrics.log_loss([0.5], [2])
    with pytest.raises(ValueError, match="one length"):
        metrics.log_loss([0.5, 0.5], [1])
    with pytest.raises(ValueError, match="outside of the bins' range"):
        metrics.calibration([0.4], [1], low=0.5)


# --- over prompts ---


def test_weighted_mean_leaves_undefined_prompts_out() -> None:
    assert metrics.weighted_mean([1.0, math.nan, 0.0], [1, 100, 3]) == 0.25
    np.testing.assert_array_equal(metrics.weighted_mean([[1.0, math.nan], [0.0, math.nan]]), [0.5, math.nan])


def test_bootstrap_of_a_mean_has_the_error_that_theory_says(random: np.random.Generator) -> None:
    values = random.normal(size=400)
    samples = metrics.bootstrap(values, num_resamples=4000)
    assert samples.mean() == pytest.approx(values.mean(), abs=0.005)
    assert samples.std() == pytest.approx(values.std() / math.sqrt(400), rel=0.05)


def test_bootstrap_interval_is_scipys(random: np.random.Generator) -> None:
    values, weights = random.random(60), random.integers(1, 9, 60).astype(float)
    ours = metrics.interval(metrics.bootstrap(values, weights, num_resamples=10_000))
    theirs = stats.bootstrap(
        (values, weights),
        lambda v, w: np.sum(v * w) / np.sum(w),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=1,
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_draws_groups_together(random: np.random.Generator) -> None:
    """Copies of a prompt bring no information: as many as they are, the interval is that of one."""
    values = random.random(50)
    once = metrics.bootstrap(values, num_resamples=500)
    copied = metrics.bootstrap(np.tile(values, 4), groups=np.tile(np.arange(50), 4), num_resamples=500)
    np.testing.assert_allclose(copied, once)
    assert metrics.bootstrap(np.tile(values, 4), num_resamples=500).std() < 0.7 * once.std()


def test_bootstrap_columns_share_their_draws_and_seeds_repeat(random: np.random.Generator) -> None:
    values = random.random((40, 2))
    samples = metrics.bootstrap(values, num_resamples=100, seed=3)
    np.testing.assert_allclose(samples[:, 1], metrics.bootstrap(values[:, 1], num_resamples=100, seed=3))
    assert not np.allclose(samples, metrics.bootstrap(values, num_resamples=100, seed=4))


def test_bootstrap_in_parts_is_bootstrap_in_one(monkeypatch: pytest.MonkeyPatch, random: np.random.Generator) -> None:
    values = random.random(10)
    whole = metrics.bootstrap(values, num_resamples=23)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 50)
    np.testing.assert_array_equal(metrics.bootstrap(values, num_resamples=23), whole)


def compared(a: np.ndarray, b: np.ndarray, num_resamples: int) -> metrics.Difference:
    """How much better a is than b over the same prompts."""
    samples = metrics.bootstrap(np.stack([a, b], axis=1), num_resamples=num_resamples)
    [found] = metrics.differences("accuracy", {"a": a.mean(), "b": b.mean()}, {"a": samples[:, 0], "b": samples[:, 1]})
    return found


def test_paired_differences_show_what_separate_intervals_hide(random: np.random.Generator) -> None:
    difficulty = random.random(200)
    better, worse = difficulty + 0.02, difficulty + random.normal(scale=0.01, size=200)
    found = compared(better, worse, 2000)
    assert (found.metric, found.a, found.b) == ("accuracy", "a", "b")
    assert found.value == pytest.approx((better - worse).mean())
    assert 0.015 < found.low < found.value < found.high < 0.025
    assert found.p_value == pytest.approx(2 / 2001)
    low, high = metrics.interval(metrics.bootstrap(worse, num_resamples=2000))
    assert low < better.mean() < high


def test_paired_differences_of_equals_are_nothing(random: np.random.Generator) -> None:
    values = random.random(50)
    same = compared(values, values, 100)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    shuffled = compared(values, random.permutation(values), 1000)
    assert shuffled.low < 0 < shuffled.high
    assert shuffled.p_value > 0.3


def test_each_is_compared_with_each_after_it_and_p_values_are_adjusted(random: np.random.Generator) -> None:
    values = {"a": 0.5, "b": 0.25, "c": 0.0}
    samples = {name: value + random.normal(scale=0.1, size=99) for name, value in values.items()}
    found = metrics.differences("mean", values, samples, confidence=0.9)
    assert [(row.a, row.b, row.value) for row in found] == [("a", "b", 0.25), ("a", "c", 0.5), ("b", "c", 0.25)]
    assert [row.p_holm for row in found] == metrics.holm([row.p_value for row in found])
    for row in found:
        assert (row.low, row.high) == metrics.interval(samples[row.a] - samples[row.b], 0.9)


def test_two_sided_p_counts_both_sides_and_is_never_zero(random: np.random.Generator) -> None:
    assert metrics.two_sided_p(np.full(99, 2.0)) == metrics.two_sided_p(np.full(99, -2.0)) == pytest.approx(2 / 100)
    assert metrics.two_sided_p([*np.full(95, 1.0), *np.full(4, -1.0)]) == pytest.approx(2 * 5 / 100)
    assert metrics.two_sided_p([1.0, math.nan, -1.0]) == 1.0
    assert metrics.two_sided_p(np.zeros(9)) == 1.0
    samples = random.normal(0.2, 0.1, size=100_000)  # of a normal distribution: twice its tail
    assert metrics.two_sided_p(samples) == pytest.approx(2 * stats.norm.sf(2.0), rel=0.05)


def test_bootstrap_errors() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        metrics.bootstrap([])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        metrics.bootstrap([1.0], num_resamples=0)
    with pytest.raises(ValueError, match="2 groups for 1 values"):
        metrics.bootstrap([1.0], groups=[1, 2])
    with pytest.raises(ValueError, match="they must be equal"):
        metrics.bootstrap([1.0], weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="between 0 and 1, not 95"):
        metrics.interval([0.5], confidence=95)
    with pytest.raises(ValueError, match="no prompt has a value for both"):
        metrics.differences("mean", {"a": 1.0, "b": 1.0}, {"a": [1.0, math.nan], "b": [math.nan, 1.0]})
    assert all(math.isnan(x) for x in metrics.interval([math.nan]))


# --- several tests, several scorers ---


def test_holm_by_hand() -> None:
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and never less than what came before
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert metrics.holm([0.03]) == [0.03]
    assert metrics.holm([]) == []


def test_chance_at_k_is_the_share_of_random_orders() -> None:
    for ranks in ([1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 2, 5], [2, 1, 1, 1, 3]):
        orders = list(itertools.permutations(range(len(ranks))))
        for k in range(1, len(ranks)):
            if len(orders) <= 120:
                assert metrics.chance_at_k(ranks, k) == pytest.approx(np.mean([metrics.recall_at_k(order, ranks, k) for order in orders]))
                filtered = np.mean([metrics.filter_at_k(order, ranks, k) for order in orders])
                assert metrics.chance_at_k(metrics.from_worst(ranks), k) == pytest.approx(filtered)
            else:
                assert metrics.chance_at_k(ranks, k) == pytest.approx(k / 8)
    assert math.isnan(metrics.chance_at_k([2, 2], 1))


def test_ranks_of_rewards_let_two_scorers_be_compared(random: np.random.Generator) -> None:
    for rewards, _ in examples(random, num=50):
        other = random.normal(size=len(rewards)).round(1)
        ranks = metrics.ranks_of(other)
        if len(set(rewards)) > 1 and len(set(other)) > 1:
            assert metrics.kendall_tau_b(rewards, ranks) == pytest.approx(stats.kendalltau(rewards, other).statistic)
            assert metrics.spearman(rewards, ranks) == pytest.approx(stats.spearmanr(rewards, other).statistic)


def test_one_long_prompt_does_not_widen_all_others() -> None:
    groups = ["x" * 2_000_000, *(str(i) for i in range(200))]  # as a numpy array: 1.6 GB
    tracemalloc.start()
    metrics.bootstrap(np.ones(201), groups=groups, num_resamples=2)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6


# --- generators ---


@pytest.mark.parametrize("num", [1, 2, 5, 9])
def test_expected_maximum_is_the_mean_over_all_subsets(num: int) -> None:
    rewards = np.random.default_rng(num).normal(size=num).round(1)  # with ties
    by_hand = [np.mean([max(subset) for subset in itertools.combinations(rewards, n)]) for n in range(1, num + 1)]
    assert metrics.expected_maximum(rewards) == pytest.approx(by_hand)


def test_expected_maximum_of_many() -> None:
    curve = metrics.expected_maximum(np.arange(1000.0))
    assert curve[[0, 1, 9, 999]] == pytest.approx([499.5, 1001 * 2 / 3 - 1, 1001 * 10 / 11 - 1, 999])  # n (N + 1) / (n + 1) - 1


def test_win_rate_by_hand() -> None:
    # 1 > 0, 1 = 1, 1 < 2; 3 wins all: 4 wins and a draw of 6
    assert metrics.win_rate([1.0, 3.0], [0.0, 1.0, 2.0]) == pytest.approx(4.5 / 6)
    assert metrics.win_rate([0.0, 1.0, 2.0], [1.0, 3.0]) == pytest.approx(1.5 / 6)


def test_several_rewards_at_once() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert metrics.expected_maximum(a) == pytest.approx(np.array([metrics.expected_maximum(row) for row in a]))
    assert metrics.win_rate(a, b) == pytest.approx(np.array([metrics.win_rate(x, y) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("rewards", [[], [[]], [1.0, float("nan")]])
def test_rewards_that_are_not_numbers_are_errors(rewards: list[float]) -> None:
    for metric in (metrics.expected_maximum, lambda r: metrics.win_rate(r, [1.0]), lambda r: metrics.win_rate([1.0], r)):
        with pytest.raises(ValueError, match="rewards"):
            metric(rewards)
