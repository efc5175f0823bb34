"""What a notebook shows is checked as a browser would read it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_reward import displays
from image_reward.scorers import Ensemble, ImageRewardScorer, Reference
from image_reward.types import Preference, Ranking

VOID = {"img", "br"}


class Page(HTMLParser):
    """Well-formed HTML as its text and its pictures; no element is left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.pictures: list[Image.Image] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            kind, data = str(dict(attrs)["src"]).split(",")
            assert kind == "data:image/webp;base64"  # nothing is fetched from elsewhere
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_a_ranking_shows_its_images_best_first(tmp_path: Path) -> None:
    Image.new("RGB", (900, 300), "red").save(tmp_path / "red.png")
    green, blue = Image.new("RGB", (40, 80), (0, 255, 0)), np.full((64, 64, 3), (0, 0, 255), np.uint8)
    page = Page(Ranking.from_rewards([0.5, -1.25, 2.0], [tmp_path / "red.png", green, blue])._repr_html_())
    assert [picture.size for picture in page.pictures] == [(64, 64), (144, 48), (40, 80)]
    for picture, colour in zip(page.pictures, [(0, 0, 255), (255, 0, 0), (0, 255, 0)], strict=True):
        assert np.allclose(np.asarray(picture.convert("RGB"))[20, 20], colour, atol=12)
    assert re.findall(r"[-+]\d+\.\d{4}", page.text) == ["+2.0000", "+0.5000", "-1.2500"]
    assert re.findall(r"red\.png|image \d", page.text) == ["image 2", "red.png", "image 1"]


def test_names_are_escaped_and_images_that_are_gone_are_named() -> None:
    html = Ranking.from_rewards([0.0, 1.0, 0.5], ["<script>.png", b"bytes", None])._repr_html_()
    assert "<script>" not in html
    assert Page(html).pictures == []
    assert Page(html).text.count("cannot be read") == 2  # of None nothing is known
    assert "<script>.png" in Page(html).text
    assert Page(Ranking.from_rewards([0.0, 1.0])._repr_html_()).text.count("image") == 2


def test_images_in_memory_are_not_changed() -> None:
    image = Image.new("RGB", (900, 300), "red")
    Ranking.from_rewards([1.0], [image])._repr_html_()
    assert image.size == (900, 300)


def test_a_long_ranking_shows_the_best_and_the_number_of_others() -> None:
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (512, 512, 3), np.uint8)) for i in range(displays.MOST_IMAGES + 6)]
    html = Ranking.from_rewards([float(i) for i in range(len(images))], images)._repr_html_()
    page = Page(html)
    assert len(page.pictures) == displays.MOST_IMAGES
    assert "and 6 more" in page.text
    assert len(html) < 500_000  # of noise, which nothing compresses


@pytest.mark.parametrize("tie", [0.25, 0.0])
def test_a_preference_shows_both_images_and_the_probabilities(tie: float) -> None:
    images = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    page = Page(Preference(0.75 - tie, tie, 0.25, (1.0, 0.5), images)._repr_html_())
    assert len(page.pictures) == 2
    expected = ["50.0 %", "25.0 %", "25.0 %"] if tie else ["75.0 %", "25.0 %"]
    assert re.findall(r"[\d.]+ %", page.text) == expected
    assert ("tie" in page.text) == bool(tie)
    assert Page(Preference(0.5, 0.0, 0.5, (0.0, 0.0))._repr_html_()).pictures == []


def test_a_scorer_shows_what_it_is(scorer: ImageRewardScorer) -> None:
    text = Page(scorer._repr_html_()).text
    number = f"{sum(weight.numel() for weight in scorer.parameters()):,}"
    for words in ("tiny", "ImageRewardScorer", "float32", number, "reads the prompt yes", "ties not modelled"):
        assert words in text


def test_what_a_scorer_answers_has_its_images(scorer: ImageRewardScorer, image_folder: Path) -> None:
    a, b = image_folder / "a.png", image_folder / "b.png"
    assert scorer.compare("a cat", a, b).images == (a, b)
    assert len(Page(scorer.compare("a cat", a, b)._repr_html_()).pictures) == 2
    assert len(Page(scorer.rank("a cat", [a, b])._repr_html_()).pictures) == 2


def test_an_ensemble_shows_what_it_is(scorer: ImageRewardScorer) -> None:
    reference = Reference(0.0, 1.0, 100, "the tests")
    pair = Ensemble({"a": scorer, "b": scorer}, {"a": 2.0, "b": 1.0}, {"a": reference, "b": reference})
    assert "float32" in Page(pair._repr_html_()).text
    assert repr(pair).startswith("Ensemble(")
