"""A report as text on a terminal, which needs none of the libraries that files of it do."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from image_reward.reports import tables
from image_reward.reports.document import Block, Grid, Plot, Report


def show(report: Report) -> None:
    """Print a report to standard output. Plots are described in words, images listed by their titles."""
    parts: list[RenderableType] = [Text(report.title, style="bold"), *map(Text, filter(None, (report.answer, report.lead)))]
    for block in report.blocks:
        parts += [Text(), *_printed(block)]
    tables.show(*parts)


def _printed(block: Block) -> list[RenderableType]:
    if isinstance(block, str):
        return [Text(block)]
    if isinstance(block, Grid):
        return [tables.GridTable(block)]
    title, caption = Text(block.title, style="bold"), Text(block.caption, style="table.caption")
    if isinstance(block, Plot):
        return [title, Text(block.description), *([caption] if block.caption else [])]
    return [title, *map(Text, block.listed()), *([caption] if block.caption else [])]
