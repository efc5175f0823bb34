"""Arithmetic on ranks and rewards: how well a scorer's rewards agree with human rankings. Knows no model.

``rewards`` [n] are floats, higher is better; ``ranks`` [n] are those that human annotators gave the same images, integers from 1, 1 is
best, equal ranks are ties. NaN or infinite rewards are an error everywhere, because no comparison with them means anything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
PredictedTies = Literal["wrong", "half", "excluded"]
HumanTies = Literal["excluded", "half", "answer"]
Label = Literal["A>B", "B>A", "A=B=Good", "A=B=Bad"]

_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a bootstrap
_PAIRS_AT_ONCE = 4_000_000  # and that of a rank correlation


# --- pairs -------------------------------------------------------------------------------------------------------------------------


class PairCounts(NamedTuple):
    """The n(n-1)/2 pairs of the images of one prompt, by how the annotators and the scorer order them."""

    correct: int
    """Ordered by the annotators, and by the scorer the same way."""
    wrong: int
    """Ordered by the annotators, and by the scorer the other way."""
    predicted_ties: int
    """Ordered by the annotators, of equal reward."""
    human_ties: int
    """Of equal rank, whatever their rewards."""
    tied_by_both: int = 0
    """Those of ``human_ties`` that the scorer ties too."""

    @property
    def untied(self) -> int:
        """Pairs that the annotators put in an order."""
        return self.correct + self.wrong + self.predicted_ties


def num_pairs(ranks: ArrayLike) -> tuple[int, int]:
    """The number of pairs of images that the annotators put in an order, and of those they tied.

    >>> num_pairs([1, 2, 2, 3])
    (5, 1)
    """
    ranks = _checked_ranks(ranks)
    tied = sum(int(n) * (int(n) - 1) // 2 for n in np.unique(ranks, return_counts=True)[1])
    return len(ranks) * (len(ranks) - 1) // 2 - tied, tied


def count_pairs(rewards: ArrayLike, ranks: ArrayLike, threshold: float = 0.0) -> PairCounts:
    """The pairs of one prompt's images, by outcome. The scorer ties rewards that differ by at most ``threshold``.

    >>> count_pairs([0.9, 0.1, 0.1, 0.5], [1, 2, 3, 3])
    PairCounts(correct=3, wrong=1, predicted_ties=1, human_ties=1, tied_by_both=0)
    """
    rewards, ranks = _checked(rewards, ranks)
    first, second = np.triu_indices(len(ranks), k=1)
    human = np.sign(ranks[second] - ranks[first])  # 1 where the first is better
    difference = rewards[first] - rewards[second]
    predicted = np.where(np.abs(difference) <= threshold, 0, np.sign(difference))
    ordered = human != 0
    return PairCounts(
        correct=int((ordered & (predicted == human)).sum()),
        wrong=int((predicted == -human)[ordered].sum()),
        predicted_ties=int((ordered & (predicted == 0)).sum()),
        human_ties=int((~ordered).sum()),
        tied_by_both=int((~ordered & (predicted == 0)).sum()),
    )


def pairwise_accuracy(counts: PairCounts, predicted_ties: PredictedTies = "wrong", human_ties: HumanTies = "excluded") -> tuple[float, int]:
    """The share of the pairs that the scorer orders as the annotators do, and the number of pairs it is a share of.

    Preference accuracy of Xu et al. (2023, section 3.2 of arXiv 2304.05977). Pairs that the annotators tied do not count, or count half
    a correct one each, or are correct where the scorer ties them too (``answer``: with predicted ties wrong, the acc_eq of Deutsch et al.
    2023, arXiv 2305.14324). Pairs of equal reward are wrong, half correct, or left out. Without pairs the share is NaN.

    Counts summed over prompts give the pooled accuracy (micro: every pair weighs the same); the mean of the accuracies of the prompts is
    the accuracy per prompt (macro: every prompt weighs the same).

    >>> pairwise_accuracy(PairCounts(correct=3, wrong=1, predicted_ties=1, human_ties=1))
    (0.6, 5)
    >>> pairwise_accuracy(PairCounts(correct=3, wrong=1, predicted_ties=1, human_ties=1), predicted_ties="excluded")
    (0.75, 4)
    >>> pairwise_accuracy(PairCounts(correct=3, wrong=1, predicted_ties=1, human_ties=3, tied_by_both=2), human_ties="answer")
    (0.625, 8)
    """
    if predicted_ties not in get_args(PredictedTies):
        raise ValueError(f"predicted_ties must be one of {', '.join(get_args(PredictedTies))}, not {predicted_ties!r}")
    if human_ties not in get_args(HumanTies):
        raise ValueError(f"human_ties must be one of {', '.join(get_args(HumanTies))}, not {human_ties!r}")
    correct = float(counts.correct)
    pairs = counts.correct + counts.wrong
    if predicted_ties != "excluded":
        pairs += counts.predicted_ties
        correct += counts.predicted_ties / 2 if predicted_ties == "half" else 0
    if human_ties != "excluded":
        pairs += counts.human_ties
        correct += counts.human_ties / 2 if human_ties == "half" else counts.tied_by_both
    return (correct / pairs if pairs else float("nan")), pairs


class TieCalibration(NamedTuple):
    """The threshold at which a scorer's ties agree best with those of the annotators."""

    threshold: float
    """Rewards that differ by at most this are tied; the smallest of those that are equally good."""
    accuracy: float
    """The share, in [0, 1], of pairs in which the scorer's order or tie is that of the annotators."""


