"""Scorers against human rankings as a report: tables for reading, and on request plots of the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from image_reward.evaluation.agreement import Agreement, Matrix
from image_reward.evaluation.published_results import Measure, PublishedAccuracy, PublishedResults
from image_reward.evaluation.scorers import (
    ACCURACIES,
    CALIBRATION_ERROR,
    FIRST_SHOWN,
    FLIPPED,
    LABEL_MATCH,
    MANY_TIES,
    PER_PROMPT,
    POOLED,
    SECOND_SHOWN,
    SHARES,
    TIES_ANSWERED,
    TIES_CALIBRATED,
    TIES_HALF,
    AnnotatorAgreement,
    Evaluation,
    Group,
    Measured,
)
from image_reward.metrics import Interval
from image_reward.prompt_sets import first_few
from image_reward.reports.document import Block, Column, Grid, Plot, Report, few_prompts, few_resamples
from image_reward.reports.numbers import confidence_level, counted, decimal, p_value, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {
    POOLED: "accuracy, pooled (%)",
    PER_PROMPT: "accuracy, per prompt (%)",
    TIES_HALF: "accuracy, equal rewards half (%)",
    TIES_ANSWERED: "accuracy, ties as an answer (%)",
    TIES_CALIBRATED: "accuracy, ties calibrated (%)",
    LABEL_MATCH: "same label of four (%)",
    FLIPPED: "verdicts that flip (%)",
    FIRST_SHOWN: "first shown preferred (%)",
    SECOND_SHOWN: "second shown preferred (%)",
    "kendall_tau_b": "Kendall's tau-b",
    "spearman": "Spearman's rho",
    "log_loss": "log loss",
    "log_loss_with_ties": "log loss, ties as a third outcome",
    CALIBRATION_ERROR: "expected calibration error",
}
_IN_SENTENCES = {POOLED: "pooled", PER_PROMPT: "per prompt"}
_MEASURES: dict[Measure, tuple[str, str]] = {
    "diff": (POOLED, "ordered pairs (diff)"),
    "tau": (TIES_CALIBRATED, "ties calibrated (tau)"),
    "labels": (LABEL_MATCH, "label of four"),
}


def scorers_report(evaluation: Evaluation, data: str, plots: bool = False) -> Report:
    """``data``: what the comparisons are called. ``plots`` needs matplotlib."""
    published, level = evaluation.published, confidence_level(evaluation.confidence)
    known = f", which is the {published.name} split as published" if published else ""
    bad = f" ({evaluation.num_both_bad:,} of which were found both bad)" if evaluation.num_both_bad else ""
    lead = (
        f"{data}{known}: {counted(evaluation.num_prompts, 'prompt')} ({evaluation.num_distinct_prompts:,} distinct), "
        f"{evaluation.num_images:,} images, {evaluation.num_untied_pairs:,} untied and {evaluation.num_tied_pairs:,} tied pairs{bad}. "
        f"{level} intervals are from {evaluation.num_resamples:,} resamples of the prompts, the same for all scorers, "
        f"seed {evaluation.seed}."
    ) + few_prompts(evaluation.num_distinct_prompts)
    lead += _few_resamples(evaluation)
    if evaluation.refused:
        lead += f" {evaluation.refused}"
    blocks: list[Block] = [_metrics(evaluation)]
    if plots:
        blocks.append(_accuracy_plot(evaluation))
    if any(measured.over_images for measured in evaluation.scorers.values()):
        blocks.append(_over_images(evaluation))
    if evaluation.differences:
        blocks.append(_differences(evaluation))
    if published:
        blocks.append(_published(evaluation, published))
    if evaluation.ks:
        blocks.append(_best_and_worst(evaluation))
    scorers = list(evaluation.scorers)
    length_note = " Length is in tokens as BLIP counts them, with the two it adds; it reads 35."
    for groups, what, note in ((evaluation.by_length, "prompt length", length_note), (evaluation.by_category, "prompt category", "")):
        if groups:
            blocks.append(_groups(groups, scorers, what, note))
            if plots:
                blocks.append(_groups_plot(groups, scorers, what))
    if plots and any(_calibrated(measured) for measured in evaluation.scorers.values()):
        blocks.append(_calibration_plot(evaluation))
    if len(scorers) > 1:  # with one, that is in the first table already
        blocks += _agreement(evaluation.agreement)
        if plots:
            blocks.append(_agreement_plot(evaluation.agreement))
    if evaluation.annotators:
        blocks.append(_annotators(evaluation.annotators))
    title = f"{scorers[0]} against human rankings" if len(scorers) == 1 else f"{len(scorers)} scorers against human rankings"
    return Report(title, lead, blocks, data={"data": data, **evaluation.as_dict()}, answer=_answer(evaluation))


def _answer(evaluation: Evaluation) -> str:
    """Which scorer agrees most with the annotators, and whether it is significantly better than the others."""
    accuracies = {name: measured.metrics[POOLED] for name, measured in evaluation.scorers.items()}
    best, *others = sorted(accuracies, key=lambda name: -(accuracies[name].value or 0.0))
    shares = [f"{name} {with_interval(accuracies[name], percent)} %" for name in others]
    answer = f"{best} orders {with_interval(accuracies[best], percent)} % of the pairs of images as the annotators do"
    answer = ", ".join([answer, *shares]) + "."
    for name, measured in evaluation.scorers.items():
        if TIES_HALF in measured.metrics and (share := _tied_share(evaluation, measured)) > MANY_TIES:
            half = with_interval(measured.metrics[TIES_HALF], percent)
            answer += f" {name} gives equal rewards to {percent(share, 1)} % of the pairs; counted half they make that {half} %."
    if not others:
        return answer
    level = 1 - evaluation.confidence + 1e-12
    pairs = [row for row in evaluation.differences if row.metric == POOLED and best in (row.a, row.b)]
    worse = {row.b if row.a == best else row.a for row in pairs if row.p_holm <= level}
    undecided = [name for name in others if name not in worse]
    if undecided and _few_resamples(evaluation):
        return f"{answer} Whether {best} is significantly better, too few resamples cannot show."
    if undecided:
        return f"{answer} {best} is not significantly better than {first_few(undecided)}."
    return f"{answer} {best} is significantly better than {'the other' if len(others) == 1 else 'all others'}."


def _tied_share(evaluation: Evaluation, measured: Measured) -> float:
    return measured.num_predicted_ties / evaluation.num_untied_pairs


def _few_resamples(evaluation: Evaluation) -> str:
    num_tests = sum(row.metric == POOLED for row in evaluation.differences)
    return few_resamples(evaluation.num_resamples, num_tests, evaluation.confidence)


# --- tables --------------------------------------------------------------------------------------------------------------------------


def _metrics(evaluation: Evaluation) -> Grid:
    scorers = evaluation.scorers
    rows = []
    metrics = dict.fromkeys(metric for measured in scorers.values() for metric in measured.metrics)
    for metric in sorted(metrics, key=lambda metric: SHARES.index(metric) if metric in SHARES else len(SHARES)):
        estimates = [measured.metrics.get(metric) for measured in scorers.values()]
        # One number, or one for each scorer: a scorer that ties all images of a prompt has no correlation there.
        nums = [f"{estimate.num_prompts:,}" if estimate else "-" for estimate in estimates]
        nums = nums[:1] if len(set(nums)) == 1 else nums
        rows.append([_NAMES.get(metric, f"{metric} (%)"), *(_cell(estimate, metric) for estimate in estimates), " / ".join(nums)])
    rows.append(["pairs of equal reward", *(f"{measured.num_predicted_ties:,}" for measured in scorers.values()), ""])
    level = confidence_level(evaluation.confidence)
    chance = "Chance is 50 %."
    if TIES_HALF in metrics:
        tying = [name for name, measured in scorers.items() if _tied_share(evaluation, measured) > MANY_TIES]
        chance = f"Chance is 50 %, and less for a scorer that ties many pairs ({first_few(tying)}), unless they count half."
    caption = f"In accuracies, {evaluation.treatment_of_ties}. {chance} In brackets {level} intervals."
    if TIES_CALIBRATED in metrics:
        thresholds = ", ".join(f"{name} {measured.tie_threshold:.4g}" for name, measured in scorers.items())
        caption += (
            " With ties as an answer or calibrated, all pairs count, a tie being one of three answers; calibrated, rewards are tied that "
            f"differ by at most what suits these data best ({thresholds})."
        )
    if FLIPPED in metrics:
        caption += " Verdicts flip where the order in which a judge is shown two images decides; those that contradict each other are ties."
    return Grid([Column("metric", "left"), *map(Column, scorers), Column("prompts")], rows, "Agreement with the human rankings", caption)


def _over_images(evaluation: Evaluation) -> Grid:
    over = [measured.over_images for measured in evaluation.scorers.values() if measured.over_images]
    rows = [
        ["Pearson's r", *(decimal(o.pearson) for o in over)],
        ["Kendall's tau-b", *(decimal(o.kendall_tau_b) for o in over)],
        ["Spearman's rho", *(decimal(o.spearman) for o in over)],
        ["accuracy, ties calibrated (%)", *(percent(o.accuracy_ties_calibrated) for o in over)],
    ]
    caption = f"Rewards against mean ratings, {over[0].num_images:,} images; pairs are of any two images, of different prompts too."
    return Grid([Column("metric", "left"), *map(Column, evaluation.scorers)], rows, "Over all images, not grouped by prompt", caption)


def _differences(evaluation: Evaluation) -> Grid:
    """A row for each pair of scorers and metric, and the scorer that is better, if that is shown."""
    level = 1 - evaluation.confidence
    num_pairs = len(evaluation.differences) // len({row.metric for row in evaluation.differences})
    rows = []
    for row in evaluation.differences:
        better = row.a if row.value > 0 else row.b
        rows.append(
            [
                f"{row.a} - {row.b}",
                _IN_SENTENCES[row.metric],
                f"{100 * row.value:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
                p_value(row.p_value),
                *([p_value(row.p_holm)] if num_pairs > 1 else []),
                better if row.p_holm <= level + 1e-12 else "not shown",
            ]
        )
    caption = "Percentage points of accuracy, each resample drawing the same prompts for both. One is called better where "
    if num_pairs > 1:
        caption += f"the p-value, corrected by Holm's method for the {num_pairs} pairs of scorers, is at most {level:.2g}."
    else:
        caption += f"the p-value is at most {level:.2g}."
    columns = [Column("scorers", "left"), Column("accuracy", "left"), Column("difference"), Column("p")]
    columns += [Column("corrected")] if num_pairs > 1 else []
    return Grid([*columns, Column("better", "left")], rows, "Differences between scorers", caption)


def _published(evaluation: Evaluation, published: PublishedResults) -> Grid:
    matched = frozenset(place for place, row in enumerate(published.accuracies) if row.here)
    sources = "; ".join(f"{name}: {place}" for name, place in published.sources.items())
    if all(row.measure for row in published.accuracies):
        return _published_measures(evaluation, published, matched, sources)
    metrics = ACCURACIES if matched else ()

    def cells(row: PublishedAccuracy) -> list[str]:
        here = evaluation.scorers[row.here].metrics if row.here else {}
        name = f"{row.scorer}, here {row.here}" if row.here not in (None, row.scorer) else row.scorer
        return [name, f"{row.accuracy:g}", *(_cell(here.get(metric), metric) for metric in metrics), row.source]

    rows = [cells(row) for row in published.accuracies]
    rows += [[row.who, f"{row.agreement:g}", *("-" for _ in metrics), row.source] for row in published.human]
    columns = [Column("scorer", "left"), Column("published"), *(Column(f"here, {_IN_SENTENCES[metric]}") for metric in metrics)]
    caption = "Accuracy in percent; not all sources say whether theirs is pooled or per prompt. "
    caption += f"{published.note} {sources}." if published.note else f"{sources}."
    return Grid([*columns, Column("source", "left")], rows, f"Published for {published.name}", caption, strong=matched)


def _published_measures(evaluation: Evaluation, published: PublishedResults, matched: frozenset[int], sources: str) -> Grid:
    """Where the sources say how ties count, which makes numbers of one scorer differ by 20 percentage points."""
    rows = []
    for row in published.accuracies:
        assert row.measure is not None
        metric, words = _MEASURES[row.measure]
        here = evaluation.scorers[row.here].metrics.get(metric) if row.here else None
        name = f"{row.scorer}, here {row.here}" if row.here not in (None, row.scorer) else row.scorer
        rows.append([name, words, f"{row.accuracy:g}", *([_cell(here, metric)] if matched else []), row.source])
    columns = [Column("scorer", "left"), Column("accuracy", "left"), Column("published"), *([Column("here")] if matched else [])]
    caption = f"In percent. {sources}."
    return Grid([*columns, Column("source", "left")], rows, f"Published for {published.name}", caption, strong=matched)


def _best_and_worst(evaluation: Evaluation) -> Grid:
    ks = evaluation.ks
    metrics = [f"{what}@{k}" for what in ("recall", "filter") for k in ks]
    rows = [[name, *(percent(measured.metrics[metric].value) for metric in metrics)] for name, measured in evaluation.scorers.items()]
    rows.append(["chance, on these prompts", *(percent(evaluation.chance[metric]) for metric in metrics)])
    caption = (
        "Percent. recall@k: how often the image the annotators put first is among the scorer's top k; filter@k: the last among its bottom "
        "k. Only prompts of more than k images count: with k or fewer the answer is known."
    )
    published = evaluation.published and evaluation.published.best_and_worst
    if published:
        for row in published.rows:
            values = [of_k.get(k) for of_k in (row.recall, row.filter) for k in ks]
            rows.append([f"{row.scorer}, published", *(decimal(value, 2) for value in values)])
        caption += f" Published rows ({published.source}) are on {published.data}: compare them with each other, not with those above."
    return Grid([Column("scorer", "left"), *map(Column, metrics)], rows, "Finding the best and the worst image", caption)


def _groups(groups: Sequence[Group], scorers: Sequence[str], what: str, note: str) -> Grid:
    rows = [
        [group.name, *(_cell(group.accuracies[name], POOLED) for name in scorers), f"{group.num_prompts:,}", f"{group.num_untied_pairs:,}"]
        for group in groups
    ]
    columns = [Column(what, "left"), *map(Column, scorers), Column("prompts"), Column("untied pairs")]
    return Grid(columns, rows, f"Accuracy by {what}", f"Pooled accuracy in percent.{note}")


def _agreement(agreement: Agreement) -> list[Block]:
    """Who agrees with whom."""
    same = "Of the pairs that the annotators put in an order, how many both put in the same one; equal rewards are one too."
    names = agreement.names
    return [
        _matrix(names, agreement.same_order, "Agreement: same order (%)", same, percent),
        _matrix(names, agreement.kendall_tau_b, "Agreement: Kendall's tau-b", "Mean over prompts.", decimal),
        _matrix(names, agreement.spearman, "Agreement: Spearman's rho", "Mean over prompts.", decimal),
    ]


def _matrix(names: Sequence[str], matrix: Matrix, title: str, caption: str, show: Callable[[float | None], str]) -> Grid:
    rows = [[name, *("" if a == b else show(value) for b, value in enumerate(matrix[a]))] for a, name in enumerate(names)]
    return Grid([Column("", "left"), *map(Column, names)], rows, title, caption)


def _annotators(annotators: AnnotatorAgreement) -> str:
    alpha = "is not defined here, or needs `pip install 'image-reward[agreement]'`"
    if annotators.alpha is not None:
        alpha = f"is {annotators.alpha:.3f}"
    return (
        f"Annotators among themselves: {annotators.num_rankings:,} rankings of the images of "
        f"{counted(annotators.same_order.num_prompts, 'prompt')} ranked more than once. Two annotators give the same order to "
        f"{with_interval(annotators.same_order, percent)} % of the {annotators.num_pairs:,} pairs that both put in an order. "
        f"Krippendorff's alpha (ordinal) {alpha}."
    )


# --- plots ---------------------------------------------------------------------------------------------------------------------------


def _accuracy_plot(evaluation: Evaluation) -> Plot:
    from image_reward.reports.plots import figure, intervals

    accuracies = {name: measured.metrics[POOLED] for name, measured in evaluation.scorers.items()}
    values, lows, highs = zip(*map(_points, accuracies.values()), strict=True)
    drawn = figure()
    axes = drawn.subplots()
    intervals(axes, list(accuracies), values, lows, highs, reference=50)
    axes.set_xlabel("pooled accuracy (%)")
    numbers = "; ".join(f"{name} {with_interval(accuracy, percent)}" for name, accuracy in accuracies.items())
    caption = f"{confidence_level(evaluation.confidence)} intervals; chance is dashed."
    return Plot(drawn, "Accuracy", f"Pooled accuracy in percent: {numbers}.", caption)


def _groups_plot(groups: Sequence[Group], scorers: Sequence[str], what: str) -> Plot:
    from image_reward.reports.plots import COLOURS, MARKERS, figure, label, legend, style

    drawn = figure(height=max(4.0, 1.2 + 0.28 * len(groups) * len(scorers)))
    axes = drawn.subplots()
    with style():
        for place, name in enumerate(scorers):
            values, lows, highs = zip(*(_points(group.accuracies[name]) for group in groups), strict=True)
            rows = [row + 0.7 * ((place + 0.5) / len(scorers) - 0.5) for row in range(len(groups))]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.hlines(rows, lows, highs, color=colour, linewidth=2)
            axes.plot(values, rows, marker, color=colour, markersize=7, label=label(name))
        _dashed(axes, [50, 50], [-0.5, len(groups) - 0.5])
        axes.set_yticks(range(len(groups)), [label(group.name) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel("pooled accuracy (%)")
    legend(axes, drawn.get_figheight())
    description = f"Pooled accuracy by {what}, a dot with its interval for each scorer; the numbers are in the table above."
    return Plot(drawn, f"Accuracy by {what}, drawn", description, "Chance is dashed.")


def _calibration_plot(evaluation: Evaluation) -> Plot:
    from image_reward.reports.plots import COLOURS, MARKERS, figure, label, legend, style

    drawn = figure(6.0, 5.0)
    axes = drawn.subplots()
    errors = []
    with style():
        _dashed(axes, [50, 100], [50, 100])
        for place, (name, measured) in enumerate(evaluation.scorers.items()):
            if not _calibrated(measured):
                continue
            bins = [row for row in measured.calibration if row.num]
            xs, ys = [100 * row.probability for row in bins], [100 * row.frequency for row in bins]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.plot(xs, ys, color=colour, marker=marker, label=label(name))
            errors.append(f"{name} errs by {decimal(measured.metrics[CALIBRATION_ERROR].value)} on average")
        axes.set(xlabel="confidence of the scorer (%)", ylabel="annotators agree (%)")
    legend(axes, drawn.get_figheight())
    description = f"How often the annotators agree, against the scorer's confidence in the image it puts first: {'; '.join(errors)}."
    return Plot(drawn, "Calibration", description, "On the dashed line the confidence is right.")


def _calibrated(measured: Measured) -> bool:
    """Whether it gives probabilities, which a judge's verdicts are not."""
    return measured.metrics[CALIBRATION_ERROR].value is not None


def _agreement_plot(agreement: Agreement) -> Plot:
    from image_reward.reports.plots import figure, heat_map

    names = agreement.names
    drawn = figure(max(5.0, 1.4 + 0.8 * len(names)))
    values = [
        [math.nan if a == b or value is None else 100 * value for b, value in enumerate(row)] for a, row in enumerate(agreement.same_order)
    ]
    heat_map(drawn.subplots(), values, names, names, format=".1f", limits=(30, 100))
    description = "The share of pairs in the same order, each with each; the numbers are in the table above."
    return Plot(drawn, "Same order, drawn", description, "Percent.")


def _dashed(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(xs, ys, color="#8a8f98", linewidth=1.5, linestyle=(0, (4, 3)), zorder=1.5)


# --- numbers -------------------------------------------------------------------------------------------------------------------------


def _cell(estimate: Interval | None, metric: str) -> str:
    """A number with its interval, in percent where the metric is a share."""
    return with_interval(estimate, percent if "@" in metric or metric in SHARES else decimal)


def _points(estimate: Interval) -> list[float]:
    """A dot and the ends of its line, in percent."""
    return [math.nan if number is None else 100 * number for number in (estimate.value, estimate.low, estimate.high)]
