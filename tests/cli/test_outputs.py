from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from image_reward.cli import main

MODEL = ("--model", "ImageReward-mini")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": "a", "images": ["1.png", "2.png"], "ranks": [1, 2]}]))
    (tmp_path / "rows.parquet").write_bytes(b"precious")
    (tmp_path / "prompts.json").write_text('["a"]')
    (tmp_path / "rewards.json").write_text("[[1, 2]]")
    (tmp_path / "one.html").write_text("a page")
    (tmp_path / "link.json").symlink_to("rows.json")
    os.link(tmp_path / "rows.json", tmp_path / "hard.json")
    (tmp_path / "images").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["evaluate", "rows.json", "--report", "rows.json"], "--report rows.json"),
        (["evaluate", "rows.json", "--report", "a.md", "--report", "./link.json"], "--report ./link.json"),
        (["evaluate", "rows.json", "--report", "hard.json"], "--report hard.json"),
        (["evaluate", "rows.json", "--rewards", "rewards.json", "--report", "rewards.json"], "--report rewards.json"),
        (["evaluate", "rows.json", "--rewards", "mine=rewards.json", "--report", "rewards.json"], "--report rewards.json"),
        (["evaluate", "rows.parquet", "--per-prompt", "rows.parquet"], "--per-prompt rows.parquet"),
        (["benchmark", "images", "--prompts", "prompts.json", "--report", "prompts.json"], "--report prompts.json"),
        (["rank", "a", "images", "one.html", "--gallery", "one.html"], "--gallery one.html"),
        (["data", "convert", "rows.json", "rows.json"], "--output rows.json"),
    ],
)
def test_what_is_read_is_never_written_over(command: list[str], option: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main([*command, *(MODEL if command[0] != "data" else ())]) == 2
    error = capsys.readouterr().err
    assert f"image-reward: {option} is a file that is read too, and would be overwritten; give another name\n" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_prompt_that_is_called_as_the_page_is_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    """Nor is what is not there yet."""
    assert main(["rank", "new.html", "images", "--gallery", "new.html", "--prompt-is-text", *MODEL]) == 2
    assert "the folder images has no images in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["score-files", "rows.json", "~/out", *MODEL],
        ["rank", "a", "images", "--gallery=~/page.html", *MODEL],
        ["rank", "a", "images", "--copy-to=~", *MODEL],
        ["train", "--data", "rows.json", "--output=~/run"],
        ["train", "--recipe", "recipe.toml"],
        ["evaluate", "rows.json", "--report=~me/a.html", *MODEL],
    ],
    ids=" ".join,
)
def test_no_folder_is_called_as_a_home_is_abbreviated(command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.toml").write_text('data = ["rows.json"]\noutput = "~/runs/a"\n')
    assert main(command) == 2
    assert "~ is not expanded here; write the folder's whole name" in capsys.readouterr().err
    assert not [path for path in folder.iterdir() if path.name.startswith("~")]
