from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from image_reward.cli import main
from image_reward.scorers import ImageRewardScorer


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: rows.csv, of which the second row names no image, and a.png."""
    (tmp_path / "a.png").write_bytes((image_folder / "a.png").read_bytes())
    (tmp_path / "rows.csv").write_text("prompt,image\ncat,a.png\ndog,none.png\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_scoring_rows_from_the_command_line(scorer: ImageRewardScorer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scorer.save_pretrained(folder / "tiny")
    arguments = ["rows.csv", "out", "--model", str(folder / "tiny"), "--workers", "1", "--batch-size", "auto", "--format", "jsonl"]
    assert main(["score-files", *arguments, "--log-json", "--log-seconds", "0", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["num_rows"], result["num_errors"], result["file"]) == (2, 1, "out/rewards.jsonl")
    lines = [json.loads(line) for line in printed.err.splitlines()]
    assert lines[-1]["rows"] == lines[-1]["total"] == 2
    rows = [json.loads(line) for line in (folder / "out" / "rewards.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "cat", "image": "a.png", "reward": pytest.approx(scorer.score("cat", "a.png"), abs=1e-5), "error": None}
    assert rows[1]["error"].startswith("FileNotFoundError: no such image: ")
    assert pq.read_table(folder / "out" / "part-000000.parquet").column_names == ["prompt", "image", "reward", "error"]


def test_a_job_names_the_command_that_summarizes_it(model_folder: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.csv").write_text("prompt,image\ncat,a.png\n")
    assert main(["score-files", "rows.csv", "out put", "--model", model_folder, "--workers", "0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("out put: 1 row, 0 with errors; 1 scored now, ")
    assert printed.err.endswith("\nsummarize: image-reward report 'out put'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.csv", "out", "--decoders", "-1"], "--decoders must be at least 0, not -1"),
        (["rows.csv", "out", "--workers", "-1"], "--workers must be at least 0, not -1"),
        (["rows.csv", "out", "--workers", "0", "--engine", "ray"], "--workers must be at least 1, not 0"),
        (["rows.csv", "out", "--shard-size", "0"], "--shard-size must be at least 1, not 0"),
        (["rows.csv", "out", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["rows.csv", "out", "--prompt", "rows.csv"], "rows.csv is a file, not a prompt. --prompt takes the text"),
        (["rows.csv", "out", "--prompt", "prompts.txt"], "prompts.txt is the name of a file, not a prompt"),
        (["rows.csv", "best.csv"], "best.csv is the name of a file: name a folder, and add --format csv for one file in it"),
        (["rows.csv", "best.parquet"], "best.parquet is the name of a file: name a folder\n"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert main(["score-files", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_rows_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score-files", "none.csv", "out"]) == 1
    assert "no such file of rows: none.csv" in capsys.readouterr().err
    assert not (folder / "out").exists()
