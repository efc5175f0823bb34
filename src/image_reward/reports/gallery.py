"""A page of images in order of reward: one self-contained HTML file, for phone and desktop, light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from image_reward.addresses import Address, PathLike

if TYPE_CHECKING:
    from image_reward.images import ImageLike
    from image_reward.scorers.distribution import RewardRow

_LONGEST_SIDE = 640  # px: sharp on a phone, and a hundred images stay below ten megabytes
_ENLARGED_BELOW = 160  # px: smaller images are shown with their pixels, not blurred


@dataclass(frozen=True)
class _Card:
    name: str
    reward: float
    picture: Picture
    percentile: float | None
    words: str


def write_gallery(path: PathLike, rows: Sequence[RewardRow], prompt: str, model: str, notes: Sequence[str] = ()) -> None:
    """Write the gallery of one prompt's images, best first. ``notes`` are sentences shown under the title."""
    ordered = sorted(rows, key=lambda row: -row.reward)
    page = render_template("gallery.html", title=prompt or "(empty prompt)", rows=[_card(row) for row in ordered], model=model, notes=notes)
    write_text(path, page)


def render_template(template: str, **values: Any) -> str:
    """A page from one of the templates; everything in ``values`` is escaped."""
    environment = Environment(loader=PackageLoader("image_reward.reports"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template(template).render(values, version=version("image-reward"))


def write_text(path: PathLike, text: str) -> None:
    """Write a file whole or not at all, in a folder that may be new, here or in an object store."""
    address = Address.parse(path)
    address.parent.make_folder()
    address.write(text.encode(errors="backslashreplace"))  # a file's name may be no text at all


@dataclass(frozen=True)
class Picture:
    """An image as a page carries it."""

    url: str
    small: bool
    """So small that its pixels are to be seen as they are."""


def picture(source: ImageLike) -> Picture:
    """An image, turned upright and made small enough for a page of a hundred. Raises ``ImageReadError`` as ``open_image`` does."""
    image = _thumbnail(source)
    return Picture(_data_url(image), max(image.size) < _ENLARGED_BELOW)


def _card(row: RewardRow) -> _Card:
    percentile = row.distribution.percentile(row.reward) if row.distribution else None
    words = row.distribution.in_words(row.reward) if row.distribution else ""
    return _Card(Address.parse(row.image).name, row.reward, picture(row.image), percentile, words)


def _thumbnail(source: ImageLike) -> Image.Image:
    from image_reward.images import ImageOptions, open_image  # PyTorch, which a report without images does not need

    image = open_image(source, ImageOptions(orient=True, allow_truncated=True, max_pixels=None))
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image.convert("RGBA" if image.mode in ("RGBA", "LA") else "RGB")


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=86)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
