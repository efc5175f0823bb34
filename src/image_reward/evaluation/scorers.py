"""How well scorers agree with human annotators: their rewards against human rankings, several scorers over the same data at once."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Union

import numpy as np
from numpy.typing import NDArray

from image_reward import metrics
from image_reward.comparisons import normalized_prompt
from image_reward.errors import ComparisonError, InputError, RewardError
from image_reward.evaluation.agreement import HUMAN, Agreement, Annotators, agreement, annotators
from image_reward.evaluation.estimates import Means, PromptColumns, none_if_nan
from image_reward.evaluation.over_images import OverImages, over_images
from image_reward.evaluation.published_results import PublishedResults, published_results
from image_reward.evaluation.rewards import Rewards, aligned, score_comparisons
from image_reward.evaluation.verdicts import TIE, Verdicts, human_label
from image_reward.metrics import CalibrationBin, Difference, Floats, HumanTies, Interval, PairCounts, PredictedTies
from image_reward.prompt_sets import first_few
from image_reward.prompts import bert_tokenizer
from image_reward.reports.numbers import counted
from image_reward.scorers import Scorer
from image_reward.types import Comparison

DEFAULT_KS = (1, 2, 4)
"""Those of table 3 of Xu et al. (2023)."""

POOLED, PER_PROMPT = "pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt"
ACCURACIES = (POOLED, PER_PROMPT)
TIES_HALF, TIES_ANSWERED, TIES_CALIBRATED = (f"pairwise_accuracy_ties_{how}" for how in ("half", "answered", "calibrated"))
LABEL_MATCH, FLIPPED, FIRST_SHOWN, SECOND_SHOWN = "label_match", "verdicts_flipped", "first_shown_preferred", "second_shown_preferred"
SHARES = (*ACCURACIES, TIES_HALF, TIES_ANSWERED, TIES_CALIBRATED, LABEL_MATCH, FLIPPED, FIRST_SHOWN, SECOND_SHOWN)
"""Metrics in [0, 1] that are shown in percent."""

MANY_TIES = 0.05
"""The share of a scorer's pairs above which its ties move its accuracy enough to be shown with another treatment of them."""
CALIBRATION_ERROR = "expected_calibration_error"

# Bins of prompt length in tokens as BLIP counts them, [CLS] and [SEP] included. It reads 35 and cuts longer prompts.
_LENGTHS = {"up to 10": 10, "11 to 20": 20, "21 to 35": 35, "over 35, cut by BLIP": math.inf}

_PREDICTED_TIES: dict[PredictedTies, str] = {
    "wrong": "a pair of equal reward counts as wrong",
    "half": "a pair of equal reward counts half",
    "excluded": "pairs of equal reward are left out",
}
_HUMAN_TIES: dict[HumanTies, str] = {
    "excluded": "pairs that the annotators tied are left out",
    "half": "pairs that the annotators tied count half, whatever the scorer says",
    "answer": "pairs that the annotators tied are right where the scorer ties them too",
}


@dataclass(frozen=True)
class PromptResult:
    """One scorer on one comparison. Metrics are None where they are not defined."""

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
    """One scorer on all comparisons."""

    num_predicted_ties: int
    """Pairs that the annotators put in an order and whose rewards are equal."""
    metrics: dict[str, Interval]
    calibration: list[CalibrationBin]
    """Over untied pairs: the scorer's confidence in the order it predicts, and how often the annotators agree."""
    tie_threshold: float | None
    """At which ``pairwise_accuracy_ties_calibrated`` ties rewards; None where the annotators tied nothing."""
    over_images: OverImages | None
    """Against ratings, where the data are ratings."""
    per_prompt: list[PromptResult]


@dataclass(frozen=True)
class Group:
    """A group of prompts, and the pooled accuracy of each scorer on them."""

    name: str
    num_prompts: int
    num_untied_pairs: int
    accuracies: dict[str, Interval]


@dataclass(frozen=True)
class AnnotatorAgreement:
    """How well annotators agree with each other, where several ranked the same images."""

    same_order: Interval
    """The share of the pairs of images that two annotators both put in an order in which it is the same order."""
    num_pairs: int
    num_rankings: int
    alpha: float | None
    """Krippendorff's alpha, ordinal. None where it is not defined, or `krippendorff` (the extra ``agreement``) is not installed."""


