"""The parts of a report, before they become a terminal's tables, Markdown, or one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Union

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from image_reward.images import ImageLike


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    align: Literal["left", "right", "center"] = "right"


@dataclass(frozen=True)
class Grid:
    """A table: rows of cells that are text already. Raises ``ValueError`` for a row of another number of cells than there are columns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    strong: frozenset[int] = frozenset()
    """Rows to set in bold, such as the best, counted from 0."""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} of the table {self.title!r} has {len(row)} cells for {len(self.columns)} columns")

    @property
    def headed(self) -> bool:
        """Whether a column has a title."""
        return any(column.title for column in self.columns)


@dataclass(frozen=True)
class Plot:
    """A figure. Terminals and Markdown show its description and caption."""

    figure: Figure
    title: str
    description: str
    """What it shows, in words, for readers who cannot see it."""
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """An image with its title and notes."""

    image: ImageLike
    title: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Cards:
    """Images in the order they are to be seen. Pages show them; terminals and Markdown list their titles and lines."""

    cards: Sequence[Card]
    title: str
    caption: str = ""

    def listed(self) -> list[str]:
        """The cards in words, numbered."""
        texts = [f"{card.title}: {'; '.join(card.lines)}" if card.lines else card.title for card in self.cards]
        return [f"{number}. {text}" for number, text in enumerate(texts, start=1)]


def compared(
    titles: Sequence[str], versions: Mapping[str, Sequence[ImageLike]], lines: Mapping[str, Sequence[Sequence[str]]] | None = None
) -> list[Cards]:
    """Versions of the same images side by side, such as those of a generator before and after tuning.

    Each title, such as a prompt, has one row of cards: an image of each version, with the version's name and its lines, if it has some.
    Raises ``ValueError`` for a version of another number of images or of lines than there are titles.

    >>> [row] = compared(["a red circle"], {"before": ["0.png"], "after": ["1.png"]}, {"after": [["reward 1.5"]]})
    >>> row.title, row.listed()
    ('a red circle', ['1. before', '2. after: reward 1.5'])
    """
    for name, rows in (*versions.items(), *(lines or {}).items()):
        if len(rows) != len(titles):
            raise ValueError(f"{name!r} has {len(rows)} for {len(titles)} titles")
    return [
        Cards([Card(images[i], name, lines[name][i] if lines and name in lines else ()) for name, images in versions.items()], title)
        for i, title in enumerate(titles)
    ]


Block = Union[str, Grid, Plot, Cards]


@dataclass(frozen=True)
class Report:
    """A title, the answer, the data behind it, and blocks; a ``str`` block is a paragraph."""

    title: str
    lead: str
    """The data and methods behind the numbers, in a sentence or two."""
    blocks: Sequence[Block]
    data: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: JSON values only, None where there is no number."""
    answer: str = ""
    """The result in a sentence or two, which opens the report."""


_FEW_PROMPTS = 20


def few_prompts(num: int) -> str:
    """A warning for the lead of a report on few prompts; else nothing.

    A bootstrap draws only from these prompts: where all of four favour one side, so does every resample.

    >>> few_prompts(100)
    ''
    """
    if num >= _FEW_PROMPTS:
        return ""
    prompts = "prompt" if num == 1 else "distinct prompts"
    return f" With {num} {prompts}, intervals are too narrow and p-values too small: take at least {_FEW_PROMPTS}."


def few_resamples(num: int, num_tests: int, confidence: float) -> str:
    """A warning for the lead of a report whose tests can find nothing, whatever the data are; else nothing.

    R resamples give no p-value below 2 / (R + 1), and Holm's correction multiplies the smallest of T by T.

    >>> few_resamples(10_000, 15, 0.95)
    ''
    >>> few_resamples(500, 15, 0.95)
    ' With 500 resamples no p-value of 15 differences can be below 0.060: take at least 599 (--resamples).'
    """
    least, level = 2 * num_tests / (num + 1), 1 - confidence
    if least <= level + 1e-12:
        return ""
    needed = math.ceil(2 * num_tests / level - 1e-6) - 1
    return (
        f" With {num:,} resamples no p-value of {num_tests:,} difference{'s' * (num_tests > 1)} can be below {min(least, 1):.3f}: "
        f"take at least {needed:,} (--resamples)."
    )
