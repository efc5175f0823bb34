"""How well scorers agree with people: their rewards against human rankings, several scorers over the same data at once."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from image_reward import metrics
from image_reward.comparisons import normalized_prompt
from image_reward.errors import ComparisonError
from image_reward.evaluation.agreement import PEOPLE, Agreement, Annotators, agreement, annotators
from image_reward.evaluation.published import published_results
from image_reward.evaluation.rewards import Rewards, aligned, score_comparisons
from image_reward.metrics import CalibrationBin, HumanTies, PredictedTies
from image_reward.prompts import bert_tokenizer
from image_reward.scorers import Scorer
from image_reward.types import Comparison

DEFAULT_KS = (1, 2, 4)
"""Those of table 3 of Xu et al. (2023)."""

ACCURACIES = ("pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt")

# Bins of prompt length in tokens as BLIP counts them, [CLS] and [SEP] included. It reads 35; what is longer loses its end.
_LENGTHS = {"up to 10": 10, "11 to 20": 20, "21 to 35": 35, "over 35, cut by BLIP": math.inf}

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
    """What came of one comparison and scorer. Metrics are None where they are not defined."""

    scorer: str
    id: str
    prompt: str
    category: str
    num_tokens: int
    """Of the prompt, as BLIP counts them."""
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
class Measured:
    """What one scorer reached."""

    num_predicted_ties: int
    """Pairs that people ordered and whose rewards are equal."""
    metrics: dict[str, Estimate]
    calibration: list[CalibrationBin]
    """Over untied pairs: how sure the scorer is of the image it puts first, and how often people agree."""
    per_prompt: list[PromptResult]


@dataclass(frozen=True)
class Group:
    """Some of the prompts, and the pooled accuracy of each scorer on them."""

    name: str
    num_prompts: int
    num_untied_pairs: int
    accuracies: dict[str, Estimate]


@dataclass(frozen=True)
class PairedDifference:
    """How much better scorer a is than scorer b, on the same prompts and the same resamples."""

    metric: str
    a: str
    b: str
    value: float
    low: float
    high: float
    p_value: float
    p_holm: float
    """Corrected for the number of pairs of scorers (Holm 1979)."""


@dataclass(frozen=True)
class AnnotatorAgreement:
    """How well people agree with each other, where several ranked the same images."""

    same_order: Estimate
    """The share of the pairs of images that two annotators both put in an order in which it is the same order."""
    num_pairs: int
    num_rankings: int
    alpha: float | None
    """Krippendorff's alpha, ordinal. None where it is not defined, or `krippendorff` (the extra ``agreement``) is not installed."""