@dataclass(frozen=True)
class Refused:
    """Comparisons that were left out for all scorers, as a scorer gave an image of theirs no reward."""

    ids: list[str]
    reason: str
    """Why the first has none; it names the image."""

    def __str__(self) -> str:
        num = len(self.ids)
        left_out = f"{counted(num, 'comparison')} with an image without a reward {'is' if num == 1 else 'are'} left out, for all scorers"
        return f"{left_out}: {first_few(self.ids)}. The first: {self.reason}"


@dataclass(frozen=True)
class Evaluation:
    """Scorers measured against human rankings, all on the same prompts."""

    num_prompts: int
    """Comparisons: a prompt with its ranked images counts once for each time it was ranked."""
    num_distinct_prompts: int
    num_images: int
    num_untied_pairs: int
    num_tied_pairs: int
    num_both_bad: int
    """Those of the tied pairs whose images the annotators found both bad."""
    ks: tuple[int, ...]
    treatment_of_ties: str
    confidence: float
    num_resamples: int
    seed: int
    scorers: dict[str, Measured]
    chance: dict[str, float | None]
    """The expected recall@k and filter@k of random rewards on these prompts."""
    by_length: list[Group]
    by_category: list[Group]
    """Empty where the data set has no categories."""
    differences: list[Difference]
    """Of both accuracies, each scorer with each after it; p-values are adjusted for the pairs of one accuracy."""
    agreement: Agreement
    annotators: AnnotatorAgreement | None
    """None where no images were ranked twice."""
    published: PublishedResults | None
    """Published results on the same data set, if it is a published one."""
    refused: Refused | None = None
    """What was left out, and does not count in any of the numbers."""

    @property
    def per_prompt(self) -> list[PromptResult]:
        """The results of all scorers, prompt by prompt."""
        return [result for results in zip(*(m.per_prompt for m in self.scorers.values()), strict=True) for result in results]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the results of each prompt: NaN becomes None."""
        without_prompts = {name: replace(measured, per_prompt=[]) for name, measured in self.scorers.items()}
        row = asdict(replace(self, scorers=without_prompts))
        for name, measured in self.scorers.items():
            del row["scorers"][name]["per_prompt"]
            row["scorers"][name]["calibration"] = [
                {key: none_if_nan(value) if isinstance(value, float) else value for key, value in b._asdict().items()}
                for b in measured.calibration
            ]
        return row


def evaluate(
    scorers: Mapping[str, Scorer[Any] | Rewards | Verdicts],
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

    ``scorers``: a name -> a scorer; or rewards, as a list aligned with ``comparisons`` or a mapping from their ids; or a judge's verdicts.
    ``ks``: by default those of 1, 2 and 4 that some prompt has more images than.

    The metrics, each with an interval from bootstrapping prompts. Rankings of the same prompt are drawn together, and all scorers are
    measured on the same draws, so that their differences are paired:

    - ``pairwise_accuracy_pooled`` (every pair weighs the same) and ``pairwise_accuracy_per_prompt`` (every prompt weighs the same, however
      often it was ranked). Ties are treated as ``predicted_ties`` and ``human_ties`` say; see ``metrics.pairwise_accuracy``.
    - ``pairwise_accuracy_ties_half``: pooled with equal rewards counting half, where they count as wrong by default and a scorer ties
      more than 5 % of the pairs.
    - ``pairwise_accuracy_ties_calibrated``, where the annotators tied pairs: pooled over all pairs with ties as a third outcome, the
      scorer tying rewards at most ``Measured.tie_threshold`` apart (``metrics.calibrate_ties``; its interval keeps the threshold).
      ``pairwise_accuracy_ties_answered``, where a scorer ties more than 5 % of the pairs or has a fitted tie parameter: the same, the
      scorer tying equal rewards and pairs of which it finds a tie the most probable outcome.
    - ``recall@k`` and ``filter@k`` for each k, over the prompts with more than k images: with k images or fewer the answer is known.
    - ``kendall_tau_b`` and ``spearman``, means over prompts. ``Measured.over_images`` has those over all images, for tables of ratings.
    - ``log_loss`` of the probability that ``Scorer.win_probability`` gives to the annotators' order, and ``expected_calibration_error``,
      over the pairs that they put in an order: P(a better | no tie). It is that of ``compare``, but for HPSv3, whose spreads only
      ``compare`` takes into account. Scorers that ``compare`` in a question about both images have neither. For rewards that come without
      a scorer the probability is sigmoid(a - b). A resampled calibration error is larger than the true one, so it gets no interval.
    - ``log_loss_with_ties``, where the scorer has a fitted tie parameter: the same over all pairs, ties being a third outcome.
    - of a judge's verdicts, in place of probabilities: ``label_match`` (``metrics.label_match``, where its labels tell good ties from bad
      ones), and, where it was asked in both orders, ``verdicts_flipped``, ``first_shown_preferred`` and ``second_shown_preferred``
      (``metrics.position_bias``).

    Comparisons with an image that a scorer gives no reward are left out for all scorers (``Evaluation.refused``), as long as they are at
    most half.

    Raises ``ValueError`` for no comparisons, no scorers, or invalid ks; ``ComparisonError`` that names ids used twice, prompts or images
    without a finite saved reward, or data in which everything is tied; ``RewardError`` where too many images have no reward; and whatever
    else a scorer raises for an image.
    """
    if not scorers:
        raise InputError("there are no scorers to evaluate")
    if HUMAN in scorers:
        raise InputError(f"a scorer cannot be called {HUMAN!r}, which names the human rankings; give it another name")
    choose_ks(comparisons, ks)  # refuses what makes no sense before anything is scored
    reasons: dict[int, RewardError] = {}
    rewards = _rewards(scorers, comparisons, on_image, reasons)
    refused = _refused(comparisons, reasons)
    if refused:
        kept = [place for place in range(len(comparisons)) if place not in reasons]
        comparisons = [comparisons[place] for place in kept]
        rewards = {name: [values[place] for place in kept] for name, values in rewards.items()}
        scorers = {name: _verdicts_on(kept, scorer) if isinstance(scorer, Verdicts) else scorer for name, scorer in scorers.items()}
    ks = choose_ks(comparisons, ks)
    pairs = {name: _pairs_of(scorers[name], values, comparisons) for name, values in rewards.items()}
    thresholds = {name: _tie_threshold(of_scorer) for name, of_scorer in pairs.items()}
    show_half = predicted_ties == "wrong" and any(map(_ties_many, pairs.values()))
    show_answered = any(map(_answers_ties, pairs.values()))
    over = over_images(list(rewards.values()), comparisons)
    calibrations = {name: _calibration(of_scorer, num_bins) for name, of_scorer in pairs.items()}
    num_tokens = [len(row) + 2 for row in bert_tokenizer().encode_batch([c.prompt for c in comparisons], add_special_tokens=False)]
    groups = _groups(comparisons, num_tokens)
    annotated = annotators(comparisons)

    columns = PromptColumns[_Column]()
    for name, values in rewards.items():
        of_scorer = _metric_columns(values, pairs[name], comparisons, ks, predicted_ties, human_ties)
        of_scorer |= _tie_columns(pairs[name], thresholds[name], show_half, show_answered)
        judge = scorers[name]
        if isinstance(judge, Verdicts):
            of_scorer |= _verdict_columns(judge, comparisons)
        _add_columns(columns, name, of_scorer, groups)
    if annotated:
        columns.add(_ANNOTATORS, annotated.shares, annotated.num_pairs)
    prompts = [normalized_prompt(c.prompt) for c in comparisons]
    means = columns.means(prompts, num_resamples, confidence, seed)

    counts = _counts(comparisons)
    return Evaluation(
        num_prompts=counts["prompts"],
        num_distinct_prompts=len(set(prompts)),
        num_images=counts["images"],
        num_untied_pairs=counts["untied pairs"],
        num_tied_pairs=counts["tied pairs"],
        num_both_bad=sum(c.both_bad for c in comparisons),
        ks=ks,
        treatment_of_ties=f"{_HUMAN_TIES[human_ties]}; {_PREDICTED_TIES[predicted_ties]}",
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        scorers={
            name: Measured(
                num_predicted_ties=sum(p.counts.predicted_ties for p in pairs[name]),
                metrics=_estimates(name, means, pairs[name], calibrations[name]),
                calibration=calibrations[name],
                tie_threshold=thresholds[name],
                over_images=over[place] if over else None,
                per_prompt=_prompt_results(name, values, pairs[name], comparisons, num_tokens, columns, ks),
            )
            for place, (name, values) in enumerate(rewards.items())
        },
        chance=_chance(comparisons, ks),
        by_length=_group_results("length", groups, list(rewards), comparisons, means),
        by_category=_group_results("category", groups, list(rewards), comparisons, means),
        differences=[
            difference
            for metric in ACCURACIES
            for difference in means.differences(metric, {name: _Column(name, metric) for name in rewards})
        ],
        agreement=agreement(rewards, comparisons),
        annotators=_annotator_agreement(annotated, means) if annotated else None,
        published=published_results(comparisons, counts, list(rewards)),
        refused=refused,
    )


