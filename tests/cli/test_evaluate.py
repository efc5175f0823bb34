from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from image_reward.cli import main
from image_reward.scorers import ImageRewardScorer

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    path = tmp_path / "rewards.json"
    path.write_text(json.dumps({"0001": [0.3, 0.2, 0.1], "0002": [0.1, 0.1, 0.5], "0003": [0.0, 0.0]}))
    return str(path)


def test_a_model_against_people(capsys: pytest.CaptureFixture[str], scorer: ImageRewardScorer, image_folder: Path, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path / "tiny")
    command = ["evaluate", str(TINY), "--images", str(image_folder), "--model", str(tmp_path / "tiny"), "--resamples", "100"]
    assert main([*command, "--json", "--per-prompt", str(tmp_path / "prompts.parquet")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["name"] == "tiny"
    assert "per_prompt" not in report
    rows = read_table(tmp_path / "prompts.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["0001", "0002", "0003"]
    assert rows[0]["rewards"] == pytest.approx(scorer.score("a cat on a chair", [str(image_folder / f"{n}.png") for n in "abc"]), abs=1e-5)
    mean = sum(row["pairwise_accuracy"] for row in rows) / 3
    assert report["metrics"]["pairwise_accuracy_per_prompt"]["value"] == pytest.approx(mean)


def test_saved_rewards_as_a_table(capsys: pytest.CaptureFixture[str], rewards: str) -> None:
    assert main(["evaluate", str(TINY), "--rewards", rewards, "--resamples", "100", "--confidence", "0.9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "pairwise accuracy pooled 0.8333",
        "pairwise accuracy per prompt 0.6667",
        "90 % interval",
        "recall@4 - - 0",
        "3 prompts (2 distinct), 8 images, 6 untied and 1 tied pairs, 1 pairs of equal reward",
        "pairs that people tied are left out; a pair of equal reward counts as wrong",
        "100 resamples, seed 0",
    ):
        assert words in out


def test_options(capsys: pytest.CaptureFixture[str], rewards: str) -> None:
    command = ["evaluate", str(TINY), "--rewards", rewards, "--resamples", "100", "--json"]
    assert main([*command, "--predicted-ties", "half", "--k", "1", "--limit", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_prompts"] == 2
    assert [name for name in report["metrics"] if "@" in name] == ["recall@1", "filter@1"]
    assert "counts half" in report["treatment_of_ties"]


def test_errors(capsys: pytest.CaptureFixture[str], rewards: str, tmp_path: Path) -> None:
    (tmp_path / "fewer.json").write_text('{"0001": [0.3, 0.2, 0.1]}')
    data = ["evaluate", str(TINY), "--rewards"]
    for arguments, code, words in [
        ([*data, str(tmp_path / "fewer.json")], 1, "there are no rewards for 2 of 3 prompts: 0002 ('A  Dog in the snow'), 0003"),
        ([*data, rewards, "--k", "0"], 2, "--k takes integers from 1"),
        ([*data, rewards, "--limit", "0"], 2, "--limit must be at least 1"),
        ([*data, rewards, "--confidence", "95"], 2, "--confidence between 0 and 1"),
        ([*data, rewards, "--per-prompt", str(tmp_path / "no" / "x.parquet")], 2, "there is no folder"),
        (["evaluate", str(tmp_path / "fewer.json"), "--rewards", rewards], 1, "is of no known form"),
        (["evaluate", str(TINY), "--rewards", str(tmp_path / "none.json")], 1, "no such file of rewards"),
    ]:
        assert main(arguments) == code
        assert words in capsys.readouterr().err
