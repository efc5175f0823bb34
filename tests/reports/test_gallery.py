from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from image_reward.reports.gallery import write_gallery
from image_reward.scorers.distribution import RewardRow, published_distribution


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def rows(folder: Path, *rewards: float) -> list[RewardRow]:
    names = ("a.png", "b.png", "c.png")
    return [RewardRow(str(folder / name), reward, None, published_distribution("ImageReward-v1.0")) for name, reward in zip(names, rewards)]  # noqa: B905


def test_images_are_embedded_in_order_of_reward(image_folder: Path, tmp_path: Path) -> None:
    write_gallery(tmp_path / "new" / "page.html", rows(image_folder, 0.5, -1.0, 9.0), "a <b>bold</b> prompt", "tiny", ["A note."])
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [image["alt"] for image in page.images] == ["c.png, rank 1", "a.png, rank 2", "b.png, rank 3"]
    assert all(link.startswith("data:image/webp;base64,") for link in page.links)  # one file, nothing fetched
    picture = Image.open(io.BytesIO(base64.b64decode(page.links[0].split(",")[1])))
    assert picture.size == (640, 427)
    assert "a &lt;b&gt;bold&lt;/b&gt; prompt" in text
    assert "<b>bold</b>" not in text
    assert "A note." in text
    assert re.findall(r"better than (?:all|[0-9]+ %) of the published images</p>", text)[0].startswith("better than all")
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_a_page_that_cannot_be_written_leaves_nothing(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        write_gallery(tmp_path / "file" / "page.html", rows(image_folder, 1.0), "cat", "tiny")
