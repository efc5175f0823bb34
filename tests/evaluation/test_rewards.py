from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from image_reward.errors import ComparisonError
from image_reward.evaluation import read_rewards
from image_reward.evaluation.rewards import aligned
from image_reward.types import Comparison

TWO = [Comparison("a cat x", ("0.png", "1.png"), (1, 2), id="x"), Comparison("a cat y", ("0.png", "1.png"), (2, 1), id="y")]


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        ({"x": [1, 2]}, r"there are no rewards for 1 of 2 prompts: y \('a cat y'\)"),
        ([[1, 2]], "there are rewards for 1 prompts, but 2 comparisons"),
        ([[1, 2], [1]], r"1 prompts do not have one reward for each image: y \(1 for 2\)"),
        ({"x": [1, 2], "y": [1, 2, 3]}, r"y \(3 for 2\)"),
        ([[1, 2], [1, math.nan]], "the reward of image 2 of y is nan; rewards must be finite"),
        ([[1, 2], [None, 1]], "the reward of image 1 of y is None"),
        ([[1, 2], ["a", 1]], "the reward of image 1 of y is 'a'"),
    ],
)
def test_rewards_that_miss_prompts_or_images(rewards: Any, problem: str) -> None:
    with pytest.raises(ComparisonError, match=problem):
        aligned(rewards, TWO)


def test_rewards_by_id_may_be_of_more_prompts_than_are_evaluated() -> None:
    assert aligned({"y": [1, 2], "z": [0], "x": [2, 1]}, TWO) == [[2, 1], [1, 2]]


@pytest.mark.parametrize(
    "content",
    [[[2, 1], [1, 2]], {"x": [2, 1], "y": [1, 2]}, [{"id": "y", "rewards": [1, 2], "prompt": ""}, {"id": "x", "rewards": [2, 1]}]],
)
def test_files_of_rewards(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "rewards.json"
    path.write_text(json.dumps(content))
    assert read_rewards(path, TWO) == [[2, 1], [1, 2]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2]", "it has no rewards. They are a list of lists"),
        ('{"x": 1}', "it has no rewards"),
        ("3", "it has no rewards"),
        ("[[1,", "is not JSON"),
        ('[{"id": "x", "rewards": [1]}, {"id": "x", "rewards": [2]}]', r"rewards\.json: 1 ids appear twice: x; keep the rewards of one"),
        ('{"x": [2, 1], "y": [1, 2], "x": [1, 2]}', r"rewards\.json is not JSON: the key 'x' occurs twice in one object"),
        (
            '[{"id": "x", "rewards": [2, 1], "prompt": "a dog"}, {"id": "y", "rewards": [1, 2], "prompt": "A cat  y"}]',
            r"1 ids are for other prompts than those that were ranked: x \('a dog', not 'a cat x'\); score this data",
        ),
        ('{"x": [2, 1]}', r"rewards\.json: there are no rewards for 1 of 2 prompts: y \('a cat y'\); score them too"),
        ('{"x": [2, 1], "y": [1, NaN]}', r"rewards\.json is not JSON: NaN is not a number that JSON has"),
    ],
)
def test_files_that_hold_no_rewards(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "rewards.json").write_text(text)
    with pytest.raises(ComparisonError, match=problem):
        read_rewards(tmp_path / "rewards.json", TWO)
    with pytest.raises(FileNotFoundError, match="no such file of rewards"):
        read_rewards(tmp_path / "none.json", TWO)


def test_brackets_without_end_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ComparisonError, match=r"deep\.json is not JSON that can be read: its brackets are nested too deeply"):
        read_rewards(tmp_path / "deep.json", [])
