"""A benchmark of generators as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from image_reward.reports.document import Block, Card, Cards, Column, Grid, Plot, Report, few_prompts

_SHOWN_PROMPTS = 3  # best and worst each
_ALL_PAIRS = 15  # as many as six generators have; of more, only neighbours are shown
_WIDEST_MATRIX = 10


def generators_report(found: Mapping[str, Any], pictures: bool = False) -> Report:
    """The report of a benchmark, given as its ``as_dict()``.

    ``pictures``: with figures, and galleries where the images are known, which are made for pages; else all is tables.
    """
    blocks: list[Block] = []
    if found["left_out_prompts"] or found["left_out_images"]:
        blocks.append(_left_out(found))
    if len(found["scorers"]) > 1:
        blocks.append(_overview(found))
    for scorer in found["scorers"]:
        blocks.append(_summary(found, scorer))
        blocks += _figures(found, scorer) if pictures else _tables(scorer)
        if any(generator["by_category"] for generator in scorer["generators"]):
            blocks.append(_categories(scorer))
        if scorer["differences"]:
            blocks.append(_differences(found, scorer))
        blocks += _prompts(found, scorer, pictures)
    blocks.append(_READING.format(confidence=100 * found["confidence"]))
    num = len(found["generators"])
    low, high = found["images_per_prompt"]
    images = f"{low}" if low == high else f"{low} to {high}"
    lead = (
        f"{num} generator{'s' if num > 1 else ''}, {found['num_prompts']:,} prompts, {images} image{'s' if high > 1 else ''} of each, "
        f"scored by {' and '.join(scorer['name'] for scorer in found['scorers'])}. "
        f"Intervals: bootstrap of prompts, {100 * found['confidence']:g} %, {found['num_resamples']:,} resamples, seed {found['seed']}."
    )
    lead += few_prompts(len({prompt["prompt"] for prompt in found["per_prompt"]}))
    data = {key: value for key, value in found.items() if key != "per_prompt"}
    return Report("Generators against each other", lead, blocks, data)


_READING = (
    "Mean: over all prompts, of the mean reward of a prompt's images. Median: over all images. Win rate: how often an image has a higher "
    "reward than an opponent's image of the same prompt. Prompts won: the share of prompts, over all opponents, on which the mean reward "
    "is higher. Ties count half in both. Best of n: the expected reward of the best of n images of a prompt, over all choices of n. "
    "Ranks: the {confidence:g} % interval of the rank by mean when prompts are resampled. p: paired bootstrap, two-sided, adjusted for "
    "the number of pairs (Holm)."
)


def _left_out(found: Mapping[str, Any]) -> str:
    said = []
    if prompts := found["left_out_prompts"]:
        total = len(prompts) + found["num_prompts"]
        more = f" and {len(prompts) - 10} more" if len(prompts) > 10 else ""
        said.append(f"{len(prompts)} of {total} prompts, which not all generators have images of ({', '.join(prompts[:10])}{more})")
    if images := found["left_out_images"]:
        counted = ", ".join(f"{num:,} of {name}" for name, num in images.items())
        said.append(f"images for which others have no counterpart ({counted})")
    return f"Left out, so that means compare like with like: {'; '.join(said)}."


def _overview(found: Mapping[str, Any]) -> Grid:
    """All scorers side by side, as in Table 1 of the ImageReward paper."""
    human = found["human"]
    by_name = {scorer["name"]: {g["name"]: g for g in scorer["generators"]} for scorer in found["scorers"]}
    first = next(iter(by_name.values()))
    order = sorted(found["generators"], key=lambda g: (human["ranks"].get(g, len(first)) if human else 0, first[g]["rank"]))
    columns = [Column("generator", "left"), *([Column("people")] if human else []), *map(Column, by_name)]
    rows = []
    for name in order:
        row = [name] + ([f"{human['values'][name]:g}" if name in human["values"] else "-"] if human else [])
        rows.append([*row, *(f"{of_scorer[name]['mean']['value']:.4f} ({of_scorer[name]['rank']})" for of_scorer in by_name.values())])
    if human:
        for key, title in (("spearman", "Spearman with people"), ("kendall_tau_b", "Kendall's tau-b with people")):
            found_by = [scorer[key] for scorer in found["scorers"]]
            rows.append([title, "", *("-" if estimate is None else f"{estimate['value']:.2f}" for estimate in found_by)])
    return Grid(columns, rows, "Mean reward of each generator, and its rank")


def _summary(found: Mapping[str, Any], scorer: Mapping[str, Any]) -> Grid:
    human, most = found["human"], len(scorer["generators"][0]["best_of"])
    contested = len(scorer["generators"]) > 1
    columns = [Column("generator", "left"), Column("rank"), Column("mean"), Column("interval", "center"), Column("median")]
    columns += [Column("win rate"), Column("prompts won")] if contested else []
    columns += [Column(f"best of {most}")] if most > 1 else []
    columns += [Column("rank, interval", "center")] if contested else []
    columns += [Column("people"), Column("their rank")] if human else []
    rows = []
    for generator in scorer["generators"]:
        mean, name = generator["mean"], generator["name"]
        row = [name, str(generator["rank"]), f"{mean['value']:.4f}", _interval(mean), f"{generator['median']:.4f}"]
        row += [_percent(generator["win_rate"]["value"]), _percent(generator["prompt_win_rate"]["value"])] if contested else []
        row += [f"{generator['best_of'][-1]['value']:.4f}"] if most > 1 else []
        low, high = generator["rank_low"], generator["rank_high"]
        row += [str(low) if low == high else f"{low} to {high}"] if contested else []
        if human:
            row += [f"{human['values'][name]:g}", str(human["ranks"][name])] if name in human["ranks"] else ["-", "-"]
        rows.append(row)
    return Grid(columns, rows, f"{scorer['name']}: generators by mean reward", _agreement(human, scorer), frozenset({0}))


def _agreement(human: Mapping[str, Any] | None, scorer: Mapping[str, Any]) -> str:
    if human is None:
        return ""
    if scorer["spearman"] is None:
        return "With people: no rank correlation, because one side ties everything."
    rho, tau = scorer["spearman"], scorer["kendall_tau_b"]
    return (
        f"With people, over {len(human['ranks'])} generators: Spearman {rho['value']:.2f} ({rho['low']:.2f} to {rho['high']:.2f}), "
        f"Kendall's tau-b {tau['value']:.2f} ({tau['low']:.2f} to {tau['high']:.2f}). People: {human['source']}."
    )


def _tables(scorer: Mapping[str, Any]) -> list[Block]:
    """What the figures show, in numbers."""
    generators, names = scorer["generators"], [generator["name"] for generator in scorer["generators"]]
    most = len(generators[0]["best_of"])
    blocks: list[Block] = []
    if 1 < len(names) <= _WIDEST_MATRIX:
        rows = [
            [name, *("" if a == b else _percent(rate) for b, rate in enumerate(row))]
            for a, (name, row) in enumerate(zip(names, scorer["win_matrix"], strict=True))
        ]
        title = f"{scorer['name']}: win rate of the row against the column"
        blocks.append(Grid([Column("", "left"), *map(Column, names)], rows, title))
    if most > 1:
        shown = sorted({n for n in (1, 2, 4, 8, 16, 32, 64) if n < most} | {most})
        rows = [[g["name"], *(f"{g['best_of'][n - 1]['value']:.4f}" for n in shown)] for g in generators]
        blocks.append(Grid([Column("best of", "left"), *(Column(str(n)) for n in shown)], rows, f"{scorer['name']}: best of n"))
    return blocks


def _figures(found: Mapping[str, Any], scorer: Mapping[str, Any]) -> list[Block]:
    from matplotlib.ticker import MaxNLocator

    from image_reward.reports.plots import curves, distributions, figure, heat_map

    generators, name = scorer["generators"], scorer["name"]
    names = [generator["name"] for generator in generators]
    rewards = {g: [r for prompt in found["per_prompt"] for r in prompt["rewards"][name][g]] for g in names}
    plot = figure()
    axes = plot.add_subplot()
    distributions(axes, rewards)
    axes.set_xlabel("reward")
    medians = ", ".join(f"{g['name']} {g['median']:.2f}" for g in generators)
    blocks: list[Block] = [
        Plot(
            plot,
            f"{name}: how rewards are distributed",
            f"The distribution of each generator's rewards, best mean first. Medians: {medians}.",
            "The dot is the median over all images, the bar the middle half.",
        )
    ]
    if len(names) > 1:
        plot = figure()
        rates_of = np.where(np.eye(len(names), dtype=bool), np.nan, scorer["win_matrix"])  # none is its own opponent
        heat_map(plot.add_subplot(), rates_of, names, names, format=".0%", limits=(0.0, 1.0))
        rates = ", ".join(f"{g['name']} {_percent(g['win_rate']['value'])}" for g in generators)
        said = f"The win rate of each generator against each other. Over all opponents: {rates}."
        blocks.append(Plot(plot, f"{name}: win rates", said, "The row against the column."))
    most = len(generators[0]["best_of"])
    if most > 1:
        plot = figure()
        axes = plot.add_subplot()
        curves(axes, np.arange(1, most + 1), {g["name"]: [estimate["value"] for estimate in g["best_of"]] for g in generators})
        axes.set(xlabel="images to choose from", ylabel="expected best reward")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ends = ", ".join(f"{g['name']} {g['best_of'][0]['value']:.2f} to {g['best_of'][-1]['value']:.2f}" for g in generators)
        said = f"The expected reward of the best of 1 to {most} images: {ends}."
        blocks.append(Plot(plot, f"{name}: best of n", said))
    return blocks


def _categories(scorer: Mapping[str, Any]) -> Grid:
    names = [generator["name"] for generator in scorer["generators"]]
    categories = list(scorer["generators"][0]["by_category"])
    rows = [[category, *(f"{g['by_category'][category]:.4f}" for g in scorer["generators"])] for category in categories]
    return Grid([Column("category", "left"), *map(Column, names)], rows, f"{scorer['name']}: mean reward by category of prompt")


def _differences(found: Mapping[str, Any], scorer: Mapping[str, Any]) -> Grid:
    pairs = scorer["differences"]
    caption = ""
    if len(pairs) > _ALL_PAIRS:
        names = [generator["name"] for generator in scorer["generators"]]
        neighbours = set(pairwise(names))
        caption = f"Of {len(pairs):,} pairs, neighbours in the ranking."
        pairs = [pair for pair in pairs if (pair["a"], pair["b"]) in neighbours]
    rows = [[pair["a"], pair["b"], f"{pair['value']:.4f}", _interval(pair), _p(pair["p_holm"])] for pair in pairs]
    columns = [Column("generator", "left"), Column("against", "left"), Column("difference"), Column("interval", "center"), Column("p")]
    strong = frozenset(row for row, pair in enumerate(pairs) if pair["p_holm"] <= 1 - found["confidence"])
    caption = f"{caption} Bold: p at most {1 - found['confidence']:.2g}.".strip()
    return Grid(columns, rows, f"{scorer['name']}: differences of means", caption, strong)


def _prompts(found: Mapping[str, Any], scorer: Mapping[str, Any], pictures: bool) -> list[Block]:
    """The prompts on which the generators did best and worst."""
    name = scorer["name"]
    means = [{g: float(np.mean(values)) for g, values in prompt["rewards"][name].items()} for prompt in found["per_prompt"]]
    order = sorted(range(len(means)), key=lambda p: -sum(means[p].values()))
    best = order[:_SHOWN_PROMPTS]
    worst = [p for p in reversed(order) if p not in best][:_SHOWN_PROMPTS]
    if pictures and all(prompt["images"] for prompt in found["per_prompt"]):
        return [_gallery(found["per_prompt"][p], name, what) for what, ps in (("best", best), ("worst", worst)) for p in ps]
    rows = []
    for p in best + worst[::-1]:
        first, last = max(means[p], key=means[p].__getitem__), min(means[p], key=means[p].__getitem__)
        mean = sum(means[p].values()) / len(means[p])
        row = [_short(found["per_prompt"][p]["prompt"]), f"{mean:.4f}", f"{first} {means[p][first]:.4f}", f"{last} {means[p][last]:.4f}"]
        rows.append(row[: 2 if len(means[p]) == 1 else 4])
    columns = [Column("prompt", "left"), Column("mean"), Column("best generator", "left"), Column("worst generator", "left")]
    return [Grid(columns[: len(rows[0])], rows, f"{name}: the best and the worst prompts", "By the mean over generators.")]


def _gallery(prompt: Mapping[str, Any], scorer: str, what: str) -> Cards:
    """Of each generator the image whose reward is nearest to the mean of the prompt's."""
    rewards = prompt["rewards"][scorer]
    cards = []
    for generator in sorted(rewards, key=lambda g: -float(np.mean(rewards[g]))):
        values = np.asarray(rewards[generator])
        typical = int(np.abs(values - values.mean()).argmin())
        lines = [f"reward {values[typical]:.4f}"] + ([f"mean of {len(values)}: {values.mean():.4f}"] if len(values) > 1 else [])
        cards.append(Card(prompt["images"][generator][typical], generator, lines))
    return Cards(
        cards, f"{scorer}, among the {what} prompts: {_short(prompt['prompt'])}", "Of each generator the image nearest to its mean."
    )


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['low']:.4f} to {estimate['high']:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _short(text: str, most: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def prompt_sets_report(sets: Sequence[Mapping[str, Any]]) -> Report:
    """The known sets of prompts: rows with ``name``, ``num_prompts``, ``description``, ``licence``."""
    columns = [Column("name", "left"), Column("prompts"), Column("what they are", "left"), Column("licence", "left")]
    rows = [[row["name"], f"{row['num_prompts']:,}", row["description"], row["licence"]] for row in sets]
    lead = "Print one with `image-reward prompts show NAME`; measure generators on one with `image-reward benchmark --prompts NAME`."
    return Report("Sets of prompts", lead, [Grid(columns, rows)], {"sets": list(sets)})
