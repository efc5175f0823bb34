from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_reward.cli import main
from image_reward.scorers import ImageRewardScorer, onnx


def test_the_difference_from_pytorch_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_json: Callable[..., Any]
) -> None:
    def write(scorer: ImageRewardScorer, path: Path) -> float:
        assert scorer.name == "ImageReward-mini"
        print("what an exporter says of itself")
        return path.write_bytes(bytes(1_500_000)) / 1e12

    monkeypatch.setattr(onnx, "export_onnx", write)
    output = tmp_path / "mini.onnx"
    assert run_json("export", str(output), "--model", "ImageReward-mini") == {
        "file": str(output),
        "bytes": 1_500_000,
        "largest_difference": 1.5e-6,
    }
    assert main(["export", str(output), "--model", "ImageReward-mini"]) == 0
    assert capsys.readouterr().out == f"{output}: 1.5 MB; largest difference from PyTorch's rewards 1.5e-06\n"


@pytest.mark.parametrize(
    ("output", "message"), [("mini.bin", "ends in .onnx"), ("no/mini.onnx", "OUTPUT no/mini.onnx: the folder no does not exist")]
)
def test_wrong_usage(output: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", output, "--model", "ImageReward-mini"]) == 2
    assert message in capsys.readouterr().err
