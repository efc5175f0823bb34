from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from image_reward.cli import main
from image_reward.cli.options import UsageError
from image_reward.cli.score import reads_rows
from image_reward.scorers import ImageRewardScorer


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: rows.csv, a.png, images/ with a.png, an empty folder and one of a job."""
    (tmp_path / "images").mkdir()
    for place in (tmp_path, tmp_path / "images"):
        (place / "a.png").write_bytes((image_folder / "a.png").read_bytes())
    (tmp_path / "rows.csv").write_text("prompt,image\ncat,a.png\ndog,none.png\n")
    (tmp_path / "my rows.csv").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "manifest.json").touch()
    (tmp_path / "job" / "plot.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ("a cat|a.png", False),
        ("a cat|a.png|b.png", False),
        ("a cat|images", False),
        ("a cat|none.png", False),
        ("cat|-", False),
        ("a.png|a.png", False),  # strange, but a prompt: nothing that holds rows is called so
        ("about rows.csv|a.png", False),
        ("images|a.png|b.png", False),  # rows go into one folder
        ("x" * 5000 + "|a.png", False),
        ("rows.csv|out", True),
        ("my rows.csv|out", True),
        ("rows.csv|empty", True),
        ("rows.csv|job", True),
        ("images|out", True),
        ("none.parquet|out", True),
        ("*.csv|out", True),
        ("s3://bucket/rows.parquet|s3://bucket/out", True),
    ],
)
def test_a_prompt_with_images_or_rows_with_a_folder(arguments: str, rows: bool) -> None:
    first, *rest = arguments.split("|")
    assert reads_rows(first, tuple(rest)) is rows


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rows.csv|a.png", "rows.csv looks like a file of rows, and a.png like images"),
        ("rows.csv|images", "rows.csv looks like a file of rows, and images like images"),
        ("rows.csv|rows.csv", "and rows.csv like images"),
        ("images|a.png", "images looks like a folder, and a.png like images"),
        ("images|typo.png", "images looks like a folder, and typo.png like images"),
        ("images|*.png", r"and \*.png like images"),
        ("rows.csv|-", "and - like images"),
        ("rows.csv|a.png|b.png", "which is scored into one folder, and 2 were given"),
    ],
)
def test_what_could_be_both_is_never_guessed(arguments: str, message: str) -> None:
    first, *rest = arguments.split("|")
    with pytest.raises(UsageError, match=f"{message}.*say which with --read-as prompt or --read-as rows"):
        reads_rows(first, tuple(rest))


def test_scoring_rows_from_the_command_line(scorer: ImageRewardScorer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scorer.save_pretrained(folder / "tiny")
    arguments = ["score", "rows.csv", "out", "--model", str(folder / "tiny"), "--workers", "1", "--batch-size", "auto", "--format", "jsonl"]
    assert main([*arguments, "--log-json", "--log-every", "0", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["num_rows"], told["num_errors"], told["file"]) == (2, 1, "out/rewards.jsonl")
    lines = [json.loads(line) for line in printed.err.splitlines()]
    assert lines[-1]["rows"] == lines[-1]["total"] == 2
    rows = [json.loads(line) for line in (folder / "out" / "rewards.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "cat", "image": "a.png", "reward": pytest.approx(scorer.score("cat", "a.png"), abs=1e-5), "error": None}
    assert rows[1]["error"].startswith("FileNotFoundError: no such image: ")
    assert pq.read_table(folder / "out" / "part-000000.parquet").column_names == ["prompt", "image", "reward", "error"]


def test_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["a cat", "a.png", "--workers", "2"], "--workers is for files of rows, and 'a cat' was taken for a prompt"),
        (["a cat", "a.png", "--prompt", "x"], "--prompt is for files of rows"),
        (["a cat", "a.png", "--model", "A", "--model", "B"], "several models score files of rows"),
        (["rows.csv", "out", "--decoders", "-1"], "--decoders must be at least 0, not -1"),
        (["rows.csv", "out", "--workers", "0"], "--workers must be at least 1, not 0"),
        (["rows.csv", "out", "--gallery", "x.html"], "--gallery is for the images of one prompt"),
        (["rows.csv", "out", "more", "--read-as", "rows"], "rows are scored into one folder, and 2 were given"),
    ]:
        assert main(["score", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["score", "none.csv", "out"]) == 1
    assert "no such file of rows: none.csv" in capsys.readouterr().err
    assert not (folder / "out").exists()