def calibrate_ties(differences: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None) -> TieCalibration:
    """Accuracy with calibrated ties: acc_eq at the threshold that makes it largest (tie calibration of Deutsch et al. 2023).

    ``differences`` [N]: the reward of a pair's first image minus that of its second. ``outcomes`` [N]: 1 where the annotators put the
    first above, -1 the second, 0 where they tied them. Over the pairs of images of the same prompt this is the "tau" that UnifiedReward
    and VisionReward print for GenAI-Bench, over the pairs of all images the accuracy that VQAScore prints. ``weights`` [N]: how much each
    pair counts; 1 / (its prompt's number of pairs) gives the mean over prompts. The threshold is fitted on the pairs it is measured on:
    where there are few of them the accuracy is too high.

    >>> calibrate_ties([-2, -6, -8, -4, -6, -2], [0, 0, -1, 0, -1, -1])
    TieCalibration(threshold=4.0, accuracy=0.6666666666666666)
    """
    d, outcome = np.asarray(differences, dtype=np.float64), np.asarray(outcomes)
    weight = None if weights is None else np.asarray(weights, dtype=np.float64)
    if d.ndim != 1 or not len(d) or d.shape != outcome.shape or (weight is not None and weight.shape != d.shape):
        shapes = f"{d.shape} differences, {outcome.shape} outcomes" + ("" if weight is None else f", {weight.shape} weights")
        raise ValueError(f"{shapes}: there must be one of each for every pair")
    if not np.isfinite(d).all():
        raise ValueError(f"a difference of rewards is {d[~np.isfinite(d)][0]}; rewards must be finite")
    if not np.isin(outcome, (-1, 0, 1)).all():
        raise ValueError("outcomes are 1 (the first is better), -1 (the second) or 0 (a tie)")
    if weight is not None and not (np.isfinite(weight).all() and weight.min() >= 0 and weight.sum() > 0):
        raise ValueError("weights are finite numbers from 0, of which at least one is larger than 0")
    tied, right = outcome == 0, ((outcome > 0) & (d > 0)) | ((outcome < 0) & (d < 0))
    gap = np.abs(d)
    # A larger threshold makes tied pairs correct and correctly ordered ones wrong, so the best is 0 or the gap of a tied pair.
    thresholds = np.unique(np.append(gap[tied], 0.0))
    of_tied, of_right = (None, None) if weight is None else (weight[tied], weight[right])
    correct = _weight_up_to(thresholds, gap[tied], of_tied) - _weight_up_to(thresholds, gap[right], of_right)
    best = int(correct.argmax())
    ordered, total = (right.sum(), len(d)) if of_right is None or weight is None else (of_right.sum(), weight.sum())
    return TieCalibration(float(thresholds[best]), float((correct[best] + ordered) / total))