def choose_ks(comparisons: Sequence[Comparison], ks: Sequence[int] | None = None) -> tuple[int, ...]:
    """The k of recall@k and filter@k, by default those of 1, 2 and 4 that some prompt has more images than.

    Raises what ``evaluate`` raises for its comparisons and ks, so that they can be checked before a scorer is loaded.
    """
    if not comparisons:
        raise InputError("there are no comparisons to evaluate on")
    twice = [name for name, num in Counter(c.id for c in comparisons if c.id).items() if num > 1]
    if twice:
        raise ComparisonError(f"the id {twice[0]!r} is used twice; give each comparison an id of its own, or none")
    if not any(metrics.num_pairs(c.ranks)[0] for c in comparisons):
        raise ComparisonError("every pair of images is tied, so agreement cannot be measured; use rankings with untied pairs")
    most = max(len(c.images) for c in comparisons)
    if ks is None:
        return tuple(k for k in DEFAULT_KS if k < most)
    if not ks or min(ks) < 1:
        raise InputError(f"ks are integers from 1, not {list(ks)}")
    if max(ks) >= most:
        raise InputError(
            f"no prompt has more than {max(ks)} images, which recall@{max(ks)} needs; the most here are {most}, so choose k below that"
        )
    return tuple(dict.fromkeys(ks))


