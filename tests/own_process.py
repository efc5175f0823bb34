"""Runs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import image_reward
from image_reward.recipes import Recipe

HANGS = 1800  # s: only what hangs takes as long


def same(a: Any, b: Any) -> bool:
    """Whether what two runs have saved is equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def environment(*importable: Path) -> dict[str, str]:
    """That of a process which imports the very package that is tested here, installed or not, and computes as a test does."""
    source = Path(image_reward.__file__).parents[1]
    set_here = {"PYTHONPATH": os.pathsep.join(map(str, [source, *importable])), "OMP_NUM_THREADS": "1"}
    set_here["WARNINGS_ARE_ERRORS"] = "1" if any(action == "error" for action, *_ in warnings.filters) else ""  # as in this process
    return os.environ | set_here


def run(script: Path, config: Recipe, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """``script RECIPE ARGUMENTS`` with the recipe of a config, which is written beside its output; the script's folder is importable."""
    recipe = Path(config.output).with_suffix(".toml")
    recipe.write_text(config.to_toml())
    command = [sys.executable, *launcher, str(script), str(recipe), *arguments]
    return subprocess.run(command, env=environment(script.parent), capture_output=True, text=True, timeout=HANGS, check=False)


def killed_at(line: str, *command: str) -> str:
    """Run ``image-reward COMMAND`` until stderr has a line that begins so, and kill it with SIGKILL then: what stderr had before.

    Raises ``AssertionError`` with all of stderr if the command ends without that line.
    """
    seen = []
    with subprocess.Popen(
        [sys.executable, "-m", "image_reward.cli", *command],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for each in process.stderr:
            if each.startswith(line):
                process.kill()
                process.wait()
                return "".join(seen)
            seen.append(each)
    raise AssertionError("".join(seen))