def _weight_up_to(thresholds: Floats, gaps: Floats, weights: Floats | None) -> NDArray[Any]:
    """The weight, or without weights the number, of the gaps that are at most each threshold."""
    if weights is None:
        return np.searchsorted(np.sort(gaps), thresholds, side="right")
    order = np.argsort(gaps)
    below: Floats = np.concatenate([[0.0], np.cumsum(weights[order])])
    return below[np.searchsorted(gaps[order], thresholds, side="right")]


# --- verdicts ----------------------------------------------------------------------------------------------------------------------


def label_match(predicted: Sequence[str], human: Sequence[str]) -> float:
    """The share of pairs in which a judge gives the label that the annotators gave: the number of GenAI-Bench (arXiv 2406.04485).

    The four labels are A>B, B>A, A=B=Good and A=B=Bad; an answer of guesses is right in a quarter of them.

    >>> label_match(["A>B", "A=B=Good", "B>A", "A>B"], ["A>B", "A=B=Bad", "B>A", "B>A"])
    0.5
    """
    if len(predicted) != len(human) or not human:
        raise ValueError(f"{len(predicted)} labels of a judge and {len(human)} of annotators: there must be one of each for every pair")
    if (unknown := next((label for label in (*predicted, *human) if label not in get_args(Label)), ...)) is not ...:
        raise ValueError(f"a label is one of {', '.join(get_args(Label))}, not {unknown!r}")
    return sum(a == b for a, b in zip(predicted, human, strict=True)) / len(human)


class PositionBias(NamedTuple):
    """How far a judge's verdicts on pairs depend on which image it is shown first. Shares of the pairs, in [0, 1]."""

    flipped: float
    """The verdict on the two images is another one in the other order."""
    first: float
    """It prefers whichever image is shown first."""
    second: float
    """It prefers whichever image is shown second."""


def position_bias(verdicts: ArrayLike, swapped: ArrayLike) -> PositionBias:
    """``verdicts`` [N] on pairs shown in one order, ``swapped`` [N] on the same pairs in the other.

    1 where the first image shown is better, -1 where the second is, 0 for a tie; so a judge without bias answers the negative.

    >>> position_bias([1, 1, -1, 0], [-1, 1, 1, 1])
    PositionBias(flipped=0.5, first=0.25, second=0.0)
    """
    one, other = np.asarray(verdicts), np.asarray(swapped)
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise ValueError(f"verdicts of shape {one.shape} and {other.shape}: there must be one in each order for every pair")
    if not np.isin([one, other], (-1, 0, 1)).all():
        raise ValueError("verdicts are 1 (the first shown is better), -1 (the second) or 0 (a tie)")
    both = one + other
    return PositionBias(float((both != 0).mean()), float((both == 2).mean()), float((both == -2).mean()))


# --- the best and the worst --------------------------------------------------------------------------------------------------------


def recall_at_k(rewards: ArrayLike, ranks: ArrayLike, k: int) -> float:
    """1 if the image that the annotators put first is among the scorer's top k, else 0 (recall@k of Xu et al. 2023, table 3).

    Where several images are put first, one of them is enough. An image of the same reward as k others is not among the top k: a
    scorer gains nothing by not deciding. NaN where all images are tied: none is first. ``k`` above the number of images is an error.

    >>> recall_at_k([0.2, 0.9, 0.1], [1, 2, 3], k=1), recall_at_k([0.2, 0.9, 0.1], [1, 2, 3], k=2)
    (0.0, 1.0)
    """
    rewards, ranks = _checked(rewards, ranks)
    if not 1 <= k <= len(ranks):
        raise ValueError(f"k must be between 1 and the number of images, {len(ranks)}, not {k}")
    first = ranks == ranks.min()
    if first.all():
        return float("nan")
    return float((rewards[~first] >= rewards[first].max()).sum() < k)