_MOST_REFUSED = 0.5
"""The share of comparisons without a reward above which an evaluation of the others says little of the scorer."""


def _refused(comparisons: Sequence[Comparison], reasons: Mapping[int, RewardError]) -> Refused | None:
    if not reasons:
        return None
    first = min(reasons)
    if len(reasons) > _MOST_REFUSED * len(comparisons):
        raise RewardError(
            f"{len(reasons):,} of {len(comparisons):,} comparisons have an image without a reward, which are too many to leave out. The "
            f"first is {comparisons[first].id}: {reasons[first]}"
        )
    return Refused([comparisons[place].id for place in sorted(reasons)], str(reasons[first]))


def _verdicts_on(kept: Sequence[int], verdicts: Verdicts) -> Verdicts:
    swapped = verdicts.swapped and [verdicts.swapped[place] for place in kept]
    return Verdicts([verdicts.labels[place] for place in kept], swapped)


def _rewards(
    scorers: Mapping[str, Scorer[Any] | Rewards | Verdicts],
    comparisons: Sequence[Comparison],
    on_image: Callable[[int, int], None] | None,
    reasons: dict[int, RewardError],
) -> dict[str, list[list[float]]]:
    """Scorer -> rewards. Saved rewards are checked before any are computed. ``reasons`` gets why a comparison lacks rewards."""
    rewards: dict[str, list[list[float]]] = {}
    for name, saved in scorers.items():
        if not isinstance(saved, Scorer):
            try:
                rewards[name] = aligned(saved.rewards() if isinstance(saved, Verdicts) else saved, comparisons)
            except ComparisonError as error:
                raise ComparisonError(f"{name}: {error}") from None
    computing = {name: scorer for name, scorer in scorers.items() if isinstance(scorer, Scorer)}
    if computing:
        rewards |= zip(computing, score_comparisons(list(computing.values()), comparisons, on_image, reasons), strict=True)
    return {name: rewards[name] for name in scorers}


def _counts(comparisons: Sequence[Comparison]) -> dict[str, int]:
    """The counts by which ``published_results`` recognises a data set."""
    untied, tied = (sum(column) for column in zip(*(metrics.num_pairs(c.ranks) for c in comparisons), strict=True))
    num_images = sum(len(c.images) for c in comparisons)
    return {"prompts": len(comparisons), "images": num_images, "untied pairs": untied, "tied pairs": tied, "pairs": untied + tied}


