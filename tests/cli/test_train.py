"""`image-reward train` and `pretrain`, as commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from image_reward.cli import main

NETWORK = {
    "image-size": 16, "patch-size": 8, "vision-width": 16, "vision-layers": 1, "vision-heads": 2, "text-width": 16, "text-layers": 1,
    "text-heads": 2, "text-hidden": 32, "max-positions": 24, "projection-width": 8, "head-widths": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def options(output: Path) -> list[str]:
    sizes = [word for name, value in NETWORK.items() for word in (f"--network.{name}", str(value))]
    return ["--data", "shapes:6", "--output", str(output), "--cpu", "--workers", "0", "--max-tokens", "24", "--lr", "1e-12", *sizes]


def test_a_run_that_learns_nothing_says_so_on_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--start", "scratch", "--freeze", "0", "--epochs", "1", *options(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert "run/model: step 0 (the initial weights: nothing was learnt), pairwise accuracy 0." in printed.out
    assert "pairs of 1 comparison)" in printed.out
    assert "warning: nothing was learnt" in printed.err


def test_training_without_accelerate_names_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("reward", "masked_language_model"):
        monkeypatch.delitem(sys.modules, f"image_reward.training.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for command in ("train", "pretrain"):
        assert main([command, *options(tmp_path / "run")]) == 1
        message = capsys.readouterr().err
        assert "training needs the package accelerate: pip install 'image-reward[train]'" in message
        assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()
