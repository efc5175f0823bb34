"""What notebooks show: images with their rewards as self-contained HTML, without scripts, readable on light and dark pages.

``types`` is below this module and names it only when a notebook asks; ``reports`` takes its pictures from here.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image

from image_reward.types import ImageOptions, Preference, Ranking

if TYPE_CHECKING:
    from image_reward.images import ImageLike

MOST_IMAGES = 24
"""Images that a notebook shows of one ranking: with thumbnails of a few kilobytes, its file stays small."""

_THUMBNAIL = 144  # px
_ENLARGED_BELOW = 160  # px: smaller images are shown with their pixels, not blurred


@dataclass(frozen=True)
class Picture:
    """An image as a page carries it."""

    url: str
    small: bool
    """So small that its pixels are to be seen as they are."""


def picture(source: ImageLike, longest_side: int) -> Picture:
    """An image, turned upright and made at most ``longest_side`` pixels long. Raises ``ImageReadError`` as ``open_image`` does."""
    from image_reward.images import open_image  # PyTorch, which a report without images does not need

    image = open_image(source, ImageOptions(orient=True, allow_truncated=True, max_pixels=None))
    small = max(image.size) < _ENLARGED_BELOW
    return Picture(f"data:image/webp;base64,{base64.b64encode(webp(image, longest_side)).decode()}", small)


def webp(image: Image.Image, longest_side: int) -> bytes:
    """An image made at most ``longest_side`` pixels long, as a file."""
    reduced = image.copy()  # it may be the caller's own
    reduced.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    reduced.convert("RGBA" if reduced.mode in ("RGBA", "LA") else "RGB").save(buffer, "WEBP", quality=86)
    return buffer.getvalue()


def ranking_html(ranking: Ranking) -> str:
    """The best ``MOST_IMAGES`` images of a ranking, best first, each with its rank, reward and name."""
    shown = ranking[:MOST_IMAGES]
    cards = (_card(item.image, f"{item.rank}. <b>{item.reward:+.4f}</b>", _name(item.image, item.index)) for item in shown)
    more = f'<p style="margin:4px">and {len(ranking) - len(shown):,} more</p>' if len(ranking) > len(shown) else ""
    return _row(cards) + more


def preference_html(preference: Preference) -> str:
    """The two images with their rewards, and a bar of the probabilities of each outcome."""
    images = preference.images or (None, None)
    shares = (preference.a_better, preference.tie, preference.b_better)
    spreads = [f" ± {spread:.4f}" for spread in preference.spreads] if preference.spreads else ["", ""]
    outcomes = ("first is better", "tie", "second is better")
    cards = [
        _card(image, f"{outcome} <b>{100 * share:.1f} %</b>", f"{reward:+.4f}{spread}")
        for image, outcome, share, reward, spread in zip(images, outcomes[::2], shares[::2], preference.rewards, spreads, strict=True)
    ]
    colours = ("#2a78d6", "#9a9a9a", "#d98324")
    parts = "".join(
        f'<div title="{outcome}: {100 * share:.1f} %" style="width:{100 * share:.2f}%;background:{colour}"></div>'
        for outcome, share, colour in zip(outcomes, shares, colours, strict=True)
    )
    bar = f'<div style="display:flex;height:10px;max-width:312px;margin:4px;border-radius:5px;overflow:hidden">{parts}</div>'
    tie = f'<p style="margin:4px">tie <b>{100 * preference.tie:.1f} %</b></p>' if preference.tie else ""
    return _row(cards) + bar + tie


def properties_html(title: str, properties: Iterable[tuple[str, str]]) -> str:
    """A table of names and values under a title."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in properties)
    return f'<table><caption style="text-align:left"><b>{escape(title)}</b></caption>{rows}</table>'


def _row(cards: Iterable[str]) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;padding:4px;font:13px/1.4 system-ui,sans-serif">{"".join(cards)}</div>'


def _card(image: Any, title: str, caption: str) -> str:
    caption = escape(caption)
    clipped = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
    return (
        f'<figure style="margin:0;width:{_THUMBNAIL}px">{_thumbnail(image)}<figcaption>{title}'
        f'<div style="{clipped};opacity:.75" title="{caption}">{caption}</div></figcaption></figure>'
    )


def _thumbnail(image: Any) -> str:
    box = f"display:flex;width:{_THUMBNAIL}px;height:{_THUMBNAIL}px;align-items:center;justify-content:center"
    try:
        shown = None if image is None else picture(image, _THUMBNAIL)
    except (OSError, ValueError):  # it could be read when it was scored, and a display should not fail
        return f'<div style="{box};opacity:.6">cannot be read</div>'
    if shown is None:
        return ""
    side = f"max-width:100%;max-height:100%;width:{_THUMBNAIL}px;object-fit:contain"
    return f'<div style="{box}"><img alt="" src="{shown.url}" style="{side}{";image-rendering:pixelated" if shown.small else ""}"></div>'


def _name(image: Any, index: int) -> str:
    return os.path.basename(os.fspath(image)) if isinstance(image, str | os.PathLike) else f"image {index}"  # noqa: PTH119 - an address, perhaps
