"""Agreement between scorers, with the human rankings, and among annotators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from image_reward import metrics
from image_reward.comparisons import normalized_prompt
from image_reward.evaluation.estimates import none_if_nan, shared_weights
from image_reward.images import unique_images
from image_reward.types import Comparison

HUMAN = "human"
"""The name of the human rankings among those of the scorers."""

Matrix = list[list[Union[float, None]]]


@dataclass(frozen=True)
class Agreement:
    """Symmetric matrices over all pairs of names. None on the diagonal, and where a value is not defined."""

    names: list[str]
    """``HUMAN``, then the scorers."""
    same_order: Matrix
    """The share, in [0, 1], of the pairs that the annotators put in an order in which both give the same order, or both equal rewards."""
    kendall_tau_b: Matrix
    """The mean over prompts."""
    spearman: Matrix
    """The mean over prompts."""


def agreement(rewards: Mapping[str, Sequence[Sequence[float]]], comparisons: Sequence[Comparison]) -> Agreement:
    """``rewards``: scorer -> for each comparison, the rewards of its images."""
    names = [HUMAN, *rewards]
    prompts = [normalized_prompt(c.prompt) for c in comparisons]
    # of each name: for each comparison, values (higher is better) and ranks (1 is best)
    values = [[-np.asarray(c.ranks, dtype=np.float64) for c in comparisons]]
    values += [[np.asarray(of_prompt, dtype=np.float64) for of_prompt in own] for own in rewards.values()]
    ranks = [[np.asarray(c.ranks) for c in comparisons], *([metrics.ranks_of(of_prompt) for of_prompt in own] for own in values[1:])]
    signs = np.stack([np.concatenate([_orders(of_prompt) for of_prompt in own]) for own in values])
    signs = signs[:, signs[0] != 0]
    num = len(names)
    same, kendall, spearman = (np.full((num, num), np.nan) for _ in range(3))
    for a, b in itertools.combinations(range(num), 2):
        same[a, b] = same[b, a] = (signs[a] == signs[b]).mean() if signs.size else np.nan
        for matrix, correlation in ((kendall, metrics.kendall_tau_b), (spearman, metrics.spearman)):
            of_prompts = [correlation(x, y) for x, y in zip(values[b], ranks[a], strict=True)]
            weights = shared_weights(prompts, of_prompts, np.ones(len(prompts)))
            matrix[a, b] = matrix[b, a] = metrics.weighted_mean(of_prompts, weights)
    return Agreement(names, _listed(same), _listed(kendall), _listed(spearman))


def _orders(values: metrics.Floats) -> metrics.Floats:
    """For each pair of images 1 where the first is better, -1 where the second is, 0 where they are equal."""
    first, second = np.triu_indices(len(values), k=1)
    return np.sign(values[first] - values[second])


def _listed(matrix: metrics.Floats) -> Matrix:
    return [[none_if_nan(value) for value in row] for row in matrix]


# --- annotators ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Annotators:
    """Several rankings of the same prompt and images."""

    shares: list[float]
    """For each comparison, the share of its pairs in which two annotators give the same order; NaN where it was not ranked twice, and for
    all but the first of the comparisons that are rankings of the same images."""
    num_pairs: list[int]
    """The number of pairs behind each share: two images that two annotators both put in an order."""
    num_rankings: int
    alpha: float | None
    """Krippendorff's alpha, ordinal: 1 is perfect agreement, 0 is chance. Ties count."""


def annotators(comparisons: Sequence[Comparison]) -> Annotators | None:
    """How well annotators agree, where prompts and images were ranked more than once; None where none were.

    A comparison's ``annotations`` stand for it where it has them. Comparisons with the same prompt, ignoring spelling, and the same
    images count together.
    """
    groups = _rankings(comparisons)
    shares, num_pairs = [math.nan] * len(comparisons), [0] * len(comparisons)
    repeated = {place: rankings for place, rankings in groups.items() if len(rankings) > 1}
    if not repeated:
        return None
    for place, rankings in repeated.items():
        orders = np.stack([_orders(-np.asarray(ranks, dtype=np.float64)) for ranks in rankings])
        num_same = num_ordered = 0
        for a, b in itertools.combinations(orders, 2):
            both = (a != 0) & (b != 0)
            num_ordered += int(both.sum())
            num_same += int((a == b)[both].sum())
        if num_ordered:
            shares[place], num_pairs[place] = num_same / num_ordered, num_ordered
    return Annotators(shares, num_pairs, sum(map(len, repeated.values())), krippendorff_alpha(list(repeated.values())))


def _rankings(comparisons: Sequence[Comparison]) -> dict[int, list[tuple[int, ...]]]:
    """The first comparison of the same prompt and images -> all rankings of them, in the order of its images."""
    index = iter(unique_images([image for c in comparisons for image in c.images])[1])
    first: dict[tuple[str, tuple[int, ...]], tuple[int, list[int]]] = {}
    groups: dict[int, list[tuple[int, ...]]] = {}
    for place, c in enumerate(comparisons):
        images = list(itertools.islice(index, len(c.images)))
        rankings = c.annotations or (c.ranks,)
        if len(set(images)) < len(images):  # copies: other comparisons do not show which copy a rank belongs to
            groups[place] = list(rankings)
            continue
        start, order = first.setdefault((normalized_prompt(c.prompt), tuple(sorted(images))), (place, images))
        groups.setdefault(start, []).extend(tuple(ranks[images.index(image)] for image in order) for ranks in rankings)
    return groups


def krippendorff_alpha(groups: Sequence[Sequence[Sequence[int]]]) -> float | None:
    """Krippendorff's alpha for ordinal data (Krippendorff 2011), an image being the unit and its rank the value.

    ``groups``: for each prompt the rankings of its images, one for each annotator. Alpha does not depend on who the annotators are. None
    where it is not defined because all ranks are equal, or the library `krippendorff` is not installed.
    """
    try:
        import krippendorff
    except ImportError:
        return None
    table = np.full((max(map(len, groups)), sum(len(rankings[0]) for rankings in groups)), np.nan)
    start = 0
    for rankings in groups:
        table[: len(rankings), start : start + len(rankings[0])] = rankings
        start += len(rankings[0])
    if len(np.unique(table[~np.isnan(table)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal"))