@dataclass(frozen=True)
class Evaluation:
    """Scorers measured against people, all on the same prompts."""

    num_prompts: int
    """Comparisons: a prompt with its ranked images counts once for each time it was ranked."""
    num_distinct_prompts: int
    num_images: int
    num_untied_pairs: int
    num_tied_pairs: int
    ks: tuple[int, ...]
    treatment_of_ties: str
    confidence: float
    num_resamples: int
    seed: int
    scorers: dict[str, Measured]
    chance: dict[str, float | None]
    """What recall@k and filter@k are on average for rewards drawn at random, on these prompts."""
    by_length: list[Group]
    by_category: list[Group]
    """Empty where the data set knows no categories."""
    differences: list[PairedDifference]
    agreement: Agreement
    annotators: AnnotatorAgreement | None
    """None where no images were ranked twice."""
    published: dict[str, Any] | None
    """What others measured, where the data set is a published one; see ``published_results``."""

    @property
    def per_prompt(self) -> list[PromptResult]:
        """The results of all scorers, prompt by prompt."""
        return [result for results in zip(*(m.per_prompt for m in self.scorers.values()), strict=True) for result in results]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the results of each prompt: NaN becomes None."""
        found = asdict(replace(self, scorers={name: replace(measured, per_prompt=[]) for name, measured in self.scorers.items()}))
        for name, measured in self.scorers.items():
            found["scorers"][name]["calibration"] = [_without_nan(b._asdict()) for b in measured.calibration]
            del found["scorers"][name]["per_prompt"]
        return found


def evaluate(
    scorers: Mapping[str, Scorer[Any] | Rewards],
    comparisons: Sequence[Comparison],
    *,
    ks: Sequence[int] | None = None,
    predicted_ties: PredictedTies = "wrong",
    human_ties: HumanTies = "excluded",
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    num_bins: int = 10,
    on_image: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure scorers, or rewards computed earlier, against human rankings.

    ``scorers``: a name -> a scorer; or rewards, as a list aligned with ``comparisons`` or a mapping from their ids. ``ks``: by default
    those of 1, 2 and 4 that some prompt has more images than.

    The metrics, each with an interval from bootstrapping prompts. Rankings of the same prompt are drawn together, and all scorers are
    measured on the same draws, so that their differences are paired:

    - ``pairwise_accuracy_pooled`` (every pair weighs the same) and ``pairwise_accuracy_per_prompt`` (every prompt weighs the same). Ties
      are treated as ``predicted_ties`` and ``human_ties`` say; see ``metrics.pairwise_accuracy``.
    - ``recall@k`` and ``filter@k`` for each k, over the prompts with more than k images: with k images or fewer the answer is known.
    - ``kendall_tau_b`` and ``spearman``, means over prompts.
    - ``log_loss`` of the probability that ``compare`` gives to what people said, and ``expected_calibration_error``, over the pairs that
      people ordered: P(a better | no tie). For rewards that come without a scorer the probability is sigmoid(a - b). A resampled
      calibration error is larger than the true one, so it gets no interval.
    - ``log_loss_with_ties``, where the scorer has a fitted tie parameter: the same over all pairs, ties being a third outcome.

    Raises ``ValueError`` for no comparisons, no scorers, or no such k; ``ComparisonError`` that names ids used twice, prompts or images
    without a finite reward, or data in which people tied everything; and whatever a scorer raises for an image.
    """
    if not scorers:
        raise ValueError("there are no scorers to evaluate")
    if PEOPLE in scorers:
        raise ValueError(f"a scorer cannot be called {PEOPLE!r}, which stands for those it is measured against; give it another name")
    ks = usable_ks(comparisons, ks)
    pair_counts = [metrics.num_pairs(c.ranks) for c in comparisons]
    num_untied, num_tied = (sum(column) for column in zip(*pair_counts, strict=True))
    rewards = _rewards(scorers, comparisons, on_image)
    columns = _Columns()
    pairs: dict[str, list[_Pairs]] = {}
    tokens = [len(encoding) + 2 for encoding in bert_tokenizer().encode_batch([c.prompt for c in comparisons], add_special_tokens=False)]
    groups = {
        "length": _groups([next(name for name, longest in _LENGTHS.items() if num <= longest) for num in tokens], list(_LENGTHS)),
        "category": _groups([c.category or "none given" for c in comparisons]) if any(c.category for c in comparisons) else {},
    }
    for name, values in rewards.items():
        scorer = scorers[name]
        chance = scorer.win_probability if isinstance(scorer, Scorer) else metrics.win_probability
        has_ties = isinstance(scorer, Scorer) and scorer.tie is not None
        pairs[name] = [_Pairs.of(found, c.ranks, chance, has_ties) for found, c in zip(values, comparisons, strict=True)]
        _add_metrics(columns, name, values, pairs[name], comparisons, ks, predicted_ties, human_ties)
        accuracies, weights = (np.asarray(column, dtype=np.float64) for column in columns[name, "pairwise_accuracy_pooled"])
        for kind, members in groups.items():
            for group, inside in members.items():
                columns.add((name, kind, group), np.where(inside, accuracies, np.nan), weights)
    people = annotators(comparisons)
    if people:
        columns.add((None, "annotators"), people.shares, people.num_pairs)
    keys = [normalized_prompt(c.prompt) for c in comparisons]
    estimates, samples = columns.estimates(keys, num_resamples, confidence, seed)

    measured = {}
    for name, mine in pairs.items():
        found = {key[1]: estimate for key, estimate in estimates.items() if key[0] == name and len(key) == 2}
        bins = metrics.calibration(
            np.concatenate([p.sureness for p in mine]), np.concatenate([p.agreement for p in mine]), num_bins, low=0.5, high=1.0
        )
        error = metrics.expected_calibration_error(bins)
        found["expected_calibration_error"] = Estimate(_or_none(error), None, None, sum(p.counts.untied > 0 for p in mine))
        results = _prompt_results(name, rewards[name], mine, comparisons, tokens, columns, ks)
        measured[name] = Measured(sum(p.counts.predicted_ties for p in mine), found, bins, results)
    by = {
        kind: [
            Group(
                name=group,
                num_prompts=int(inside.sum()),
                num_untied_pairs=sum(untied for (untied, _), here in zip(pair_counts, inside, strict=True) if here),
                accuracies={name: estimates[name, kind, group] for name in rewards},
            )
            for group, inside in members.items()
        ]
        for kind, members in groups.items()
    }
    num_images = sum(len(c.images) for c in comparisons)
    counts = {
        "prompts": len(keys),
        "images": num_images,
        "untied pairs": num_untied,
        "tied pairs": num_tied,
        "pairs": num_untied + num_tied,
    }
    return Evaluation(
        num_prompts=len(comparisons),
        num_distinct_prompts=len(set(keys)),
        num_images=num_images,
        num_untied_pairs=num_untied,
        num_tied_pairs=num_tied,
        ks=ks,
        treatment_of_ties=f"{_TIES_IN_WORDS[f'human {human_ties}']}; {_TIES_IN_WORDS[f'predicted {predicted_ties}']}",
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        scorers=measured,
        chance=_chance(comparisons, ks),
        by_length=by["length"],
        by_category=by["category"],
        differences=_differences(list(rewards), estimates, samples, confidence),
        agreement=agreement(rewards, comparisons),
        annotators=_annotator_agreement(people, estimates),
        published=published_results(comparisons, counts, list(rewards)),
    )


