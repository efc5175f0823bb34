"""The report of a scored file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from image_reward.errors import ImageRewardError
from image_reward.images import ImageOptions, open_image
from image_reward.jobs.results import JobSummary, RewardSummary, ShownRow
from image_reward.reports.document import Block, Card, Cards, Column, Grid, Plot, Report
from image_reward.reports.numbers import counted, decimal, short


def job_report(summary: JobSummary, image: Callable[[str], Any], plots: bool = True) -> Report:
    """``image`` turns what a row names into something that can be opened."""
    scored = summary.num_rows - summary.num_errors
    lead = (
        f"{counted(summary.num_rows, 'row')}; {scored:,} {'has' if scored == 1 else 'have'} a reward and {summary.num_errors:,} an error."
    )
    blocks: list[Block] = [_rewards(summary)]
    if plots:
        blocks += [_distribution(scorer) for scorer in summary.scorers if scorer.num]
    blocks.append(_counts(summary))
    if summary.errors:
        blocks.append(_errors(summary))
    for scorer in summary.scorers:
        of = f" by {scorer.name}" if len(summary.scorers) > 1 else ""
        for rows, title in ((scorer.best, f"The best{of}"), (scorer.worst, f"The worst{of}")):
            if rows:
                blocks.append(_cards(rows, title, image))
    means = " ".join(f"By {s.name}, the mean reward is {decimal(s.mean)}." for s in summary.scorers if s.num)
    return Report(f"Rewards of {summary.folder}", lead, blocks, summary.as_dict(), means)


def _rewards(summary: JobSummary) -> Grid:
    shares = list(next((scorer.quantiles for scorer in summary.scorers if scorer.num), {}))
    rows = []
    for scorer in summary.scorers:
        numbers = [scorer.mean, scorer.std, *(scorer.quantiles.get(share) for share in shares)]
        rows.append([scorer.name, f"{scorer.num:,}", *map(decimal, numbers)])
    titles = ["rows", "mean", "standard deviation", *(f"{100 * float(share):g} %" for share in shares)]
    return Grid([Column("scorer", "left"), *map(Column, titles)], rows, "Rewards", "Percentages are shares of the rewards that lie below.")


def _counts(summary: JobSummary) -> Grid:
    rows = [
        ("different images, by the content of their files", summary.num_images),
        ("rows whose image is a copy of an earlier row's", summary.num_copies),
        ("rows whose prompt and image are those of an earlier row", summary.num_repeated_pairs),
        ("ids that occur more than once", summary.num_repeated_ids),
        ("rows skipped because workers died on them", summary.num_quarantined),
    ]
    return Grid([Column("", "left"), Column("number")], [[what, f"{number:,}"] for what, number in rows], "What occurs more than once")


def _errors(summary: JobSummary) -> Grid:
    rows = [[kind, f"{count:,}", short(summary.examples[kind])] for kind, count in summary.errors.items()]
    return Grid([Column("kind", "left"), Column("rows"), Column("the first", "left")], rows, "Errors")


def _distribution(scorer: RewardSummary) -> Plot:
    from image_reward.reports.plots import COLOURS, figure, whole_numbers

    drawn = figure(height=3.0)
    axes = drawn.add_subplot()
    edges, quantiles = scorer.bins, scorer.quantiles
    axes.stairs(scorer.counts, edges, fill=True, color=COLOURS[0])
    axes.set(xlabel="reward", ylabel="rows")
    whole_numbers(axes.yaxis)
    description = (
        f"{scorer.num:,} rewards from {edges[0]:.2f} to {edges[-1]:.2f}; half of them lie between {quantiles['0.25']:.2f} and "
        f"{quantiles['0.75']:.2f}, the median is {quantiles['0.5']:.2f}."
    )
    return Plot(drawn, f"Distribution of rewards: {scorer.name}", description)


def _cards(rows: Sequence[ShownRow], title: str, image: Callable[[str], Any]) -> Block:
    """The rows as images; as a table where one of them cannot be opened any more."""
    try:
        cards = [Card(_opened(image, row.image), f"{row.reward:+.4f}", [short(row.prompt or ""), row.image]) for row in rows]
    except (ImageRewardError, OSError):
        cells = [[f"{row.row + 1:,}", f"{row.reward:+.4f}", short(row.prompt or ""), row.image] for row in rows]
        columns = [Column("row"), Column("reward"), Column("prompt", "left"), Column("image", "left")]
        return Grid(columns, cells, title, "Images are not shown: some of them cannot be opened from here.")
    return Cards(cards, title)


def _opened(image: Callable[[str], Any], name: str) -> Any:
    opened = open_image(image(name), ImageOptions(allow_truncated=True, max_pixels=None))
    opened.thumbnail((640, 640))
    return opened