def filter_at_k(rewards: ArrayLike, ranks: ArrayLike, k: int) -> float:
    """1 if the image that the annotators put last is among the scorer's bottom k, else 0 (filter@k of Xu et al. 2023).

    Ties as for ``recall_at_k``.

    >>> filter_at_k([0.2, 0.9, 0.1], [1, 2, 3], k=1)
    1.0
    """
    rewards, ranks = _checked(rewards, ranks)
    return recall_at_k(-rewards, from_worst(ranks), k)


def chance_at_k(ranks: ArrayLike, k: int) -> float:
    """What recall@k is on average for rewards drawn at random: k / n where one image of n is put first. NaN as for ``recall_at_k``.

    Filter@k by chance is this of the ranks counted from the worst.

    >>> chance_at_k([1, 2, 3, 4, 5, 6, 7, 8], k=2), chance_at_k([1, 1, 2, 3], k=1)
    (0.25, 0.5)
    """
    ranks = _checked_ranks(ranks)
    num, first = len(ranks), int((ranks == ranks.min()).sum())
    return 1 - math.comb(num - first, k) / math.comb(num, k) if first < num else float("nan")


def from_worst(ranks: ArrayLike) -> NDArray[np.int64]:
    """The same ranking read from its end: 1 is worst.

    >>> from_worst([1, 2, 2, 4]).tolist()
    [4, 3, 3, 1]
    """
    ranks = _checked_ranks(ranks)
    return ranks.max() + 1 - ranks


# --- rank correlation --------------------------------------------------------------------------------------------------------------