def usable_ks(comparisons: Sequence[Comparison], ks: Sequence[int] | None = None) -> tuple[int, ...]:
    """The k of recall@k and filter@k, by default those of 1, 2 and 4 that some prompt has more images than.

    Raises what ``evaluate`` raises for its comparisons and ks, which can be known before a scorer is loaded.
    """
    if not comparisons:
        raise ValueError("there are no comparisons to evaluate on")
    twice = [name for name, num in Counter(c.id for c in comparisons if c.id).items() if num > 1]
    if twice:
        raise ComparisonError(f"the id {twice[0]!r} is used twice; give each comparison an id of its own, or none")
    if not any(metrics.num_pairs(c.ranks)[0] for c in comparisons):
        raise ComparisonError("people tied every pair of images here, so there is no order to agree with; give data with an order")
    most = max(len(c.images) for c in comparisons)
    if ks is None:
        return tuple(k for k in DEFAULT_KS if k < most)
    if not ks or min(ks) < 1:
        raise ValueError(f"ks are integers from 1, not {list(ks)}")
    if max(ks) >= most:
        raise ValueError(
            f"no prompt has more than {max(ks)} images, which recall@{max(ks)} needs; the most here are {most}, so give k below that"
        )
    return tuple(dict.fromkeys(ks))


def _rewards(
    scorers: Mapping[str, Scorer[Any] | Rewards], comparisons: Sequence[Comparison], on_image: Callable[[int, int], None] | None
) -> dict[str, list[list[float]]]:
    """Scorer -> rewards. Those that were saved are checked before any are computed."""
    found: dict[str, list[list[float]]] = {}
    for name, given in scorers.items():
        if not isinstance(given, Scorer):
            try:
                found[name] = aligned(given, comparisons)
            except ComparisonError as error:
                raise ComparisonError(f"{name}: {error}") from None
    computing = {name: given for name, given in scorers.items() if isinstance(given, Scorer)}
    if computing:
        found |= zip(computing, score_comparisons(list(computing.values()), comparisons, on_image), strict=True)
    return {name: found[name] for name in scorers}


def _groups(names: Sequence[str], order: Sequence[str] = ()) -> dict[str, Any]:
    """Group -> which prompts are in it [P]; empty groups are left out."""
    return {group: np.array([name == group for name in names]) for group in order or sorted(set(names)) if group in names}


def _chance(comparisons: Sequence[Comparison], ks: Sequence[int]) -> dict[str, float | None]:
    found = {}
    for what, read in (("recall", np.asarray), ("filter", metrics.from_worst)):
        for k in ks:
            shares = [metrics.chance_at_k(read(c.ranks), k) for c in comparisons if len(c.ranks) > k]
            found[f"{what}@{k}"] = _or_none(float(metrics.weighted_mean(shares)))
    return found


def _annotator_agreement(people: Annotators | None, estimates: Mapping[Any, Estimate]) -> AnnotatorAgreement | None:
    if people is None:
        return None
    return AnnotatorAgreement(estimates[None, "annotators"], sum(people.num_pairs), people.num_rankings, people.alpha)


def _differences(
    names: Sequence[str], estimates: Mapping[Any, Estimate], samples: Mapping[Any, metrics.Floats], confidence: float
) -> list[PairedDifference]:
    """Of each scorer with each that comes after it; the correction is for the pairs of one metric."""
    found = []
    for metric in ACCURACIES:
        pairs = list(itertools.combinations(names, 2))
        rows = []
        for a, b in pairs:
            values = estimates[a, metric].value, estimates[b, metric].value
            if None in values:  # every pair that people ordered has equal rewards, and those are left out
                return []
            rows.append(metrics.difference(values[0] - values[1], samples[a, metric] - samples[b, metric], confidence))  # type: ignore[operator]
        for (a, b), row, corrected in zip(pairs, rows, metrics.holm([row.p_value for row in rows]), strict=True):
            found.append(PairedDifference(metric, a, b, row.value, row.low, row.high, row.p_value, corrected))
    return found