_Groups = dict[str, dict[str, NDArray[np.bool_]]]
"""Kind -> group -> whether each prompt is in it, bool [P]. Groups without prompts are left out."""


def _groups(comparisons: Sequence[Comparison], num_tokens: Sequence[int]) -> _Groups:
    lengths = [next(name for name, longest in _LENGTHS.items() if num <= longest) for num in num_tokens]
    categories = [c.category or "none given" for c in comparisons] if any(c.category for c in comparisons) else []
    return {
        "length": {group: np.array([name == group for name in lengths]) for group in _LENGTHS if group in lengths},
        "category": {group: np.array([name == group for name in categories]) for group in sorted(set(categories))},
    }


def _group_results(
    kind: str, groups: _Groups, scorers: Sequence[str], comparisons: Sequence[Comparison], means: Means[_Column]
) -> list[Group]:
    return [
        Group(
            name=group,
            num_prompts=int(members.sum()),
            num_untied_pairs=sum(metrics.num_pairs(comparisons[p].ranks)[0] for p in np.flatnonzero(members).tolist()),
            accuracies={name: means.interval(_Column(name, POOLED, kind, group)) for name in scorers},
        )
        for group, members in groups[kind].items()
    ]


def _annotator_agreement(annotated: Annotators, means: Means[_Column]) -> AnnotatorAgreement:
    return AnnotatorAgreement(means.interval(_ANNOTATORS), sum(annotated.num_pairs), annotated.num_rankings, annotated.alpha)


def _chance(comparisons: Sequence[Comparison], ks: Sequence[int]) -> dict[str, float | None]:
    """recall@k and filter@k of random rewards."""
    chance = {}
    for what, counted_ranks in (("recall", np.asarray), ("filter", metrics.from_worst)):
        for k in ks:
            shares = [metrics.chance_at_k(counted_ranks(c.ranks), k) for c in comparisons if len(c.ranks) > k]
            chance[f"{what}@{k}"] = none_if_nan(float(metrics.weighted_mean(shares)))
    return chance


# --- metrics of prompts ------------------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """What a number of each prompt is: a metric of a scorer, over all prompts or over those of a group."""

    scorer: str
    metric: str
    kind: str = ""
    group: str = ""


_ANNOTATORS = _Column(HUMAN, "same_order")

_OVER_PROMPTS = (PER_PROMPT, "kendall_tau_b", "spearman")
"""Metrics that are averaged over prompts; the rankings of one prompt are averaged first."""

_MetricColumns = dict[str, tuple[list[float], Union[list[int], None]]]
"""Metric -> its value for each prompt [P], NaN where it is not defined, and the weight of each; None where all weigh the same."""


def _add_columns(columns: PromptColumns[_Column], scorer: str, of_scorer: _MetricColumns, groups: _Groups) -> None:
    """Add a scorer's metrics, and its pooled accuracy once more for each group, NaN for the prompts outside it."""
    for metric, (values, weights) in of_scorer.items():
        columns.add(_Column(scorer, metric), values, weights, per_prompt=metric in _OVER_PROMPTS)
    accuracies, num_pairs = of_scorer[POOLED]
    for kind, by_name in groups.items():
        for group, members in by_name.items():
            columns.add(_Column(scorer, POOLED, kind, group), np.where(members, accuracies, np.nan), num_pairs)


