"""Tables for a terminal, in one visual language."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from image_reward.reports.document import Grid
from image_reward.terminal import printable

_WIDE = 200  # columns where there is no terminal to fit into, so that paths stay whole in files and pipes
_LEAST_WORDS = 24  # columns: where longer words are folded, they have at least this
_BETWEEN = 3  # columns between two cells


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


def plain(text: str, style: str = "") -> Text:
    """Text of a cell, without markup, as wide as it will be printed."""
    return Text(printable(text), style)


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


class GridTable:
    """A report's table: words are folded to fit, numbers stay whole. Where it is too wide for the terminal, its columns go into several."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        cells = [
            [printable(cell) for cell in (column.title, *(row[place] for row in grid.rows))] for place, column in enumerate(grid.columns)
        ]
        self.widths = [
            min(max(map(cell_len, texts)), _LEAST_WORDS if column.align == "left" else _WIDE)
            for column, texts in zip(grid.columns, cells, strict=True)
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = self._parts(options.max_width)
        for number, places in enumerate(parts, start=1):
            if self.grid.title:  # beside the table and not in it, which may be narrower
                yield Text(self.grid.title if number == 1 else f"{self.grid.title}, continued", style="bold")
            yield self._table(places)
        if self.grid.caption:
            yield Text(self.grid.caption, style="table.caption")

    def _parts(self, room: int) -> list[list[int]]:
        """The columns of each table, by place: as few tables as fit, all about equally wide."""
        parts = self._split(room)
        while room and len(narrower := self._split(room - 1)) == len(parts):
            parts, room = narrower, room - 1
        return parts

    def _split(self, room: int) -> list[list[int]]:
        """The first column, which names the rows, is in all parts; each has one more at least."""
        parts, used = [[0]], self.widths[0]
        for place, width in enumerate(self.widths[1:], start=1):
            if used + width + _BETWEEN > room and len(parts[-1]) > 1:
                parts.append([0])
                used = self.widths[0]
            parts[-1].append(place)
            used += width + _BETWEEN
        return parts

    def _table(self, places: list[int]) -> Table:
        table = empty_table("")
        table.show_header = self.grid.headed
        for place in places:
            column = self.grid.columns[place]
            words = column.align == "left"
            table.add_column(
                plain(column.title),
                justify=column.align,
                no_wrap=not words,
                overflow="fold" if words else "ellipsis",
                min_width=self.widths[place],
            )
        for index, row in enumerate(self.grid.rows):
            table.add_row(*(plain(row[place]) for place in places), style="bold" if index in self.grid.strong else "")
        return table