# --- metrics of prompts ------------------------------------------------------------------------------------------------------------


class _Columns(dict[Any, tuple[Sequence[float], Sequence[float]]]):
    """What is averaged over prompts: a key -> the value for each prompt, NaN where there is none, and what each value weighs."""

    def add(self, key: Any, values: Any, weights: Any = None) -> None:
        self[key] = (values, [1] * len(values) if weights is None else weights)

    def estimates(
        self, keys: list[str], num_resamples: int, confidence: float, seed: int
    ) -> tuple[dict[Any, Estimate], dict[Any, metrics.Floats]]:
        """Each column's mean with its interval, and its bootstrap samples [R]; the same draws serve all columns."""
        values = np.array([column for column, _ in self.values()], dtype=np.float64).T
        weights = np.array([weight for _, weight in self.values()], dtype=np.float64).T
        samples = metrics.bootstrap(values, weights, groups=keys, num_resamples=num_resamples, seed=seed)
        means = metrics.weighted_mean(values, weights)
        estimates, by_key = {}, {}
        for column, key in enumerate(self):
            by_key[key] = samples[:, column]
            low, high = metrics.interval(by_key[key], confidence)
            num_prompts = int((~np.isnan(values[:, column])).sum())
            estimates[key] = Estimate(_or_none(means[column]), _or_none(low), _or_none(high), num_prompts)
        return estimates, by_key


def _add_metrics(
    columns: _Columns,
    name: str,
    rewards: list[list[float]],
    pairs: list[_Pairs],
    comparisons: Sequence[Comparison],
    ks: Sequence[int],
    predicted_ties: PredictedTies,
    human_ties: HumanTies,
) -> None:
    """The columns (name, metric) of one scorer."""
    accuracies = [metrics.pairwise_accuracy(p.counts, predicted_ties, human_ties) for p in pairs]
    of_prompts = [accuracy for accuracy, _ in accuracies]
    columns.add((name, "pairwise_accuracy_pooled"), of_prompts, [num for _, num in accuracies])
    columns.add((name, "pairwise_accuracy_per_prompt"), of_prompts)
    both = [(values, c.ranks) for values, c in zip(rewards, comparisons, strict=True)]
    for prefix, at_k in (("recall", metrics.recall_at_k), ("filter", metrics.filter_at_k)):
        for k in ks:
            columns.add((name, f"{prefix}@{k}"), [at_k(values, ranks, k) if len(values) > k else math.nan for values, ranks in both])
    for correlation in (metrics.kendall_tau_b, metrics.spearman):
        columns.add((name, correlation.__name__), [correlation(values, ranks) for values, ranks in both])
    columns.add((name, "log_loss"), [_mean(p.losses) for p in pairs], [len(p.losses) for p in pairs])
    if any(len(p.losses_with_ties) for p in pairs):
        columns.add((name, "log_loss_with_ties"), [_mean(p.losses_with_ties) for p in pairs], [len(p.losses_with_ties) for p in pairs])


def _prompt_results(
    name: str,
    rewards: list[list[float]],
    pairs: list[_Pairs],
    comparisons: Sequence[Comparison],
    tokens: Sequence[int],
    columns: _Columns,
    ks: Sequence[int],
) -> list[PromptResult]:
    def value(metric: str, place: int) -> float | None:
        return _or_none(columns[name, metric][0][place])

    return [
        PromptResult(
            scorer=name,
            id=c.id,
            prompt=c.prompt,
            category=c.category,
            num_tokens=tokens[i],
            num_images=len(c.images),
            rewards=values,
            ranks=list(c.ranks),
            num_untied_pairs=p.counts.untied,
            num_tied_pairs=p.counts.human_ties,
            num_predicted_ties=p.counts.predicted_ties,
            pairwise_accuracy=value("pairwise_accuracy_pooled", i),
            kendall_tau_b=value("kendall_tau_b", i),
            spearman=value("spearman", i),
            log_loss=value("log_loss", i),
            recall_at={k: value(f"recall@{k}", i) for k in ks},
            filter_at={k: value(f"filter@{k}", i) for k in ks},
        )
        for i, (c, values, p) in enumerate(zip(comparisons, rewards, pairs, strict=True))
    ]


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


def _mean(values: metrics.Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def write_per_prompt(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """The results of each prompt as a Parquet file, one row for each comparison and scorer."""
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist([result.as_dict() for result in evaluation.per_prompt]), os.fspath(path))
