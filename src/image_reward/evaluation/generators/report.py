"""A benchmark of generators as a report."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from image_reward.evaluation.generators.human import HumanRanking
from image_reward.evaluation.generators.statistics import Benchmark, BenchmarkPrompt, ScorerResult
from image_reward.metrics import Interval
from image_reward.prompt_sets import first_few
from image_reward.reports.document import Block, Card, Cards, Column, Grid, Plot, Report, few_prompts, few_resamples
from image_reward.reports.numbers import between, confidence_level, counted, decimal, p_value, percent, short

_SHOWN_PROMPTS = 3  # best and worst each
_ALL_PAIRS = 15  # what six generators have; of more, only neighbours are shown
_WIDEST_MATRIX = 10
_SHOWN_N = (1, 2, 4, 8, 16, 32, 64)  # of the best of n

_READING = (
    "Mean: over all prompts, of the mean reward of a prompt's images. Median: over all images. Win rate: how often an image has a higher "
    "reward than an opponent's image of the same prompt. Prompts won: the share of prompts, over all opponents, on which the mean reward "
    "is higher. Ties count half in both. Best of n: the expected reward of the best of n images of a prompt, over all choices of n. "
    "Ranks: the {level} interval of the rank by mean when prompts are resampled. p: paired bootstrap, two-sided, adjusted for "
    "the number of pairs (Holm)."
)


def generators_report(benchmark: Benchmark, pictures: bool = False) -> Report:
    """``pictures``: with figures, and galleries where the images are known, which are made for pages; else all is tables."""
    blocks: list[Block] = []
    if benchmark.left_out_prompts or benchmark.left_out_images:
        blocks.append(_left_out(benchmark))
    if len(benchmark.scorers) > 1:
        blocks.append(_overview(benchmark))
    for scorer in benchmark.scorers:
        blocks.append(_summary(scorer, benchmark.human))
        blocks += _figures(benchmark, scorer) if pictures else _tables(scorer)
        if any(generator.by_category for generator in scorer.generators):
            blocks.append(_categories(scorer))
        if scorer.differences:
            blocks.append(_differences(scorer, 1 - benchmark.confidence))
        blocks += _prompts(benchmark, scorer.name, pictures)
    level = confidence_level(benchmark.confidence)
    blocks.append(_READING.format(level=level))
    low, high = benchmark.images_per_prompt
    images = counted(low, "image") if low == high else f"{low} to {counted(high, 'image')}"
    lead = (
        f"{counted(len(benchmark.generators), 'generator')}, {counted(benchmark.num_prompts, 'prompt')}, {images} of each, "
        f"scored by {' and '.join(scorer.name for scorer in benchmark.scorers)}. "
        f"Intervals: bootstrap of prompts, {level}, {benchmark.num_resamples:,} resamples, seed {benchmark.seed}."
    )
    lead += few_prompts(len({prompt.prompt for prompt in benchmark.per_prompt}))
    num_tests = max((len(scorer.differences) for scorer in benchmark.scorers), default=0)
    lead += few_resamples(benchmark.num_resamples, num_tests, benchmark.confidence)
    return Report("Generators against each other", lead, blocks, benchmark.as_dict(per_prompt=False), _answer(benchmark))


def _answer(benchmark: Benchmark) -> str:
    """Which generator each scorer puts first, and whether it is significantly better than the others."""
    sentences = []
    for scorer in benchmark.scorers:
        best = scorer.generators[0]
        sentence = f"By {scorer.name}, {best.name} has the highest mean reward ({decimal(best.mean.value)})"
        differences = [row for row in scorer.differences if row.a == best.name]
        close = [row.b for row in differences if row.p_holm > 1 - benchmark.confidence + 1e-12]
        if len(scorer.generators) == 1:
            sentence = f"By {scorer.name}, the mean reward of {best.name} is {decimal(best.mean.value)}"
        elif close and few_resamples(benchmark.num_resamples, len(scorer.differences), benchmark.confidence):
            sentence += "; whether significantly, too few resamples cannot show"
        elif close:
            sentence += f", not significantly above {first_few(close)}"
        else:
            sentence += f", significantly above {'the other' if len(differences) == 1 else 'all others'}"
        sentences.append(f"{sentence}.")
    return " ".join(sentences)


def _left_out(benchmark: Benchmark) -> str:
    parts = []
    if prompts := benchmark.left_out_prompts:
        total = len(prompts) + benchmark.num_prompts
        more = f" and {len(prompts) - 10} more" if len(prompts) > 10 else ""
        parts.append(f"{len(prompts)} of {total} prompts, which not all generators have images of ({', '.join(prompts[:10])}{more})")
    if images := benchmark.left_out_images:
        counts = ", ".join(f"{num:,} of {name}" for name, num in images.items())
        parts.append(f"images for which others have no counterpart ({counts})")
    return f"Left out, so that means compare like with like: {'; '.join(parts)}."


# --- tables --------------------------------------------------------------------------------------------------------------------------


def _overview(benchmark: Benchmark) -> Grid:
    """All scorers side by side, as in Table 1 of the ImageReward paper."""
    human, scorers = benchmark.human, benchmark.scorers
    results = [{generator.name: generator for generator in scorer.generators} for scorer in scorers]
    last = len(benchmark.generators)
    order = sorted(benchmark.generators, key=lambda g: (human.ranks.get(g, last) if human else 0, results[0][g].rank))
    rows = []
    for name in order:
        wins = [f"{human.values[name]:g}" if name in human.values else "-"] if human else []
        rows.append([name, *wins, *(f"{decimal(of_scorer[name].mean.value)} ({of_scorer[name].rank})" for of_scorer in results)])
    if human:
        rows.append(["Spearman with human ranking", "", *(_two_digits(scorer.spearman) for scorer in scorers)])
        rows.append(["Kendall's tau-b with human ranking", "", *(_two_digits(scorer.kendall_tau_b) for scorer in scorers)])
    columns = [Column("generator", "left"), *([Column("human")] if human else []), *(Column(scorer.name) for scorer in scorers)]
    return Grid(columns, rows, "Mean reward of each generator, and its rank")


def _summary(scorer: ScorerResult, human: HumanRanking | None) -> Grid:
    most = len(scorer.generators[0].best_of)
    contested = len(scorer.generators) > 1
    columns = [Column("generator", "left"), Column("rank"), Column("mean"), Column("interval", "center"), Column("median")]
    columns += [Column("win rate"), Column("prompts won")] if contested else []
    columns += [Column(f"best of {most}")] if most > 1 else []
    columns += [Column("rank, interval", "center")] if contested else []
    columns += [Column("human"), Column("human rank")] if human else []
    rows = []
    for g in scorer.generators:
        row = [g.name, str(g.rank), decimal(g.mean.value), between(g.mean.low, g.mean.high), decimal(g.median)]
        if g.win_rate and g.prompt_win_rate:
            row += [_rate(g.win_rate.value), _rate(g.prompt_win_rate.value)]
        row += [decimal(g.best_of[-1].value)] if most > 1 else []
        row += [str(g.rank_low) if g.rank_low == g.rank_high else f"{g.rank_low} to {g.rank_high}"] if contested else []
        if human:
            row += [f"{human.values[g.name]:g}", str(human.ranks[g.name])] if g.name in human.ranks else ["-", "-"]
        rows.append(row)
    return Grid(columns, rows, f"{scorer.name}: generators by mean reward", _agreement(human, scorer), frozenset({0}))


def _agreement(human: HumanRanking | None, scorer: ScorerResult) -> str:
    if human is None:
        return ""
    rho, tau = scorer.spearman, scorer.kendall_tau_b
    if rho is None or tau is None:
        return "There is no rank correlation with the human ranking, because one side ties everything."
    return (
        f"Against the human ranking of {counted(len(human.ranks), 'generator')}: "
        f"Spearman {decimal(rho.value, 2)} ({between(rho.low, rho.high, 2)}), "
        f"Kendall's tau-b {decimal(tau.value, 2)} ({between(tau.low, tau.high, 2)}). The human ranking is from {human.source}."
    )


def _tables(scorer: ScorerResult) -> list[Block]:
    """What the figures show, in numbers."""
    generators, names = scorer.generators, [generator.name for generator in scorer.generators]
    most = len(generators[0].best_of)
    blocks: list[Block] = []
    if 1 < len(names) <= _WIDEST_MATRIX:
        rows = [
            [name, *("" if a == b else _rate(rate) for b, rate in enumerate(row))]
            for a, (name, row) in enumerate(zip(names, scorer.win_matrix, strict=True))
        ]
        title = f"{scorer.name}: win rate of the row against the column"
        blocks.append(Grid([Column("", "left"), *map(Column, names)], rows, title))
    if most > 1:
        shown = sorted({n for n in _SHOWN_N if n < most} | {most})
        rows = [[g.name, *(decimal(g.best_of[n - 1].value) for n in shown)] for g in generators]
        blocks.append(Grid([Column("best of", "left"), *(Column(str(n)) for n in shown)], rows, f"{scorer.name}: best of n"))
    return blocks


def _categories(scorer: ScorerResult) -> Grid:
    generators = scorer.generators
    rows = [[category, *(decimal(g.by_category[category]) for g in generators)] for category in generators[0].by_category]
    columns = [Column("category", "left"), *(Column(g.name) for g in generators)]
    return Grid(columns, rows, f"{scorer.name}: mean reward by category of prompt")


def _differences(scorer: ScorerResult, level: float) -> Grid:
    pairs = scorer.differences
    caption = ""
    if len(pairs) > _ALL_PAIRS:
        neighbours = set(pairwise(generator.name for generator in scorer.generators))
        caption = f"Of {len(pairs):,} pairs, neighbours in the ranking. "
        pairs = [pair for pair in pairs if (pair.a, pair.b) in neighbours]
    rows = [[pair.a, pair.b, decimal(pair.value), between(pair.low, pair.high), p_value(pair.p_holm)] for pair in pairs]
    columns = [Column("generator", "left"), Column("against", "left"), Column("difference"), Column("interval", "center"), Column("p")]
    strong = frozenset(row for row, pair in enumerate(pairs) if pair.p_holm <= level)
    caption += f"Bold, where there is bold: p at most {level:.2g}." if strong else ""
    return Grid(columns, rows, f"{scorer.name}: differences of means", caption.strip(), strong)


# --- figures -------------------------------------------------------------------------------------------------------------------------


def _figures(benchmark: Benchmark, scorer: ScorerResult) -> list[Block]:
    blocks: list[Block] = [_rewards_plot(benchmark, scorer)]
    if len(scorer.generators) > 1:
        blocks.append(_win_rates_plot(scorer))
    if len(scorer.generators[0].best_of) > 1:
        blocks.append(_best_of_plot(scorer))
    return blocks


def _rewards_plot(benchmark: Benchmark, scorer: ScorerResult) -> Plot:
    from image_reward.reports.plots import distributions, figure

    name, generators = scorer.name, scorer.generators
    drawn = figure()
    axes = drawn.add_subplot()
    distributions(axes, {g.name: [r for prompt in benchmark.per_prompt for r in prompt.rewards[name][g.name]] for g in generators})
    axes.set_xlabel("reward")
    medians = ", ".join(f"{g.name} {g.median:.2f}" for g in generators)
    return Plot(
        drawn,
        f"{name}: how rewards are distributed",
        f"The distribution of each generator's rewards, best mean first. Medians: {medians}.",
        "The dot is the median over all images, the bar the middle half.",
    )


def _win_rates_plot(scorer: ScorerResult) -> Plot:
    from image_reward.reports.plots import figure, heat_map

    names = [generator.name for generator in scorer.generators]
    drawn = figure()
    rates = np.where(np.eye(len(names), dtype=bool), np.nan, scorer.win_matrix)  # none is its own opponent
    heat_map(drawn.add_subplot(), rates, names, names, format=".0%", limits=(0.0, 1.0))
    overall = ", ".join(f"{g.name} {_rate(g.win_rate.value)}" for g in scorer.generators if g.win_rate)
    description = f"The win rate of each generator against each other. Over all opponents: {overall}."
    return Plot(drawn, f"{scorer.name}: win rates", description, "The row against the column.")


def _best_of_plot(scorer: ScorerResult) -> Plot:
    from matplotlib.ticker import MaxNLocator

    from image_reward.reports.plots import curves, figure

    generators, most = scorer.generators, len(scorer.generators[0].best_of)
    drawn = figure()
    axes = drawn.add_subplot()
    curves(
        axes, np.arange(1, most + 1), {g.name: np.array([estimate.value for estimate in g.best_of], dtype=np.float64) for g in generators}
    )
    axes.set(xlabel="images to choose from", ylabel="expected best reward")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends = ", ".join(f"{g.name} {decimal(g.best_of[0].value, 2)} to {decimal(g.best_of[-1].value, 2)}" for g in generators)
    return Plot(drawn, f"{scorer.name}: best of n", f"The expected reward of the best of 1 to {most} images: {ends}.")


# --- prompts -------------------------------------------------------------------------------------------------------------------------


def _prompts(benchmark: Benchmark, scorer: str, pictures: bool) -> list[Block]:
    """The prompts on which the generators did best and worst."""
    prompts = benchmark.per_prompt
    means = [{g: float(np.mean(values)) for g, values in prompt.rewards[scorer].items()} for prompt in prompts]
    order = sorted(range(len(means)), key=lambda p: -sum(means[p].values()))
    best = order[:_SHOWN_PROMPTS]
    worst = [p for p in reversed(order) if p not in best][:_SHOWN_PROMPTS]
    if pictures and all(prompt.images for prompt in prompts):
        return [_gallery(prompts[p], scorer, what) for what, places in (("best", best), ("worst", worst)) for p in places]
    rows = []
    for p in best + worst[::-1]:
        first, last = max(means[p], key=means[p].__getitem__), min(means[p], key=means[p].__getitem__)
        mean = sum(means[p].values()) / len(means[p])
        row = [short(prompts[p].prompt), decimal(mean), f"{first} {decimal(means[p][first])}", f"{last} {decimal(means[p][last])}"]
        rows.append(row[: 2 if len(means[p]) == 1 else 4])
    columns = [Column("prompt", "left"), Column("mean"), Column("best generator", "left"), Column("worst generator", "left")]
    return [Grid(columns[: len(rows[0])], rows, f"{scorer}: the best and the worst prompts", "By the mean over generators.")]


def _gallery(prompt: BenchmarkPrompt, scorer: str, what: str) -> Cards:
    """Of each generator the image whose reward is nearest to the mean of the prompt's."""
    rewards = {generator: np.asarray(values) for generator, values in prompt.rewards[scorer].items()}
    cards = []
    for generator in sorted(rewards, key=lambda g: -float(rewards[g].mean())):
        values = rewards[generator]
        typical = int(np.abs(values - values.mean()).argmin())
        lines = [f"reward {values[typical]:.4f}"] + ([f"mean of {len(values)}: {values.mean():.4f}"] if len(values) > 1 else [])
        cards.append(Card(prompt.images[generator][typical], generator, lines))
    title = f"{scorer}, among the {what} prompts: {short(prompt.prompt)}"
    return Cards(cards, title, "Of each generator the image nearest to its mean.")


def _two_digits(estimate: Interval | None) -> str:
    return decimal(estimate.value if estimate else None, 2)


def _rate(share: float | None) -> str:
    return f"{percent(share, 1)} %"