def _metric_columns(
    rewards: list[list[float]],
    pairs: list[_Pairs],
    comparisons: Sequence[Comparison],
    ks: Sequence[int],
    predicted_ties: PredictedTies,
    human_ties: HumanTies,
) -> _MetricColumns:
    accuracies = [metrics.pairwise_accuracy(p.counts, predicted_ties, human_ties) for p in pairs]
    of_prompts = [accuracy for accuracy, _ in accuracies]
    # The mean of the prompts' accuracies, each weighing as much as it has pairs, is the accuracy over all pairs.
    columns: _MetricColumns = {
        POOLED: (of_prompts, [num for _, num in accuracies]),
        PER_PROMPT: (of_prompts, [num for _, num in accuracies]),
    }
    both = [(values, c.ranks) for values, c in zip(rewards, comparisons, strict=True)]
    for prefix, at_k in (("recall", metrics.recall_at_k), ("filter", metrics.filter_at_k)):
        for k in ks:
            columns[f"{prefix}@{k}"] = [at_k(values, ranks, k) if len(values) > k else math.nan for values, ranks in both], None
    for correlation in (metrics.kendall_tau_b, metrics.spearman):
        columns[correlation.__name__] = [correlation(values, ranks) for values, ranks in both], None
    columns["log_loss"] = [_mean(p.losses) for p in pairs], [len(p.losses) for p in pairs]
    if any(len(p.losses_with_ties) for p in pairs):
        columns["log_loss_with_ties"] = [_mean(p.losses_with_ties) for p in pairs], [len(p.losses_with_ties) for p in pairs]
    return columns


def _tie_columns(pairs: list[_Pairs], threshold: float | None, half: bool, answered: bool) -> _MetricColumns:
    """Pooled accuracy with other treatments of ties."""
    columns: _MetricColumns = {}
    if half:
        accuracies = [metrics.pairwise_accuracy(p.counts, "half") for p in pairs]
        columns[TIES_HALF] = [accuracy for accuracy, _ in accuracies], [num for _, num in accuracies]
    if threshold is not None:
        num = [len(p.differences) for p in pairs]
        if answered:
            columns[TIES_ANSWERED] = [_mean(p.right(p.answers_tie)) for p in pairs], num
        columns[TIES_CALIBRATED] = [_mean(p.right(np.abs(p.differences) <= threshold)) for p in pairs], num
    return columns


def _verdict_columns(judge: Verdicts, comparisons: Sequence[Comparison]) -> _MetricColumns:
    columns: _MetricColumns = {}
    if TIE not in judge.labels:
        pairs = zip(judge.labels, comparisons, strict=True)
        columns[LABEL_MATCH] = [metrics.label_match([label], [human_label(c)]) for label, c in pairs], None
    if judge.swapped is not None:
        biases = [metrics.position_bias([one], [other]) for one, other in judge.orders() if other is not None]
        for name, shares in zip((FLIPPED, FIRST_SHOWN, SECOND_SHOWN), zip(*biases, strict=True), strict=True):
            columns[name] = list(shares), None
    return columns


def _estimates(name: str, means: Means[_Column], pairs: Sequence[_Pairs], bins: list[CalibrationBin]) -> dict[str, Interval]:
    """Metric -> its mean over prompts, of one scorer."""
    estimates = {column.metric: means.interval(column) for column in means.values if column.scorer == name and not column.kind}
    error = none_if_nan(metrics.expected_calibration_error(bins))
    return estimates | {CALIBRATION_ERROR: Interval(error, None, None, sum(p.counts.untied > 0 for p in pairs))}


def _prompt_results(
    name: str,
    rewards: list[list[float]],
    pairs: list[_Pairs],
    comparisons: Sequence[Comparison],
    num_tokens: Sequence[int],
    columns: PromptColumns[_Column],
    ks: Sequence[int],
) -> list[PromptResult]:
    def value(metric: str, place: int) -> float | None:
        return none_if_nan(columns[_Column(name, metric)][place])

    return [
        PromptResult(
            scorer=name,
            id=c.id,
            prompt=c.prompt,
            category=c.category,
            num_tokens=num_tokens[i],
            num_images=len(c.images),
            rewards=values,
            ranks=list(c.ranks),
            num_untied_pairs=p.counts.untied,
            num_tied_pairs=p.counts.human_ties,
            num_predicted_ties=p.counts.predicted_ties,
            pairwise_accuracy=value(PER_PROMPT, i),
            kendall_tau_b=value("kendall_tau_b", i),
            spearman=value("spearman", i),
            log_loss=value("log_loss", i),
            recall_at={k: value(f"recall@{k}", i) for k in ks},
            filter_at={k: value(f"filter@{k}", i) for k in ks},
        )
        for i, (c, values, p) in enumerate(zip(comparisons, rewards, pairs, strict=True))
    ]


