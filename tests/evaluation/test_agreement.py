from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from image_reward.evaluation import evaluate
from image_reward.evaluation.agreement import agreement, annotators, krippendorff_alpha
from image_reward.types import Comparison


def drawn(num: int = 30, seed: int = 0) -> tuple[dict[str, list[list[float]]], list[Comparison]]:
    """Rankings with ties, and two scorers, one of which gives equal rewards."""
    random = np.random.default_rng(seed)
    comparisons = []
    for i in range(num):
        ranks = tuple(random.integers(1, 5, size=random.integers(3, 8)).tolist())
        comparisons.append(Comparison(f"a cat {i}", tuple(f"{i}-{j}.png" for j in range(len(ranks))), ranks, id=str(i)))
    rewards = {
        "fine": [random.normal(size=len(c.ranks)).tolist() for c in comparisons],
        "coarse": [(random.integers(0, 3, size=len(c.ranks)) - 0.5 * np.array(c.ranks)).tolist() for c in comparisons],
    }
    return rewards, comparisons


def test_agreement_between_scorers_and_with_the_human_rankings() -> None:
    rewards, comparisons = drawn()
    found = agreement(rewards, comparisons)
    assert found.names == ["human", "fine", "coarse"]
    everyone = [[[-rank for rank in c.ranks] for c in comparisons], *rewards.values()]
    for a, b in itertools.permutations(range(3), 2):
        same = total = 0
        for c, x, y in zip(comparisons, everyone[a], everyone[b], strict=True):
            for i, j in itertools.combinations(range(len(x)), 2):
                if c.ranks[i] != c.ranks[j]:
                    total += 1
                    same += (x[i] > x[j]) == (y[i] > y[j]) and (x[i] < x[j]) == (y[i] < y[j])
        assert found.same_order[a][b] == pytest.approx(same / total)
        both = [(x, y) for x, y in zip(everyone[a], everyone[b], strict=True) if len(set(x)) > 1 and len(set(y)) > 1]
        assert found.kendall_tau_b[a][b] == pytest.approx(np.mean([kendalltau(x, y).statistic for x, y in both]))
        assert found.spearman[a][b] == pytest.approx(np.mean([spearmanr(x, y).statistic for x, y in both]))
    assert [found.same_order[a][a] for a in range(3)] == [None] * 3
    accuracy = evaluate(rewards, comparisons, num_resamples=10).scorers["coarse"].metrics["pairwise_accuracy_pooled"].value
    assert found.same_order[0][2] == pytest.approx(accuracy)


# --- annotators ---


def test_two_rankings_of_the_same_images() -> None:
    a = Comparison("a  Cat", ("1.png", "2.png", "3.png"), (1, 2, 3), id="a")
    b = Comparison("a cat", ("3.png", "1.png", "2.png"), (2, 1, 2), id="b")  # of 1, 2, 3: 1, 2, 2
    c = Comparison("a cat", ("1.png", "2.png"), (2, 1), id="c")  # other images: another thing
    d = Comparison("a dog", ("1.png", "2.png", "3.png"), (3, 2, 1), id="d")
    found = annotators([a, b, c, d])
    assert found is not None
    assert (found.num_rankings, found.num_pairs) == (2, [2, 0, 0, 0])  # 2 and 3 are tied in b
    assert found.shares[0] == 1.0
    assert np.isnan(found.shares[1:]).all()
    assert annotators([a, c, d]) is None


def test_annotations_of_a_comparison_stand_for_it() -> None:
    images = ("1.png", "2.png", "3.png")
    comparison = Comparison("a cat", images, (1, 2, 3), id="a", annotations=((1, 2, 3), (1, 3, 2), (3, 2, 1)))
    found = annotators([comparison])
    assert found is not None
    # pairs 12, 13, 23: the first two agree on two of three, the first and last on none, the last two on one
    assert (found.num_pairs, found.num_rankings) == ([9], 3)
    assert found.shares == [pytest.approx(3 / 9)]
    evaluation = evaluate({"x": [[3, 2, 1]]}, [comparison], num_resamples=10)
    assert evaluation.annotators is not None
    assert evaluation.annotators.same_order.value == pytest.approx(3 / 9)
    assert evaluation.annotators.num_pairs == 9


def test_copies_of_an_image_are_not_mistaken_for_each_other() -> None:
    twice = Comparison("a cat", ("1.png", "1.png"), (1, 2))
    assert annotators([twice, twice]) is None


def alpha_by_definition(groups: list[list[tuple[int, ...]]]) -> float:
    """1 - observed / expected disagreement, from the coincidences of values within units (Krippendorff 2011)."""
    units = [[ranking[i] for ranking in rankings] for rankings in groups for i in range(len(rankings[0]))]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in units for value in unit})
    together = dict.fromkeys(itertools.product(values, repeat=2), 0.0)
    for unit in units:
        for x, y in itertools.permutations(unit, 2):
            together[x, y] += 1 / (len(unit) - 1)
    num = {v: sum(together[v, w] for w in values) for v in values}
    total = sum(num.values())

    def distance(x: int, y: int) -> float:
        between = [num[v] for v in values if min(x, y) <= v <= max(x, y)]
        return (sum(between) - (num[x] + num[y]) / 2) ** 2

    observed = sum(together[x, y] * distance(x, y) for x, y in together)
    expected = sum(num[x] * num[y] * distance(x, y) for x, y in together) / (total - 1)
    return 1 - observed / expected


def test_alpha_is_what_its_definition_says() -> None:
    random = np.random.default_rng(0)
    groups = []
    for _ in range(12):
        truth = random.normal(size=random.integers(3, 7))
        noisy = truth + random.normal(size=(random.integers(2, 5), len(truth)))
        groups.append([tuple((np.argsort(np.argsort(-row)) // 2 + 1).tolist()) for row in noisy])
    found = krippendorff_alpha(groups)
    assert found == pytest.approx(alpha_by_definition(groups))
    assert 0.1 < found < 0.9
    assert krippendorff_alpha([[(1, 2, 3), (1, 2, 3)]]) == pytest.approx(1)
    assert krippendorff_alpha([[(1, 1), (1, 1)]]) is None


def test_without_the_library_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    found = annotators([Comparison("a cat", ("1.png", "2.png"), (1, 2), annotations=((1, 2), (2, 1)))])
    assert found is not None
    assert found.alpha is None
    assert found.shares == [0.0]
