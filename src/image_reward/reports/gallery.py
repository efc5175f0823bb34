"""A page of images in order of reward: one self-contained HTML file, for phone and desktop, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from image_reward.addresses import Address, PathLike
from image_reward.displays import Picture, picture

if TYPE_CHECKING:
    from image_reward.images import ImageLike
    from image_reward.scorers.distribution import RewardRow

_LONGEST_SIDE = 640  # px: sharp on a phone, and a hundred images stay below ten megabytes


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


def gallery_picture(source: ImageLike) -> Picture:
    """An image as a page of a hundred carries it. Raises ``ImageReadError`` as ``open_image`` does."""
    return picture(source, _LONGEST_SIDE)


def _card(row: RewardRow) -> _Card:
    percentile = row.distribution.percentile(row.reward) if row.distribution else None
    words = row.distribution.in_words(row.reward) if row.distribution else ""
    return _Card(Address.parse(row.image).name, row.reward, gallery_picture(row.image), percentile, words)
