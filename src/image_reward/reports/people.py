"""Scorers against people as a report, from an evaluation's ``as_dict()``: tables for reading, and on request plots of the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from image_reward.reports.document import Block, Column, Grid, Plot, Report, few_prompts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POOLED, _PER_PROMPT = "pairwise_accuracy_pooled", "pairwise_accuracy_per_prompt"
_NAMES = {
    _POOLED: "accuracy, pooled (%)",
    _PER_PROMPT: "accuracy, per prompt (%)",
    "kendall_tau_b": "Kendall's tau-b",
    "spearman": "Spearman's rho",
    "log_loss": "log loss",
    "log_loss_with_ties": "log loss, ties as a third outcome",
    "expected_calibration_error": "expected calibration error",
}
_IN_SENTENCES = {_POOLED: "pooled", _PER_PROMPT: "per prompt"}

Found = Mapping[str, Any]


def people_report(found: Found, data: str, plots: bool = False) -> Report:
    """``found``: an ``Evaluation.as_dict()``. ``data``: what the comparisons are called. ``plots`` needs matplotlib."""
    published = found["published"]
    known = f", which is the {published['name']} split as published" if published else ""
    lead = (
        f"{data}{known}: {found['num_prompts']:,} prompts ({found['num_distinct_prompts']:,} distinct), {found['num_images']:,} images, "
        f"{found['num_untied_pairs']:,} untied and {found['num_tied_pairs']:,} tied pairs. "
        f"{_percentage(found['confidence'])} intervals are from {found['num_resamples']:,} resamples of the prompts, the same for all "
        f"scorers, seed {found['seed']}."
    ) + few_prompts(found["num_distinct_prompts"])
    blocks: list[Block] = [_metrics(found)]
    if plots:
        blocks.append(_accuracy_plot(found))
    blocks += _differences(found)
    if published:
        blocks.append(_published(found))
    if found["ks"]:
        blocks.append(_best_and_worst(found))
    for kind, what in (("by_length", "prompt length"), ("by_category", "prompt category")):
        if found[kind]:
            blocks.append(_groups(found, kind, what))
            if plots:
                blocks.append(_groups_plot(found, kind, what))
    if plots:
        blocks.append(_calibration_plot(found))
    blocks += _agreement(found, plots)
    blocks += _annotators(found)
    scorers = list(found["scorers"])
    title = f"{scorers[0]} against people" if len(scorers) == 1 else f"{len(scorers)} scorers against people"
    return Report(title, lead, blocks, data={"data": data, **found})


# --- tables --------------------------------------------------------------------------------------------------------------------------


def _metrics(found: Found) -> Grid:
    scorers = found["scorers"]
    rows = []
    for metric in dict.fromkeys(metric for measured in scorers.values() for metric in measured["metrics"]):
        estimates = [measured["metrics"].get(metric) for measured in scorers.values()]
        # One number, or one for each scorer: a scorer that ties all images of a prompt has no correlation there.
        nums = [f"{estimate['num_prompts']:,}" if estimate else "-" for estimate in estimates]
        nums = nums[:1] if len(set(nums)) == 1 else nums
        rows.append([_name(metric), *(_cell(estimate, metric) for estimate in estimates), " / ".join(nums)])
    rows.append(["pairs of equal reward", *(f"{measured['num_predicted_ties']:,}" for measured in scorers.values()), ""])
    caption = f"In accuracies, {found['treatment_of_ties']}. Chance is 50 %. In brackets {_percentage(found['confidence'])} intervals."
    return Grid([Column("metric", "left"), *map(Column, scorers), Column("prompts")], rows, "Agreement with people", caption)


def _differences(found: Found) -> list[Block]:
    """A row for each pair of scorers and metric, with what it says in words."""
    if not found["differences"]:
        return []
    level = 1 - found["confidence"]
    num_pairs = len(found["differences"]) // len({row["metric"] for row in found["differences"]})
    rows = []
    for row in found["differences"]:
        better = row["a"] if row["value"] > 0 else row["b"]
        rows.append(
            [
                f"{row['a']} - {row['b']}",
                _IN_SENTENCES[row["metric"]],
                f"{100 * row['value']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]",
                _p_value(row["p_value"]),
                *([_p_value(row["p_holm"])] if num_pairs > 1 else []),
                better if row["p_holm"] <= level + 1e-12 else "not shown",
            ]
        )
    caption = "Percentage points of accuracy, each resample drawing the same prompts for both. One is called better where "
    if num_pairs > 1:
        caption += f"the p-value, corrected by Holm's method for the {num_pairs} pairs of scorers, is at most {level:.2g}."
    else:
        caption += f"the p-value is at most {level:.2g}."
    columns = [Column("scorers", "left"), Column("accuracy", "left"), Column("difference"), Column("p")]
    columns += [Column("corrected")] if num_pairs > 1 else []
    return [Grid([*columns, Column("better", "left")], rows, "Differences between scorers", caption)]


def _published(found: Found) -> Grid:
    published = found["published"]
    matched = frozenset(place for place, row in enumerate(published["accuracies"]) if row["here"])
    metrics = (_POOLED, _PER_PROMPT) if matched else ()
    rows = []
    for row in published["accuracies"]:
        here = found["scorers"][row["here"]]["metrics"] if row["here"] else {}
        name = f"{row['scorer']}, here {row['here']}" if row["here"] not in (None, row["scorer"]) else row["scorer"]
        rows.append([name, f"{row['accuracy']:g}", *(_cell(here.get(metric), metric) for metric in metrics), row["source"]])
    rows += [[row["who"], f"{row['agreement']:g}", *("-" for _ in metrics), row["source"]] for row in published["people"]]
    columns = [Column("scorer", "left"), Column("published"), *(Column(f"here, {_IN_SENTENCES[metric]}") for metric in metrics)]
    caption = "Accuracy in percent; not all sources say whether theirs is pooled or per prompt. "
    caption += "; ".join(f"{name}: {place}" for name, place in published["sources"].items()) + "."
    return Grid([*columns, Column("source", "left")], rows, f"Published for {published['name']}", caption, strong=matched)


def _best_and_worst(found: Found) -> Grid:
    metrics = [f"{what}@{k}" for what in ("recall", "filter") for k in found["ks"]]
    rows = [[name, *(_percent(measured["metrics"][metric]["value"]) for metric in metrics)] for name, measured in found["scorers"].items()]
    rows.append(["chance, on these prompts", *(_percent(found["chance"][metric]) for metric in metrics)])
    caption = (
        "Percent. recall@k: how often the image people put first is among the scorer's top k; filter@k: the last among its bottom k. "
        "Only prompts of more than k images count: with k or fewer the answer is known."
    )
    told = found["published"] and found["published"]["best_and_worst"]
    if told:
        for row in told["rows"]:
            values = [row[what].get(str(k)) for what in ("recall", "filter") for k in found["ks"]]
            rows.append([f"{row['scorer']}, published", *("-" if value is None else f"{value:.2f}" for value in values)])
        caption += f" Published rows ({told['source']}) are on {told['data']}: compare them with each other, not with those above."
    return Grid([Column("scorer", "left"), *map(Column, metrics)], rows, "The best and the worst image found", caption)


def _groups(found: Found, kind: str, what: str) -> Grid:
    rows = [
        [
            group["name"],
            *(_cell(estimate, _POOLED) for estimate in group["accuracies"].values()),
            f"{group['num_prompts']:,}",
            f"{group['num_untied_pairs']:,}",
        ]
        for group in found[kind]
    ]
    caption = "Pooled accuracy in percent."
    if kind == "by_length":
        caption += " Length is in tokens as BLIP counts them, with the two it adds; it reads 35."
    columns = [Column(what, "left"), *map(Column, found["scorers"]), Column("prompts"), Column("untied pairs")]
    return Grid(columns, rows, f"Accuracy by {what}", caption)


_MATRICES = {
    "same_order": (
        "Same order (%)",
        "Of the pairs that people put in an order, how many both put in the same one; equal rewards are one too.",
    ),
    "kendall_tau_b": ("Kendall's tau-b", "Mean over prompts."),
    "spearman": ("Spearman's rho", "Mean over prompts."),
}


def _agreement(found: Found, plots: bool) -> list[Block]:
    """Who agrees with whom; with one scorer that is in the first table already."""
    matrices = found["agreement"]
    names = matrices["names"]
    if len(names) < 3:
        return []
    blocks: list[Block] = []
    for kind, (title, caption) in _MATRICES.items():
        show = _percent if kind == "same_order" else _decimal
        rows = [[name, *("" if a == b else show(value) for b, value in enumerate(matrices[kind][a]))] for a, name in enumerate(names)]
        blocks.append(Grid([Column("", "left"), *map(Column, names)], rows, f"Agreement: {title}", caption))
    if plots:
        blocks.append(_agreement_plot(matrices))
    return blocks


def _annotators(found: Found) -> list[Block]:
    people = found["annotators"]
    if not people:
        return []
    same, alpha = people["same_order"], people["alpha"]
    said = "is not defined here, or needs `pip install 'image-reward[agreement]'`" if alpha is None else f"is {alpha:.3f}"
    prompts = f"{same['num_prompts']:,} prompt{'s' if same['num_prompts'] != 1 else ''}"
    return [
        f"People among themselves: {people['num_rankings']:,} rankings of the images of {prompts} ranked more than once. Two annotators "
        f"give the same order to {_cell(same, _POOLED)} % of the {people['num_pairs']:,} pairs that both put in an order. "
        f"Krippendorff's alpha (ordinal) {said}."
    ]


# --- plots ---------------------------------------------------------------------------------------------------------------------------


def _accuracy_plot(found: Found) -> Plot:
    from image_reward.reports.plots import figure, intervals

    scorers = found["scorers"]
    values, lows, highs = zip(*(_points(measured["metrics"][_POOLED]) for measured in scorers.values()), strict=True)
    drawn = figure()
    axes = drawn.subplots()
    intervals(axes, list(scorers), values, lows, highs, reference=50)
    axes.set_xlabel("pooled accuracy (%)")
    said = "; ".join(f"{name} {_cell(measured['metrics'][_POOLED], _POOLED)}" for name, measured in scorers.items())
    return Plot(
        drawn, "Accuracy", f"Pooled accuracy in percent: {said}.", f"{_percentage(found['confidence'])} intervals; chance is dashed."
    )


def _groups_plot(found: Found, kind: str, what: str) -> Plot:
    from image_reward.reports.plots import COLOURS, MARKERS, figure, legend, style

    groups, scorers = found[kind], list(found["scorers"])
    drawn = figure(height=max(4.0, 1.2 + 0.28 * len(groups) * len(scorers)))
    axes = drawn.subplots()
    with style():
        for place, name in enumerate(scorers):
            values, lows, highs = zip(*(_points(group["accuracies"][name]) for group in groups), strict=True)
            rows = [row + 0.7 * ((place + 0.5) / len(scorers) - 0.5) for row in range(len(groups))]
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.hlines(rows, lows, highs, color=colour, linewidth=2)
            axes.plot(values, rows, marker, color=colour, markersize=7, label=name.replace("$", r"\$"))
        _dashed(axes, [50, 50], [-0.5, len(groups) - 0.5])
        axes.set_yticks(range(len(groups)), [group["name"].replace("$", r"\$") for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel("pooled accuracy (%)")
    legend(axes, drawn.get_figheight())
    described = f"Pooled accuracy by {what}, a dot with its interval for each scorer; the numbers are in the table above."
    return Plot(drawn, f"Accuracy by {what}, drawn", described, "Chance is dashed.")


def _calibration_plot(found: Found) -> Plot:
    from image_reward.reports.plots import COLOURS, MARKERS, figure, legend, style

    drawn = figure(6.0, 5.0)
    axes = drawn.subplots()
    said = []
    with style():
        _dashed(axes, [50, 100], [50, 100])
        for place, (name, measured) in enumerate(found["scorers"].items()):
            bins = [row for row in measured["calibration"] if row["num"]]
            xs, ys = ([100 * row[key] for row in bins] for key in ("probability", "frequency"))
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.plot(xs, ys, color=colour, marker=marker, label=name.replace("$", r"\$"))
            said.append(f"{name} errs by {_decimal(measured['metrics']['expected_calibration_error']['value'])} on average")
        axes.set(xlabel="how sure the scorer is (%)", ylabel="how often people agree (%)")
    legend(axes, drawn.get_figheight())
    described = f"How often people agree against how sure the scorer is of the image it puts first: {'; '.join(said)}."
    return Plot(drawn, "Calibration", described, "On the dashed line, probabilities are what they say.")


def _agreement_plot(matrices: Found) -> Plot:
    from image_reward.reports.plots import figure, heat_map

    names = matrices["names"]
    drawn = figure(max(5.0, 1.4 + 0.8 * len(names)))
    axes = drawn.subplots()
    values = [[math.nan if a == b else 100 * _number(value) for b, value in enumerate(row)] for a, row in enumerate(matrices["same_order"])]
    heat_map(axes, values, names, names, format=".1f", limits=(30, 100))
    return Plot(
        drawn, "Same order, drawn", "The share of pairs in the same order, each with each; the numbers are in the table above.", "Percent."
    )


def _dashed(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(xs, ys, color="#8a8f98", linewidth=1.5, linestyle=(0, (4, 3)), zorder=1.5)


# --- numbers in words ----------------------------------------------------------------------------------------------------------------


def _name(metric: str) -> str:
    return _NAMES.get(metric, f"{metric} (%)")


def _in_percent(metric: str) -> bool:
    return "@" in metric or metric in (_POOLED, _PER_PROMPT)


def _cell(estimate: Found | None, metric: str) -> str:
    """65.14 [63.20, 66.91]"""
    if estimate is None or estimate["value"] is None:
        return "-"
    show = _percent if _in_percent(metric) else _decimal
    interval = "" if estimate["low"] is None else f" [{show(estimate['low'])}, {show(estimate['high'])}]"
    return show(estimate["value"]) + interval


def _points(estimate: Found) -> list[float]:
    return [100 * _number(estimate[key]) for key in ("value", "low", "high")]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _percentage(share: float) -> str:
    return f"{100 * share:g} %"
