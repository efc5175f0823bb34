from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_reward.cli import main
from image_reward.scorers import ImageRewardScorer


@pytest.fixture
def model_folder(scorer: ImageRewardScorer, tmp_path: Path) -> str:
    """A tiny model, saved."""
    scorer.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command with ``--json`` and returns what it prints."""

    def run(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def images(image_folder: Path) -> list[str]:
    """The paths of a.png, b.png and c.png."""
    return [str(image_folder / f"{name}.png") for name in "abc"]


@pytest.fixture(scope="session")
def scored(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `score-files` for three prompts and images, one of which does not exist."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [f"{n},{prompt},{image_folder}/{image}.png" for n, (prompt, image) in enumerate([("cat", "a"), ("cat", "b"), ("dog", "none")])]
    (folder / "rows.csv").write_text("\n".join(["id,prompt,image", *rows]))
    arguments = [str(folder / "rows.csv"), str(folder / "out"), "--model", "ImageReward-mini", "--workers", "1"]
    assert main(["score-files", *arguments]) == 0
    return folder / "out"
