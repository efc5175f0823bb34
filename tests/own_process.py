"""Runs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import image_reward
from image_reward.recipes import Recipe

HANGS = 1800  # s: only what hangs takes as long


def run(script: Path, config: Recipe, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """``script RECIPE ARGUMENTS`` with the recipe of a config, which is written beside its output; the script's folder is importable."""
    recipe = Path(config.output).with_suffix(".toml")  # type: ignore[attr-defined]
    recipe.write_text(config.to_toml())
    source = Path(image_reward.__file__).parents[1]  # the very package that is tested here, installed or not
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(script.parent)]), "OMP_NUM_THREADS": "1"}
    environment["WARNINGS_ARE_ERRORS"] = "1" if any(action == "error" for action, *_ in warnings.filters) else ""  # as in this process
    command = [sys.executable, *launcher, str(script), str(recipe), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS, check=False)