def kendall_tau_b(rewards: ArrayLike, ranks: ArrayLike) -> float:
    """Kendall's tau-b between rewards and human ranks, in [-1, 1]; 1 where both have one order and the same ties.

    (concordant - discordant) / sqrt((pairs - ties in rewards)(pairs - ties in ranks)) (Kendall 1945). NaN where either ties everything.

    >>> kendall_tau_b([0.9, 0.5, 0.1], [1, 2, 3])
    1.0
    """
    rewards, ranks = _checked(rewards, ranks)
    # Every pair is met twice, which cancels out. In blocks of rows, since all pairs of ten thousand images would fill the memory.
    agreeing = human_ordered = ordered = 0
    step = max(1, _PAIRS_AT_ONCE // len(ranks))
    for start in range(0, len(ranks), step):
        human = np.sign(ranks[None, :] - ranks[start : start + step, None])
        predicted = np.sign(rewards[start : start + step, None] - rewards[None, :]).astype(np.int64)
        agreeing += int((human * predicted).sum())
        human_ordered += int(np.count_nonzero(human))
        ordered += int(np.count_nonzero(predicted))
    return agreeing / math.sqrt(human_ordered * ordered) if human_ordered and ordered else float("nan")


def spearman(rewards: ArrayLike, ranks: ArrayLike) -> float:
    """Spearman's rho between rewards and human ranks, in [-1, 1]: Pearson's correlation of the ranks, tied values sharing their mean rank.

    NaN where either ties everything.

    >>> round(spearman([0.9, 0.1, 0.5], [1, 2, 3]), 9)
    0.5
    """
    rewards, ranks = _checked(rewards, ranks)
    return pearson(_mean_ranks(rewards), _mean_ranks(-ranks))


def pearson(rewards: ArrayLike, ratings: ArrayLike) -> float:
    """Pearson's r between rewards and human ratings (both higher for better images), in [-1, 1]. NaN where either is constant.

    >>> round(pearson([0.0, 1.0, 3.0], [1.0, 2.0, 4.0]), 9)
    1.0
    """
    a, b = _finite(rewards), _finite(ratings)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"rewards of shape {a.shape} and ratings of shape {b.shape}: there must be one of each for every image")
    if a.min() == a.max() or b.min() == b.max():  # whose mean need not be exactly it
        return float("nan")
    # Divided by a power of two, which changes no digit: squares of very large or small numbers are out of range.
    a, b = (np.ldexp(values, -int(np.frexp(np.abs(values).max())[1])) for values in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def ranks_of(rewards: ArrayLike) -> NDArray[np.int64]:
    """Rewards as ranks, 1 for the highest, equal rewards sharing one: with them the functions above compare two scorers.

    >>> ranks_of([0.5, 2.0, 0.5, -1.0]).tolist()
    [2, 1, 2, 3]
    """
    ranks: NDArray[np.int64] = np.unique(-np.asarray(rewards, dtype=np.float64), return_inverse=True)[1] + 1
    return ranks


def _mean_ranks(values: NDArray[Any]) -> Floats:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last: Floats = np.cumsum(sizes).astype(np.float64)
    return (last - (sizes - 1) / 2)[group]


# --- probabilities -----------------------------------------------------------------------------------------------------------------


def win_probability(differences: ArrayLike, tie_model: str | None = None, parameter: float = 0.0) -> Floats:
    """P(the first is better) for differences d = r_a - r_b of rewards in the units they were learned in.

    Bradley & Terry (1952): sigmoid(d). With p = exp(r), Davidson (1970): p_a / (p_a + p_b + parameter sqrt(p_a p_b)); Rao & Kupper (1967):
    p_a / (p_a + parameter p_b). P(the second is better) is the same of -d, and P(tie) what remains.

    >>> win_probability([0.0, 2.0]).round(3).tolist()
    [0.5, 0.881]
    >>> float(win_probability(0.0, "davidson", parameter=1.0).round(3))
    0.333
    """
    d = np.asarray(differences, dtype=np.float64)
    if tie_model is None:
        return _sigmoid(d)
    if tie_model == "rao-kupper":
        return _sigmoid(d - np.log(parameter))
    if tie_model != "davidson":
        raise ValueError(f"tie_model must be davidson or rao-kupper, not {tie_model!r}")
    half = np.exp(-np.abs(d) / 2)  # divided through by the larger of p_a and p_b, so that nothing overflows
    probability: Floats = np.where(d >= 0, 1.0, half * half) / (1 + half * half + parameter * half)
    return probability


def uncertain_win_probability(difference: float, std: float) -> float:
    """P(the first is better) where the difference of the rewards is uncertain: the mean of sigmoid(d), d ~ N(difference, std).

    Two rewards that are Gaussians have a difference with the difference of their means, and std = sqrt(std_a^2 + std_b^2). HPSv3 (Ma et
    al. 2025, equation 3) was trained by the likelihood of such preferences. To 1e-3 for any std.

    >>> round(uncertain_win_probability(1.0, 0.0), 4), round(uncertain_win_probability(1.0, 3.0), 4)
    (0.7311, 0.6132)
    """
    if not (math.isfinite(difference) and 0 <= std < math.inf):
        raise ValueError(f"a difference of {difference} with a standard deviation of {std}: both are finite, and the latter is at least 0")
    steps = np.linspace(-8.0, 8.0, 4001)
    weights = np.exp(-(steps**2) / 2)
    return float((weights * _sigmoid(difference + std * steps)).sum() / weights.sum())


def _sigmoid(x: Floats) -> Floats:
    tail = np.exp(-np.abs(x))
    probability: Floats = np.where(x >= 0, 1.0, tail) / (1 + tail)
    return probability


def log_loss(probabilities: ArrayLike, outcomes: ArrayLike) -> Floats:
    """-(y log p + (1 - y) log(1 - p)) of each prediction [N]; the mean of it is the log loss (cross-entropy, in nats).

    Outcomes are in [0, 1]: 1 where the predicted event happened, shares for soft labels. As in scikit-learn, probabilities are kept the
    machine's epsilon away from 0 and 1, so that one prediction of probability 1 that was wrong costs 36 and not infinity.

    >>> log_loss([0.5, 0.9], [1, 1]).round(4).tolist()
    [0.6931, 0.1054]
    """
    p, y = _checked_probabilities(probabilities, outcomes)
    epsilon = np.finfo(np.float64).eps
    p = np.clip(p, epsilon, 1 - epsilon)
    loss: Floats = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return loss


class CalibrationBin(NamedTuple):
    """The predictions whose probability falls into one interval."""

    low: float
    high: float
    num: int
    probability: float
    """The mean predicted probability; NaN in an empty bin."""
    frequency: float
    """How often the predicted event happened; NaN in an empty bin."""


def calibration(
    probabilities: ArrayLike, outcomes: ArrayLike, num_bins: int = 10, low: float = 0.0, high: float = 1.0
) -> list[CalibrationBin]:
    """Predictions in bins of equal width over [low, high], with predicted and observed frequency. A value on an edge is in the lower bin.

    >>> [tuple(b) for b in calibration([0.1, 0.2, 0.9], [0, 1, 1], num_bins=2)]
    [(0.0, 0.5, 2, 0.15000000000000002, 0.5), (0.5, 1.0, 1, 0.9, 1.0)]
    """
    p, y = _checked_probabilities(probabilities, outcomes)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    if p.size and (p.min() < low or p.max() > high):
        raise ValueError(f"probabilities go from {p.min():.4g} to {p.max():.4g}, outside of the bins' range [{low}, {high}]")
    edges = np.linspace(low, high, num_bins + 1)
    index = np.searchsorted(edges[1:-1], p)
    num = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        probability = np.bincount(index, p, num_bins) / num
        frequency = np.bincount(index, y, num_bins) / num
    rows = zip(edges[:-1], edges[1:], num, probability, frequency, strict=True)
    return [CalibrationBin(float(a), float(b), int(n), float(mean), float(share)) for a, b, n, mean, share in rows]


def expected_calibration_error(bins: list[CalibrationBin]) -> float:
    """The mean distance between predicted probability and observed frequency, weighted by bin size, in [0, 1] (Guo et al. 2017).

    >>> round(expected_calibration_error(calibration([0.1, 0.2, 0.9], [0, 1, 1], num_bins=2)), 6)
    0.266667
    """
    total = sum(b.num for b in bins)
    return sum(b.num * abs(b.frequency - b.probability) for b in bins if b.num) / total if total else float("nan")


# --- over prompts ------------------------------------------------------------------------------------------------------------------


def weighted_mean(values: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """The mean over prompts [P, ...] -> [...]. A prompt whose value is NaN (the metric is not defined there) is left out.

    >>> float(weighted_mean([1.0, 0.0, float("nan")], [3, 1, 5]))
    0.75
    """
    totals, weight = _totals(values, weights)
    return _ratio(totals.sum(axis=0), weight.sum(axis=0))


def bootstrap(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    groups: Sequence[Any] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Floats:
    """Weighted means of prompts drawn with replacement (Efron 1979): [P] -> [R], [P, M] -> [R, M] with the same draws for all M.

    ``groups`` [P] names what is drawn together, such as several rankings of one prompt. NaN values are left out; a resample in which the
    metric is nowhere defined is NaN. The same seed gives the same draws.

    >>> bootstrap([0.0, 1.0], num_resamples=4).shape
    (4,)
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, not {num_resamples}")
    totals, weight = _totals(values, weights)
    if not len(totals):
        raise ValueError("no prompts to resample")
    if groups is not None:
        place = {group: i for i, group in enumerate(sorted(set(groups)))}  # an array of strings is as wide as the longest prompt
        index = np.array([place[group] for group in groups])
        if len(index) != len(totals):
            raise ValueError(f"{len(index)} groups for {len(totals)} values: one each is needed")
        totals, weight = _sum_by(index, totals), _sum_by(index, weight)
    # A resample's weighted mean is (counts @ totals) / (counts @ weights), counts being how often each prompt is drawn: with both side by
    # side, one matrix product serves all columns.
    flat = np.concatenate([totals.reshape(len(totals), -1), weight.reshape(len(weight), -1)], axis=1)
    sums = np.concatenate([draws @ flat for draws in _draws(len(flat), num_resamples, seed)])
    half = flat.shape[1] // 2
    return _ratio(sums[:, :half], sums[:, half:]).reshape(num_resamples, *totals.shape[1:])


def interval(samples: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples [R]; NaN samples are left out.

    >>> interval([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.5)
    (2.0, 4.0)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    sampled = np.asarray(samples, dtype=np.float64)
    sampled = sampled[~np.isnan(sampled)]
    if not len(sampled):
        return float("nan"), float("nan")
    low, high = np.quantile(sampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Interval:
    """A mean over prompts, with the ends of its interval from resampled prompts."""

    value: float | None
    """None where no prompt has a value."""
    low: float | None
    """None where the metric has no useful interval, as ``high`` then is."""
    high: float | None
    num_prompts: int
    """The prompts with a value."""


@dataclass(frozen=True)
class Difference:
    """How much higher the mean of ``a`` is than that of ``b``, over the same prompts and the same resamples."""

    metric: str
    a: str
    b: str
    value: float
    low: float
    high: float
    p_value: float
    """Two-sided, in (0, 1]; see ``two_sided_p``."""
    p_holm: float
    """The same, adjusted for the number of pairs tested (Holm 1979)."""


def differences(metric: str, values: Mapping[str, float], samples: Mapping[str, ArrayLike], confidence: float = 0.95) -> list[Difference]:
    """Each mean minus each that comes after it, with the p-values adjusted for the number of these pairs.

    ``samples``: for each name the bootstrap samples [R] of its mean; the r-th are from the same draw of prompts for all names, so that what
    makes a prompt hard for all cancels out. Raises ``ValueError`` where a pair has no sample in common.

    >>> [row] = differences("accuracy", {"a": 0.75, "b": 0.25}, {"a": [0.5, 1.0, 0.75], "b": [0.25, 0.5, 0.0]}, confidence=0.5)
    >>> row.value, row.low, row.high, row.p_value
    (0.5, 0.375, 0.625, 0.5)
    """
    pairs = list(itertools.combinations(values, 2))
    of_pairs = [np.asarray(samples[a], dtype=np.float64) - np.asarray(samples[b], dtype=np.float64) for a, b in pairs]
    p_values = [two_sided_p(sampled) for sampled in of_pairs]
    return [
        Difference(metric, a, b, values[a] - values[b], *interval(sampled, confidence), p_value, adjusted)
        for (a, b), sampled, p_value, adjusted in zip(pairs, of_pairs, p_values, holm(p_values), strict=True)
    ]


def two_sided_p(samples: ArrayLike) -> float:
    """The p-value of a difference, from bootstrap samples [R] of it: twice the share of samples on the far side of 0; in [2 / (R + 1), 1].

    One is added to both counts (Davison & Hinkley 1997, section 4.2), because R resamples cannot show that a probability is 0. NaN samples
    are left out; without any, ``ValueError``.

    >>> two_sided_p([0.25, 0.5, 0.75])
    0.5
    """
    sampled = np.asarray(samples, dtype=np.float64)
    sampled = sampled[~np.isnan(sampled)]
    if not len(sampled):
        raise ValueError("no prompt has a value for both")
    beyond = min((sampled <= 0).sum(), (sampled >= 0).sum())
    return min(1.0, 2 * (float(beyond) + 1) / (len(sampled) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, made larger so that the chance of one false finding or more stays what one test's was (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _totals(values: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats]:
    """weight * value and weight, with the weight of undefined values 0."""
    value = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(value) if weights is None else np.asarray(weights, dtype=np.float64)
    if value.shape != weight.shape:
        raise ValueError(f"values of shape {value.shape} and weights of shape {weight.shape}: they must be equal")
    defined = ~np.isnan(value)
    return np.where(defined, value, 0.0) * weight, weight * defined


def _ratio(totals: Floats, weight: Floats) -> Floats:
    return np.divide(totals, weight, out=np.full_like(totals, np.nan, dtype=np.float64), where=weight != 0)


def _sum_by(index: NDArray[np.intp], values: Floats) -> Floats:
    sums = np.zeros((int(index.max()) + 1, *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums


def _draws(num: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of ``num`` things is drawn, [r, num] for parts of the resamples."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // num)
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        # Row r draws from the numbers r * num to (r + 1) * num - 1, so that one bincount counts all rows.
        drawn = generator.integers(num, size=(rows, num)) + np.arange(rows)[:, None] * num
        yield np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num).astype(np.float64)


# --- validation ---------------------------------------------------------------------------------------------------------------


def _checked_ranks(ranks: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(ranks)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"ranks are a list of at least two numbers, one for each image, not of shape {array.shape}")
    numbers = array.astype(np.float64)
    if not (np.isfinite(numbers).all() and (numbers == np.round(numbers)).all() and numbers.min() >= 1):
        raise ValueError(f"ranks are integers from 1, 1 for the best, not {array.tolist()}")
    return numbers.astype(np.int64)


def _checked(rewards: ArrayLike, ranks: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    values, human = np.asarray(rewards, dtype=np.float64), _checked_ranks(ranks)
    if values.shape != human.shape:
        raise ValueError(f"rewards of shape {values.shape} and ranks of shape {human.shape}: there must be one of each for every image")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"reward {place} is {values[place]}; rewards must be finite")
    return values, human


def _checked_probabilities(probabilities: ArrayLike, outcomes: ArrayLike) -> tuple[Floats, Floats]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"probabilities of shape {p.shape} and outcomes of shape {y.shape}: they must be lists of one length")
    for name, values in (("probabilities", p), ("outcomes", y)):
        if not ((values >= 0) & (values <= 1)).all():  # False for NaN too
            raise ValueError(f"{name} must be in [0, 1], without NaN")
    return p, y


# --- generators --------------------------------------------------------------------------------------------------------------------


def expected_maximum(rewards: ArrayLike) -> Floats:
    """The expected best reward of n of the N images, drawn without replacement, for n = 1..N: [..., N] -> [..., N].

    Best-of-n without bias: every subset of n images weighs the same, so the k-th smallest reward counts C(k-1, n-1) / C(N, n) (the
    counting of pass@k, Chen et al. 2021, arXiv 2107.03374). The first is the mean, the last the maximum.

    >>> expected_maximum([0.0, 3.0, 6.0]).tolist()
    [3.0, 5.0, 6.0]
    """
    ascending = np.sort(_finite(rewards), axis=-1)
    num = ascending.shape[-1]
    below = np.arange(num)
    weight = np.full(num, 1 / num)
    expected = np.empty_like(ascending)
    for n in range(1, num + 1):
        expected[..., n - 1] = ascending @ weight
        if n < num:  # from C(k-1, n-1) / C(N, n) to the next n, without large numbers
            weight = weight * (below - n + 1) / n * (n + 1) / (num - n)
    return expected


def win_rate(rewards_a: ArrayLike, rewards_b: ArrayLike) -> Floats:
    """How often one image of a has a higher reward than one of b: the share of all pairs, equal rewards counting half.

    [..., n] and [..., m] -> [...].

    The probability of superiority (the Mann-Whitney statistic over its largest value); the usual win rate is this with one image each.

    >>> float(win_rate([1.0, 3.0], [2.0, 1.0]))
    0.625
    """
    signs: Floats = np.sign(_finite(rewards_a)[..., :, None] - _finite(rewards_b)[..., None, :])
    return (1 + signs.mean(axis=(-2, -1))) / 2


def _finite(rewards: ArrayLike) -> Floats:
    values = np.asarray(rewards, dtype=np.float64)
    if not values.ndim or not values.shape[-1]:
        raise ValueError(f"rewards are a list of at least one number, not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"a reward is {values[~np.isfinite(values)][0]}; rewards must be finite")
    return values
