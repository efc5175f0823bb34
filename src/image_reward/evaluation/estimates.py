"""Means over prompts with their intervals: named columns with one number per prompt, all averaged over the same resamples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from image_reward import metrics
from image_reward.metrics import Difference, Floats, Interval

Name = TypeVar("Name", bound=Hashable)


class PromptColumns(Generic[Name]):
    """Named columns of one number for each of P prompts."""

    def __init__(self) -> None:
        self._columns: dict[Name, tuple[Floats, Floats]] = {}
        self._per_prompt: set[Name] = set()

    def add(self, name: Name, values: ArrayLike, weights: ArrayLike | None = None, per_prompt: bool = False) -> None:
        """``values`` [P], NaN for a row that has none. ``weights`` [P]: the weight of each in the mean; by default 1. ``per_prompt``:
        the rows of one prompt have one weight together, by which they are averaged first."""
        column = np.asarray(values, dtype=np.float64)
        self._columns[name] = column, np.ones_like(column) if weights is None else np.asarray(weights, dtype=np.float64)
        if per_prompt:
            self._per_prompt.add(name)

    def __getitem__(self, name: Name) -> Floats:
        return self._columns[name][0]

    def means(self, prompts: Sequence[str], num_resamples: int, confidence: float, seed: int) -> Means[Name]:
        """The weighted mean of each column. ``prompts`` [P]: rows of one prompt are drawn together, since they are not independent.

        All columns are resampled as one matrix [P, columns], not one by one: a resample then draws the same prompts for all of them, which
        is what makes any two columns paired, and costs one matrix product.
        """
        values = np.stack([column for column, _ in self._columns.values()], axis=1)
        weights = np.stack(
            [
                shared_weights(prompts, column, weight) if name in self._per_prompt else weight
                for name, (column, weight) in self._columns.items()
            ],
            axis=1,
        )
        samples = metrics.bootstrap(values, weights, groups=prompts, num_resamples=num_resamples, seed=seed)
        names = list(self._columns)
        return Means(
            values=dict(zip(names, metrics.weighted_mean(values, weights).tolist(), strict=True)),
            samples=dict(zip(names, samples.T, strict=True)),
            num_prompts={name: self._num_prompts(name, prompts) for name in names},
            confidence=confidence,
        )

    def _num_prompts(self, name: Name, prompts: Sequence[str]) -> int:
        defined = np.flatnonzero(~np.isnan(self._columns[name][0])).tolist()
        return len({prompts[row] for row in defined}) if name in self._per_prompt else len(defined)


def shared_weights(prompts: Sequence[str], values: ArrayLike, weights: ArrayLike) -> Floats:
    """Weights [P] divided by their sum over the rows of the same prompt; 0 where there is no value.

    >>> shared_weights(["a", "a", "b", "b"], [1.0, 0.0, 1.0, float("nan")], [1, 3, 5, 7]).tolist()
    [0.25, 0.75, 1.0, 0.0]
    """
    weight = np.where(np.isnan(np.asarray(values, dtype=np.float64)), 0.0, np.asarray(weights, dtype=np.float64))
    places: dict[str, int] = {}
    index = np.array([places.setdefault(prompt, len(places)) for prompt in prompts])
    total = np.bincount(index, weight)[index]
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


@dataclass(frozen=True)
class Means(Generic[Name]):
    """The means of columns, and of their resamples."""

    values: dict[Name, float]
    """NaN for a column without a number."""
    samples: dict[Name, Floats]
    """The means [R] of the resamples; element r of every column comes from the same draw of prompts."""
    num_prompts: dict[Name, int]
    """The number of rows with a number; of a column per prompt, that of prompts."""
    confidence: float
    """The share of the resamples that an interval covers, in (0, 1)."""

    def interval(self, name: Name) -> Interval:
        low, high = metrics.interval(self.samples[name], self.confidence)
        return Interval(none_if_nan(self.values[name]), none_if_nan(low), none_if_nan(high), self.num_prompts[name])

    def differences(self, metric: str, names: Mapping[str, Name]) -> list[Difference]:
        """Each mean minus each after it. ``names``: the name in the result -> its column. Empty where one of them has no number."""
        values = {label: self.values[name] for label, name in names.items()}
        if any(map(math.isnan, values.values())):
            return []
        return metrics.differences(metric, values, {label: self.samples[name] for label, name in names.items()}, self.confidence)


def none_if_nan(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else float(value)
