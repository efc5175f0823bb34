"""Agreement with human ratings over all images at once: ratings on one scale compare the images of different prompts too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from image_reward import metrics
from image_reward.comparisons import normalized_prompt
from image_reward.errors import ComparisonError
from image_reward.evaluation.estimates import none_if_nan
from image_reward.images import unique_images
from image_reward.metrics import Floats
from image_reward.types import Comparison

MOST_IMAGES = 10_000
"""Of which all pairs are sorted, for calibrated ties; their number grows with the square."""


@dataclass(frozen=True)
class OverImages:
    """One scorer's rewards of all images against their mean ratings, not grouped by prompt. None where a value is not defined."""

    num_images: int
    """A prompt with an image counts once, whoever rated it; images inside tables are one for each row."""
    pearson: float | None
    kendall_tau_b: float | None
    spearman: float | None
    accuracy_ties_calibrated: float | None
    """Over the pairs of all images, in [0, 1]; see ``metrics.calibrate_ties``. None above ``MOST_IMAGES``."""
    tie_threshold: float | None


def over_images(rewards: Sequence[Sequence[Sequence[float]]], comparisons: Sequence[Comparison]) -> list[OverImages] | None:
    """``rewards``: of each scorer, for each comparison, those of its images.

    None where not all comparisons carry ratings, or all images are the same. Raises ``ComparisonError`` that names a comparison whose
    ratings are not one finite number for each image.
    """
    if not all(c.ratings for c in comparisons):
        return None
    for comparison in comparisons:
        if len(comparison.ratings) != len(comparison.images) or not all(map(math.isfinite, comparison.ratings)):
            raise ComparisonError(f"the ratings of {comparison.id} must be one finite number for each image, not {comparison.ratings}")
    which = unique_images([image for c in comparisons for image in c.images])[1]
    prompts = [normalized_prompt(c.prompt) for c in comparisons for _ in c.images]
    places: dict[tuple[str, int], int] = {}
    index = np.array([places.setdefault(key, len(places)) for key in zip(prompts, which, strict=True)])
    if len(places) < 2:
        return None
    ratings = _means(index, [c.ratings for c in comparisons])
    return [_measured(_means(index, of_scorer), ratings) for of_scorer in rewards]


def _means(index: np.ndarray, values: Sequence[Sequence[float]]) -> Floats:
    """The mean of the values of each image, whose place ``index`` says."""
    flat = np.array([value for row in values for value in row], dtype=np.float64)
    means: Floats = np.bincount(index, flat) / np.bincount(index)
    # Means of equal values can differ in their last digit, which would break ties.
    lowest, highest = (np.full(len(means), sign * np.inf) for sign in (1, -1))
    np.minimum.at(lowest, index, flat)
    np.maximum.at(highest, index, flat)
    return np.where(lowest == highest, lowest, means)


def _measured(rewards: Floats, ratings: Floats) -> OverImages:
    ranks = metrics.ranks_of(ratings)
    accuracy = threshold = None
    if len(ratings) <= MOST_IMAGES:
        threshold, accuracy = metrics.calibrate_ties(*_all_pairs(rewards, ranks))
    return OverImages(
        num_images=len(ratings),
        pearson=none_if_nan(metrics.pearson(rewards, ratings)),
        kendall_tau_b=none_if_nan(metrics.kendall_tau_b(rewards, ranks)),
        spearman=none_if_nan(metrics.spearman(rewards, ranks)),
        accuracy_ties_calibrated=accuracy,
        tie_threshold=threshold,
    )


def _all_pairs(rewards: Floats, ranks: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int8]]:
    """The differences of rewards and the outcomes of all pairs, row by row: indices of fifty million pairs would take a gigabyte."""
    num = len(ranks)
    differences, outcomes = np.empty(num * (num - 1) // 2), np.empty(num * (num - 1) // 2, dtype=np.int8)
    start = 0
    for i in range(num - 1):
        row = slice(start, start + num - 1 - i)
        np.subtract(rewards[i], rewards[i + 1 :], out=differences[row])
        outcomes[row] = np.sign(ranks[i + 1 :] - ranks[i])
        start = row.stop
    return differences, outcomes