# --- pairs as probabilities --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """The pairs of one comparison, as probabilities."""

    counts: PairCounts
    confidence: Floats
    """For each untied pair: the probability, in [0.5, 1], of the order that the scorer predicts."""
    agreement: Floats
    """Whether the annotators agree: 1 or 0; 0.5 where the scorer predicts no order."""
    losses: Floats
    losses_with_ties: Floats
    differences: Floats
    """For each pair, the reward of the image that the annotators prefer minus that of the other."""
    untied: NDArray[np.bool_]
    """For each pair, whether the annotators prefer one."""
    answers_tie: NDArray[np.bool_]
    """For each pair, whether a tie is the scorer's answer."""

    def right(self, ties: NDArray[np.bool_]) -> Floats:
        """For each pair, whether a scorer that ties these is right, a tie being one of three answers."""
        return np.where(self.untied, ~ties & (self.differences > 0), ties).astype(np.float64)

    @classmethod
    def of(cls, rewards: list[float], ranks: Sequence[int], chance: Callable[[Any], Floats] | None, has_ties: bool) -> _Pairs:
        values, human = np.asarray(rewards), np.asarray(ranks)
        first, second = np.triu_indices(len(values), k=1)
        swap = human[first] > human[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)  # the image that the annotators prefer comes first
        untied = human[first] != human[second]
        differences = values[first] - values[second]
        answers_tie = differences == 0
        counts, none = metrics.count_pairs(values, human), differences[:0]
        if chance is None:
            return cls(counts, none, none, none, none, differences, untied, answers_tie)
        win, lose = chance(differences), chance(-differences)
        if has_ties:
            answers_tie |= 1 - win - lose >= np.maximum(win, lose)
        right = (win / (win + lose))[untied]  # P(the annotators' order | no tie)
        losses_with_ties = metrics.log_loss(np.where(untied, win, np.clip(1 - win - lose, 0, 1)), np.ones(len(win))) if has_ties else none
        return cls(
            counts=counts,
            confidence=np.maximum(right, 1 - right),
            agreement=np.where(right == 0.5, 0.5, right > 0.5).astype(np.float64),
            losses=metrics.log_loss(right, np.ones(len(right))),
            losses_with_ties=losses_with_ties,
            differences=differences,
            untied=untied,
            answers_tie=answers_tie,
        )


def _ties_many(pairs: Sequence[_Pairs]) -> bool:
    return sum(p.counts.predicted_ties for p in pairs) > MANY_TIES * sum(p.counts.untied for p in pairs)


def _answers_ties(pairs: Sequence[_Pairs]) -> bool:
    num = sum(int(p.answers_tie.sum()) for p in pairs)
    return num > MANY_TIES * sum(len(p.answers_tie) for p in pairs) or any(len(p.losses_with_ties) for p in pairs)


def _tie_threshold(pairs: Sequence[_Pairs]) -> float | None:
    differences, untied = (np.concatenate(parts) for parts in zip(*((p.differences, p.untied) for p in pairs), strict=True))
    return None if untied.all() else metrics.calibrate_ties(differences, untied.astype(np.int8)).threshold


def _pairs_of(scorer: Scorer[Any] | Rewards | Verdicts, rewards: Sequence[list[float]], comparisons: Sequence[Comparison]) -> list[_Pairs]:
    """The pairs of each comparison. Saved rewards are taken to be in the units of training, in which sigmoid(a - b) is a probability;
    verdicts, and the rewards of a scorer that compares in another way, say nothing of probabilities."""
    chance: Callable[[Any], Floats] | None = metrics.win_probability
    if isinstance(scorer, Scorer):
        chance = scorer.win_probability if scorer.compares_rewards else None
    elif isinstance(scorer, Verdicts):
        chance = None
    has_ties = isinstance(scorer, Scorer) and scorer.tie is not None
    return [_Pairs.of(values, c.ranks, chance, has_ties) for values, c in zip(rewards, comparisons, strict=True)]


def _calibration(pairs: Sequence[_Pairs], num_bins: int) -> list[CalibrationBin]:
    confidence, agreed = (np.concatenate(parts) for parts in zip(*((p.confidence, p.agreement) for p in pairs), strict=True))
    return metrics.calibration(confidence, agreed, num_bins, low=0.5, high=1.0)  # the predicted order is never below even odds


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def write_per_prompt(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """The results of each prompt as a Parquet file, one row for each comparison and scorer."""
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist([result.as_dict() for result in evaluation.per_prompt]), os.fspath(path))
