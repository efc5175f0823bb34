"""A report as a file: one self-contained page, Markdown, or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from image_reward.addresses import Address, PathLike
from image_reward.errors import InputError
from image_reward.reports.document import Block, Grid, Plot, Report
from image_reward.reports.gallery import gallery_picture, render_template, write_text
from image_reward.reports.plots import COLOURS, ON_DARK, to_svg


def write(report: Report, path: PathLike) -> None:
    """Write a report as its name's ending asks: ``.html`` (one page that fetches nothing), ``.md`` (GitHub's), or ``.json`` (``data``).

    The file appears whole or not at all. Raises ``ValueError`` for another ending and for JSON that would hold NaN or infinity,
    ``ImageReadError`` for a card's image that cannot be read.
    """
    writers = {".html": _html, ".md": _markdown, ".json": _json}
    writer = writers.get(Address.parse(path).suffix.lower())
    if writer is None:
        raise InputError(f"{path}: a report is written as .html, .md or .json; give it a name that ends so")
    write_text(path, writer(report))


def _json(report: Report) -> str:
    try:
        return json.dumps(report.data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(
            f"the data of {report.title!r} hold a value that JSON cannot ({error}); give None where there is no number"
        ) from error


# --- a page --------------------------------------------------------------------------------------------------------------------------

_NATURAL, _NARROWEST, _WIDEST = 72, 0.66, 1.25  # px to an inch of figure; the least and the greatest scale on a page
_LEAST_CONTENTS = 4  # titles: fewer are seen without a list of contents


def _html(report: Report) -> str:
    blocks = [(number, *_on_page(block, f"figure-{number}-")) for number, block in enumerate(report.blocks, start=1)]
    titles = [(number, block.title) for number, block in enumerate(report.blocks, start=1) if not isinstance(block, str) and block.title]
    series = list(zip(COLOURS, ON_DARK, strict=False))
    contents = titles if len(titles) >= _LEAST_CONTENTS else []
    return render_template("report.html", title=report.title, report=report, blocks=blocks, contents=contents, series=series)


def _on_page(block: Block, prefix: str) -> tuple[str, Any]:
    """The kind of a block and what its part of the template needs."""
    if isinstance(block, str):
        return "words", block
    if isinstance(block, Grid):
        return "grid", block
    if isinstance(block, Plot):
        width = _NATURAL * block.figure.get_figwidth()
        sizes = {"narrowest": round(_NARROWEST * width), "widest": round(_WIDEST * width)}
        return "plot", {"title": block.title, "caption": block.caption, "svg": _svg(block, prefix), **sizes}
    cards = [{"picture": gallery_picture(card.image), "title": card.title, "lines": card.lines} for card in block.cards]
    return "cards", {"title": block.title, "caption": block.caption, "cards": cards}


def _svg(plot: Plot, prefix: str) -> Markup:
    drawn = to_svg(plot.figure, prefix).removeprefix("<svg ")
    return Markup('<svg role="img" aria-label="{}" {}').format(plot.description, Markup(drawn))


# --- Markdown ------------------------------------------------------------------------------------------------------------------------

_RULES = {"left": ":---", "right": "---:", "center": ":---:"}


def _markdown(report: Report) -> str:
    parts = [f"# {_escaped(report.title)}", _paragraph(report.answer), _paragraph(report.lead)]
    for block in report.blocks:
        parts += _marked(block)
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_of(block: Block) -> str:
    """One block as Markdown, for documents that are not reports."""
    return "\n\n".join(part for part in _marked(block) if part)


def _marked(block: Block) -> list[str]:
    if isinstance(block, str):
        return [_paragraph(block)]
    title = f"## {_escaped(block.title)}" if block.title else ""
    caption = _paragraph(block.caption)
    if isinstance(block, Grid):
        head = [_row([_escaped(column.title) for column in block.columns]), _row([_RULES[column.align] for column in block.columns])]
        body = [_row([_escaped(cell) for cell in row], strong=index in block.strong) for index, row in enumerate(block.rows)]
        return [title, "\n".join(head + body), caption]
    if isinstance(block, Plot):
        return [title, _paragraph(block.description), caption]
    return [title, "\n".join(_escaped(item) for item in block.listed()), caption]


def _row(cells: Sequence[str], strong: bool = False) -> str:
    return "| " + " | ".join(f"**{cell}**" if strong and cell else cell for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Text on one line that Markdown, HTML in it and GitHub's mathematics leave as it is."""
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _paragraph(text: str) -> str:
    """The same where a line's start could make it a heading or a list."""
    return re.sub(r"^(\d*)([-+#=.)])", r"\1\\\2", _escaped(text))
