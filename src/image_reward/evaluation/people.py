"""How well a scorer agrees with people: its rewards against human rankings."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np

from image_reward import metrics
from image_reward.comparisons import normalized_prompt
from image_reward.errors import ComparisonError, LongPromptWarning
from image_reward.images import unique_images
from image_reward.metrics import CalibrationBin, HumanTies, PredictedTies
from image_reward.scorers import Scorer
from image_reward.types import Comparison

Rewards = Union[Sequence[Sequence[float]], Mapping[str, Sequence[float]]]

_TIES_IN_WORDS = {
    "predicted wrong": "a pair of equal reward counts as wrong",
    "predicted half": "a pair of equal reward counts half",
    "predicted excluded": "pairs of equal reward are left out",
    "human excluded": "pairs that people tied are left out",
    "human half": "pairs that people tied count half, whatever the scorer says",
}


@dataclass(frozen=True)
class Estimate:
    """A metric over prompts."""

    value: float | None
    """None where no prompt has it."""
    low: float | None
    """The interval's ends, from resampled prompts; None where the metric has no useful interval."""
    high: float | None
    num_prompts: int
    """The prompts it rests on: those for which it is defined."""


@dataclass(frozen=True)
class PromptResult:
    """What came of one comparison. Metrics are None where they are not defined."""

    id: str
    prompt: str
    num_images: int
    rewards: list[float]
    ranks: list[int]
    num_untied_pairs: int
    num_tied_pairs: int
    num_predicted_ties: int
    pairwise_accuracy: float | None
    kendall_tau_b: float | None
    spearman: float | None
    log_loss: float | None
    """The mean over its untied pairs."""
    recall_at: dict[int, float | None]
    filter_at: dict[int, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Flat: ``recall_at`` becomes the columns recall@1, …"""
        row = asdict(self)
        for name in ("recall", "filter"):
            row |= {f"{name}@{k}": value for k, value in row.pop(f"{name}_at").items()}
        return row


@dataclass(frozen=True)
class Evaluation:
    """A scorer measured against people."""

    name: str
    """Of the scorer, or of the file of rewards."""
    num_prompts: int
    """Comparisons: a prompt with its ranked images counts once for each time it was ranked."""
    num_distinct_prompts: int
    num_images: int
    num_untied_pairs: int
    num_tied_pairs: int
    num_predicted_ties: int
    """Pairs that people ordered and whose rewards are equal."""
    treatment_of_ties: str
    metrics: dict[str, Estimate]
    calibration: list[CalibrationBin]
    """Over untied pairs: how sure the scorer is of the image it puts first, and how often people agree."""
    confidence: float
    num_resamples: int
    seed: int
    per_prompt: list[PromptResult]

    def as_dict(self, per_prompt: bool = True) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        found = asdict(self) | {"calibration": [_without_nan(b._asdict()) for b in self.calibration]}
        found["per_prompt"] = [result.as_dict() for result in self.per_prompt]
        if not per_prompt:
            del found["per_prompt"]
        return found


def evaluate(
    scorer: Scorer[Any] | Rewards,
    comparisons: Sequence[Comparison],
    *,
    ks: Sequence[int] = (1, 2, 4),
    predicted_ties: PredictedTies = "wrong",
    human_ties: HumanTies = "excluded",
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    num_bins: int = 10,
    name: str = "",
    on_image: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a scorer, or rewards computed earlier, against human rankings.

    ``scorer``: a scorer; or rewards, as a list aligned with ``comparisons`` or a mapping from their ids.

    The metrics, each with an interval from bootstrapping prompts (rankings of the same prompt are drawn together):

    - ``pairwise_accuracy_pooled`` (every pair weighs the same) and ``pairwise_accuracy_per_prompt`` (every prompt weighs the same). Ties
      are treated as ``predicted_ties`` and ``human_ties`` say; see ``metrics.pairwise_accuracy``.
    - ``recall@k`` and ``filter@k`` for each k, over the prompts with more than k images: with k images or fewer the answer is known.
    - ``kendall_tau_b`` and ``spearman``, means over prompts.
    - ``log_loss`` of the probability that ``compare`` gives to what people said, and ``expected_calibration_error``, over the pairs that
      people ordered: P(a better | no tie). For rewards that come without a scorer the probability is sigmoid(a - b). A resampled
      calibration error is larger than the true one, so it gets no interval.
    - ``log_loss_with_ties``, where the scorer has a fitted tie parameter: the same over all pairs, ties being a third outcome.

    Raises ``ValueError`` for no comparisons or no such k, ``ComparisonError`` that names prompts or images without a finite reward, and
    whatever the scorer raises for an image.
    """
    if not comparisons:
        raise ValueError("there are no comparisons to evaluate on")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks are integers from 1, not {list(ks)}")
    found, name = (score_comparisons(scorer, comparisons, on_image), name or scorer.name) if isinstance(scorer, Scorer) else (scorer, name)
    rewards = _aligned(found, comparisons)
    chance = scorer.win_probability if isinstance(scorer, Scorer) else metrics.win_probability
    has_ties = isinstance(scorer, Scorer) and scorer.tie is not None

    pairs = [_Pairs.of(values, comparison.ranks, chance, has_ties) for values, comparison in zip(rewards, comparisons, strict=True)]
    columns: dict[str, list[float]] = {}  # metric -> its value for each prompt
    weights: dict[str, list[int]] = {}  # for pooled metrics, the pairs that each value stands for
    accuracies = [metrics.pairwise_accuracy(p.counts, predicted_ties, human_ties) for p in pairs]
    columns["pairwise_accuracy_pooled"] = columns["pairwise_accuracy_per_prompt"] = [accuracy for accuracy, _ in accuracies]
    weights["pairwise_accuracy_pooled"] = [num for _, num in accuracies]
    for prefix, at_k in (("recall", metrics.recall_at_k), ("filter", metrics.filter_at_k)):
        for k in ks:
            columns[f"{prefix}@{k}"] = [
                at_k(values, c.ranks, k) if len(values) > k else math.nan for values, c in zip(rewards, comparisons, strict=True)
            ]
    columns["kendall_tau_b"] = [metrics.kendall_tau_b(values, c.ranks) for values, c in zip(rewards, comparisons, strict=True)]
    columns["spearman"] = [metrics.spearman(values, c.ranks) for values, c in zip(rewards, comparisons, strict=True)]
    columns["log_loss"] = [_mean(p.losses) for p in pairs]
    weights["log_loss"] = [len(p.losses) for p in pairs]
    if has_ties:
        columns["log_loss_with_ties"] = [_mean(p.losses_with_ties) for p in pairs]
        weights["log_loss_with_ties"] = [len(p.losses_with_ties) for p in pairs]

    keys = [normalized_prompt(c.prompt) for c in comparisons]
    estimates = _estimates(columns, weights, keys, num_resamples, confidence, seed)
    bins = metrics.calibration(
        np.concatenate([p.sureness for p in pairs]), np.concatenate([p.agreement for p in pairs]), num_bins, low=0.5, high=1.0
    )
    error = metrics.expected_calibration_error(bins)
    estimates["expected_calibration_error"] = Estimate(_or_none(error), None, None, sum(p.counts.untied > 0 for p in pairs))
    results = [
        PromptResult(
            id=c.id,
            prompt=c.prompt,
            num_images=len(c.images),
            rewards=values,
            ranks=list(c.ranks),
            num_untied_pairs=p.counts.untied,
            num_tied_pairs=p.counts.human_ties,
            num_predicted_ties=p.counts.predicted_ties,
            pairwise_accuracy=_or_none(accuracies[i][0]),
            kendall_tau_b=_or_none(columns["kendall_tau_b"][i]),
            spearman=_or_none(columns["spearman"][i]),
            log_loss=_or_none(columns["log_loss"][i]),
            recall_at={k: _or_none(columns[f"recall@{k}"][i]) for k in ks},
            filter_at={k: _or_none(columns[f"filter@{k}"][i]) for k in ks},
        )
        for i, (c, values, p) in enumerate(zip(comparisons, rewards, pairs, strict=True))
    ]
    return Evaluation(
        name=name,
        num_prompts=len(comparisons),
        num_distinct_prompts=len(set(keys)),
        num_images=sum(len(c.images) for c in comparisons),
        num_untied_pairs=sum(p.counts.untied for p in pairs),
        num_tied_pairs=sum(p.counts.human_ties for p in pairs),
        num_predicted_ties=sum(p.counts.predicted_ties for p in pairs),
        treatment_of_ties=f"{_TIES_IN_WORDS[f'human {human_ties}']}; {_TIES_IN_WORDS[f'predicted {predicted_ties}']}",
        metrics=estimates,
        calibration=bins,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        per_prompt=results,
    )


@dataclass(frozen=True)
class _Pairs:
    """The pairs of one comparison, as probabilities."""

    counts: metrics.PairCounts
    sureness: metrics.Floats
    """For each untied pair: the probability, in [0.5, 1], of the order that the scorer predicts."""
    agreement: metrics.Floats
    """Whether people agree: 1 or 0; 0.5 where the scorer predicts no order."""
    losses: metrics.Floats
    losses_with_ties: metrics.Floats

    @classmethod
    def of(cls, rewards: list[float], ranks: Sequence[int], chance: Callable[[Any], metrics.Floats], has_ties: bool) -> _Pairs:
        values, human = np.asarray(rewards), np.asarray(ranks)
        first, second = np.triu_indices(len(values), k=1)
        swap = human[first] > human[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)  # what people prefer comes first
        untied = human[first] != human[second]
        win, lose = chance(values[first] - values[second]), chance(values[second] - values[first])
        right = (win / (win + lose))[untied]  # P(what people said | no tie)
        losses_with_ties = (
            metrics.log_loss(np.where(untied, win, np.clip(1 - win - lose, 0, 1)), np.ones(len(win))) if has_ties else win[:0]
        )
        return cls(
            counts=metrics.count_pairs(values, human),
            sureness=np.maximum(right, 1 - right),
            agreement=np.where(right == 0.5, 0.5, right > 0.5).astype(np.float64),
            losses=metrics.log_loss(right, np.ones(len(right))),
            losses_with_ties=losses_with_ties,
        )


def _estimates(
    columns: dict[str, list[float]], weights: dict[str, list[int]], keys: list[str], num_resamples: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    values = np.array(list(columns.values())).T
    weight = np.array([weights.get(name, [1] * len(keys)) for name in columns], dtype=np.float64).T
    samples = metrics.bootstrap(values, weight, groups=keys, num_resamples=num_resamples, seed=seed)
    means = metrics.weighted_mean(values, weight)
    estimates = {}
    for column, name in enumerate(columns):
        low, high = metrics.interval(samples[:, column], confidence)
        num_prompts = int((~np.isnan(values[:, column])).sum())
        estimates[name] = Estimate(_or_none(means[column]), _or_none(low), _or_none(high), num_prompts)
    return estimates


def _mean(values: metrics.Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


# --- rewards -----------------------------------------------------------------------------------------------------------------------


def score_comparisons(
    scorer: Scorer[Any], comparisons: Sequence[Comparison], on_image: Callable[[int, int], None] | None = None
) -> list[list[float]]:
    """The reward of each image of each comparison. An image is opened and encoded once, however many comparisons it is in.

    Long prompts are warned of once for all of them.
    """
    places = [(c, i) for c, comparison in enumerate(comparisons) for i in range(len(comparison.images))]
    scorer.prepare.tokenizer([comparison.prompt for comparison in comparisons])  # warns, or fails before any work is done
    unique, index = unique_images([comparisons[c].images[i] for c, i in places])
    rows_of: list[list[int]] = [[] for _ in unique]
    for row, image in enumerate(index):
        rows_of[image].append(row)
    rewards = [[math.nan] * len(comparison.images) for comparison in comparisons]
    step = 4 * scorer.batch_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LongPromptWarning)
        for start in range(0, len(unique), step):
            chosen = [places[row] for rows in rows_of[start : start + step] for row in rows]
            found = scorer.score([comparisons[c].prompt for c, _ in chosen], [comparisons[c].images[i] for c, i in chosen])
            for (c, i), reward in zip(chosen, found, strict=True):
                rewards[c][i] = reward
            if on_image:
                on_image(min(start + step, len(unique)), len(unique))
    return rewards


def read_rewards(path: str | os.PathLike[str]) -> Rewards:
    """Rewards that were saved earlier, from JSON: [[reward, ..], ..] aligned with the comparisons, {id: [reward, ..]}, or a list of
    objects with ``id`` and ``rewards``.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file of rewards: {name}")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComparisonError(f"{name} is not JSON: {error}") from None
    if isinstance(found, list) and found and all(isinstance(row, dict) and {"id", "rewards"} <= set(row) for row in found):
        rewards = {str(row["id"]): row["rewards"] for row in found}
        if len(rewards) != len(found):
            raise ComparisonError(f"{name} has rewards for some id twice: {len(found)} rows for {len(rewards)} ids")
        return rewards
    if isinstance(found, dict | list) and all(isinstance(row, list) for row in (found.values() if isinstance(found, dict) else found)):
        return found
    raise ComparisonError(
        f"{name} holds no rewards. Looked for: a list of lists aligned with the comparisons, {{id: [rewards]}}, "
        "or a list of objects with id and rewards"
    )


def _aligned(rewards: Rewards, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """One list for each comparison, checked: a reward that is missing is never made up. Rewards of further ids are ignored."""
    if isinstance(rewards, Mapping):
        missing = [f"{c.id} ({c.prompt[:40]!r})" for c in comparisons if c.id not in rewards]
        if missing:
            raise ComparisonError(f"there are no rewards for {len(missing)} of {len(comparisons)} prompts: {_some(missing)}")
        rewards = [rewards[c.id] for c in comparisons]
    elif len(rewards) != len(comparisons):
        raise ComparisonError(
            f"there are rewards for {len(rewards)} prompts, but {len(comparisons)} comparisons: "
            "a list must be aligned with them; use {id: rewards} for others"
        )
    wrong = [
        f"{c.id} ({len(found)} for {len(c.images)})" for c, found in zip(comparisons, rewards, strict=True) if len(found) != len(c.images)
    ]
    if wrong:
        raise ComparisonError(f"{len(wrong)} prompts have not one reward for each image: {_some(wrong)}")
    checked = []
    for comparison, found in zip(comparisons, rewards, strict=True):
        for number, reward in enumerate(found, start=1):
            if isinstance(reward, bool) or not isinstance(reward, int | float | np.floating) or not math.isfinite(reward):
                raise ComparisonError(f"the reward of image {number} of {comparison.id} is {reward!r}; rewards must be finite numbers")
        checked.append([float(reward) for reward in found])
    return checked


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def write_per_prompt(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """The results of each prompt as a Parquet file, one row a comparison."""
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist([result.as_dict() for result in evaluation.per_prompt]), os.fspath(path))
