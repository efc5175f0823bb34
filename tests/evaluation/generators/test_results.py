from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from image_reward.evaluation.generators import has_results, read_results
from image_reward.prompt_sets import Prompt

PROMPTS = [Prompt("p1", "a cat", "animals"), Prompt("p2", "a green car", "things")]


def write_results(folder: Path, rewards: dict[str, dict[str, list[list[float]]]], prompts: list[Prompt] = PROMPTS) -> Path:
    for scorer, by_generator in rewards.items():
        (folder / scorer).mkdir(parents=True, exist_ok=True)
        for generator, values in by_generator.items():
            table = [
                {"id": p.id, "prompt": p.prompt, "mean_score": sum(v) / len(v), "rewards": v} for p, v in zip(prompts, values, strict=True)
            ]
            (folder / scorer / f"{generator}.json").write_text(json.dumps(table))
    return folder


REWARDS = {"a": [[1.0, 3.0], [0.0, 1.0]], "b": [[0.0, 1.0], [2.0, 2.0]], "c": [[-1.0, -3.0], [0.0, 1.0]]}


def test_results(tmp_path: Path) -> None:
    folder = write_results(tmp_path, {"S": REWARDS})
    assert has_results(folder)
    prompts, rewards = read_results(folder)
    assert [(prompt.id, prompt.prompt) for prompt in prompts] == [("p1", "a cat"), ("p2", "a green car")]
    assert rewards["S"]["b"] == {"p1": [0.0, 1.0], "p2": [2.0, 2.0]}
    assert read_results(folder, PROMPTS)[0] == PROMPTS  # with their categories
    original = tmp_path / "S" / "S-benchmark-sd2-1-result.json"  # as the original's program calls it
    original.write_text((folder / "S" / "a.json").read_text())
    assert list(read_results(folder)[1]["S"]) == ["sd2-1", "a", "b", "c"]
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "p1_0.png").write_bytes(b"image")
    assert not has_results(tmp_path / "images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(prompt="a dog"), "has other prompts for 1 ids: p1; p1 is 'a dog' there, and 'a cat' elsewhere"),
        (lambda rows: rows[1].update(id="p1"), "has 1 ids more than once: p1"),
        (lambda rows: rows[1].update(id="p9"), "has 1 ids that the prompts lack: p9"),
        (lambda rows: rows[0].update(rewards=[1.0, float("nan")]), r"a\.json is not JSON: NaN is not a number that JSON has"),
        (lambda rows: rows[0].update(rewards=[]), r"prompt p1: the rewards are \[\], not a list of numbers"),
        (lambda rows: rows[0].update(rewards=[True, 1.0]), "reward 0 is True"),
        (lambda rows: rows[0].update(mean_score=0.0), "prompt p1: mean_score is 0.0, but the mean of its rewards is 2"),
        (lambda rows: rows[0].pop("rewards"), "has no results: it should be a list of objects with id, prompt and rewards"),
    ],
)
def test_results_that_make_no_sense(tmp_path: Path, change: Any, message: str) -> None:
    path = write_results(tmp_path, {"S": REWARDS}) / "S" / "a.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message) as caught:
        read_results(tmp_path, PROMPTS)
    assert str(path) in str(caught.value)


def test_scorers_need_the_same_generators(tmp_path: Path) -> None:
    write_results(tmp_path, {"S": REWARDS, "T": {"a": REWARDS["a"]}})
    with pytest.raises(ValueError, match="T lacks results of b, c, which others have"):
        read_results(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no results"):
        read_results(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder of results"):
        read_results(tmp_path / "none")
