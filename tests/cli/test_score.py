from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import seeded
from image_reward.cli import main


def test_scores_are_in_the_order_of_the_command_line(
    run_json: Callable[..., Any], capsys: pytest.CaptureFixture[str], model_folder: str, images: list[str]
) -> None:
    printed = run_json("score", "cat", images[2], images[0], images[2], "--model", model_folder)
    assert [Path(row["image"]).name for row in printed["images"]] == ["c.png", "a.png", "c.png"]
    assert "rank" not in printed["images"][0]
    assert main(["score", "cat", images[1], "--model", model_folder]) == 0
    assert "+0.6501" in capsys.readouterr().out


def test_a_long_prompt_is_one_line_on_standard_error(model_folder: str, images: list[str]) -> None:
    command = [sys.executable, "-m", "image_reward.cli", "score", seeded.LONG_PROMPT, *images, "--json"]
    done = subprocess.run([*command, "--model", model_folder, "--batch-size", "1"], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("warning: the last 26 of 61 tokens of the prompt")
    assert done.stderr.count("\n") == 1
    assert len(json.loads(done.stdout)["images"]) == 3
    done = subprocess.run([*command, "--model", model_folder, "--long-prompts", "error"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "shorten it" in done.stderr


def test_json_is_valid_in_any_encoding(model_folder: str, images: list[str]) -> None:
    command = [sys.executable, "-m", "image_reward.cli", "score", "一只猫", images[0], "--json", "--model", model_folder]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert json.loads(subprocess.check_output(command, env=environment))["prompt"] == "一只猫"
