"""Tables for a terminal, in one visual language."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from image_reward.reports.document import Grid
from image_reward.terminal import printable

_WIDE = 200  # columns where there is no terminal to fit into, so that paths stay whole in files and pipes


def show(*parts: RenderableType) -> None:
    """Print tables or text to standard output, as wide as the terminal, or wide enough for any path where there is none."""
    terminal = Console()
    console = Console(width=terminal.width if terminal.is_terminal else _WIDE)
    for part in parts:
        console.print(_Printable(part))


@dataclass(frozen=True)
class _Printable:
    """A part as it is, except that no text in it, such as a prompt or the name of a file, steers the terminal."""

    part: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.part, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def empty_table(title: str, caption: str = "") -> Table:
    """A table without columns yet."""
    return Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="",
    )


def grid_table(grid: Grid) -> Table:
    """A report's table: words are folded to fit, numbers stay whole."""
    table = empty_table(grid.title, grid.caption)
    for column in grid.columns:
        words = column.align == "left"
        table.add_column(Text(column.title), justify=column.align, no_wrap=not words, overflow="fold" if words else "ellipsis")
    for index, row in enumerate(grid.rows):
        table.add_row(*map(Text, row), style="bold" if index in grid.strong else "")
    return table
