from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from image_reward.errors import ComparisonError
from image_reward.evaluation import Verdicts, read_verdicts
from image_reward.types import Comparison

PAIRS = [Comparison("a cat", ("1.png", "2.png"), (1, 2), id="x"), Comparison("a dog", ("3.png", "4.png"), (2, 1), id="y")]


def saved(folder: Path, content: Any) -> Path:
    path = folder / "verdicts.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("content", [["A>B", "a=b=good"], {"y": " [[A=B=Good]]", "x": "A > B", "z": "never asked"}])
def test_labels_are_read_in_the_order_of_the_comparisons(tmp_path: Path, content: Any) -> None:
    assert read_verdicts(saved(tmp_path, content), PAIRS) == Verdicts(["A>B", "A=B=Good"])


def test_both_orders_become_one_reward() -> None:
    verdicts = Verdicts(["A>B", "A>B", "A=B", "B>A"], ["B>A", "A>B", "A>B", "A>B"])
    assert verdicts.rewards() == [[0.5, -0.5], [0, 0], [-0.25, 0.25], [-0.5, 0.5]]
    assert Verdicts(["A>B", "A=B=Bad"]).rewards() == [[0.5, -0.5], [0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": "A>B"}, "there is no verdict on 1 of 2 pairs: y"),
        (["A>B"], "there are 1 verdicts, but 2 comparisons; use {id: label} for others"),
        (["A>B", "Image 1 is better"], "the verdict on y is ['Image 1 is better']; a label is one of A>B, B>A, A=B, A=B=Good, A=B=Bad"),
        (["A>B", None], "the verdict on y is [None]"),
        (["A>B", 1], "the verdict on y is [1]"),
        (["A>B", ["A>B", "B>A", "A>B"]], "there is one, or one for each order of the images"),
        (["A>B", []], "the verdict on y is []"),
        (["A>B", ["A>B", "B>A"]], "some pairs have verdicts in both orders and some do not"),
        ("A>B", "it has no verdicts"),
    ],
)
def test_what_is_no_verdict_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ComparisonError) as caught:
        read_verdicts(saved(tmp_path, content), PAIRS)
    assert message in str(caught.value)
    assert "verdicts.json: " in str(caught.value)


def test_verdicts_are_on_pairs(tmp_path: Path) -> None:
    three = Comparison("a cat", ("1.png", "2.png", "3.png"), (1, 2, 3), id="x")
    with pytest.raises(ComparisonError, match="verdicts are on pairs of images, and 1 comparisons have more: x"):
        read_verdicts(saved(tmp_path, ["A>B"]), [three])
    with pytest.raises(FileNotFoundError, match="no such file of verdicts"):
        read_verdicts(tmp_path / "none.json", PAIRS)
