"""The report of a scored file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from image_reward.images import ImageOptions, open_image
from image_reward.reports.document import Block, Card, Cards, Column, Grid, Plot, Report

_LONGEST_PROMPT = 90


def job_report(found: Mapping[str, Any], image: Callable[[str], Any], plots: bool = True) -> Report:
    """``found``: a ``JobSummary`` as a dict. ``image`` turns what a row names into something that can be opened."""
    read = found["num_rows"] - found["num_errors"]
    lead = f"{found['num_rows']:,} rows; {read:,} have a reward and {found['num_errors']:,} an error."
    blocks: list[Block] = [_rewards(found)]
    if plots:
        blocks += [_distribution(scorer) for scorer in found["scorers"] if scorer["num"]]
    blocks.append(_counts(found))
    if found["errors"]:
        blocks.append(_errors(found))
    for scorer in found["scorers"]:
        for which in ("best", "worst"):
            if rows := scorer[which]:
                of = f" by {scorer['name']}" if len(found["scorers"]) > 1 else ""
                blocks.append(_cards(rows, f"The {which}{of}", image))
    return Report(f"Rewards of {found['folder']}", lead, blocks, found)


def _rewards(found: Mapping[str, Any]) -> Grid:
    shares = list(next((scorer["quantiles"] for scorer in found["scorers"] if scorer["num"]), {}))
    rows = []
    for scorer in found["scorers"]:
        numbers = [scorer["mean"], scorer["std"], *scorer["quantiles"].values()] if scorer["num"] else [None] * (2 + len(shares))
        rows.append([scorer["name"], f"{scorer['num']:,}", *("–" if number is None else f"{number:.4f}" for number in numbers)])
    titles = ["rows", "mean", "deviation", *(f"{100 * float(share):g} %" for share in shares)]
    return Grid([Column("scorer", "left"), *map(Column, titles)], rows, "Rewards", "Percentages are shares of the rewards that lie below.")


def _counts(found: Mapping[str, Any]) -> Grid:
    rows = [
        ("different images, by the content of their files", found["num_images"]),
        ("rows whose image is a copy of an earlier row's", found["num_copies"]),
        ("rows whose prompt and image are those of an earlier row", found["num_repeated_pairs"]),
        ("ids that occur more than once", found["num_repeated_ids"]),
        ("rows given up because workers died on them", found["num_quarantined"]),
    ]
    return Grid([Column("", "left"), Column("number")], [[what, f"{number:,}"] for what, number in rows], "What occurs more than once")


def _errors(found: Mapping[str, Any]) -> Grid:
    rows = [[kind, f"{count:,}", _short(found["examples"][kind])] for kind, count in found["errors"].items()]
    return Grid([Column("kind", "left"), Column("rows"), Column("the first", "left")], rows, "Errors")


def _distribution(scorer: Mapping[str, Any]) -> Plot:
    from image_reward.reports.plots import COLOURS, figure

    drawn = figure(height=3.0)
    axes = drawn.add_subplot()
    edges = scorer["bins"]
    axes.stairs(scorer["counts"], edges, fill=True, color=COLOURS[0])
    axes.set(xlabel="reward", ylabel="rows")
    quantiles = scorer["quantiles"]
    described = (
        f"{scorer['num']:,} rewards from {edges[0]:.2f} to {edges[-1]:.2f}; half of them lie between {quantiles['0.25']:.2f} and "
        f"{quantiles['0.75']:.2f}, the median is {quantiles['0.5']:.2f}."
    )
    return Plot(drawn, f"Distribution of rewards: {scorer['name']}", described)


def _cards(rows: list[Mapping[str, Any]], title: str, image: Callable[[str], Any]) -> Block:
    """The rows as images; as a table where one of them cannot be opened any more."""
    try:
        cards = [Card(_opened(image, row["image"]), f"{row['reward']:+.4f}", [_short(row["prompt"]), row["image"]]) for row in rows]
    except (OSError, ValueError, RuntimeError, LookupError):
        cells = [[f"{row['row'] + 1:,}", f"{row['reward']:+.4f}", _short(row["prompt"]), row["image"]] for row in rows]
        columns = [Column("row"), Column("reward"), Column("prompt", "left"), Column("image", "left")]
        return Grid(columns, cells, title, "Images are not shown: some of them cannot be opened from here.")
    return Cards(cards, title)


def _opened(image: Callable[[str], Any], name: str) -> Any:
    opened = open_image(image(name), ImageOptions(allow_truncated=True, max_pixels=None))
    opened.thumbnail((640, 640))
    return opened


def _short(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= _LONGEST_PROMPT else f"{words[: _LONGEST_PROMPT - 1]}…"
