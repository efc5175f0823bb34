from __future__ import annotations

from pathlib import Path

import pytest

from image_reward.cli import main
from image_reward.errors import JobError
from image_reward.scorers import ImageRewardScorer


@pytest.mark.parametrize(
    ("error", "is_defect"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), True),
        (TypeError("unhashable type"), True),
        (KeyError("reward"), True),
        (ZeroDivisionError("division by zero"), True),
        (JobError("the disk is full"), False),
        (PermissionError(13, "Permission denied", "a.png"), False),
        (ValueError("batch_size must be at least 1"), False),
    ],
)
def test_a_defect_shows_where_it_is(
    error: Exception,
    is_defect: bool,
    model_folder: str,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ImageRewardScorer, "rank", fail)
    assert main(["rank", "a cat", str(image_folder), "--model", model_folder]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert ("Traceback" in lines[0]) is is_defect
    assert len(lines) == 1 or lines[-1] == "image-reward: this is a defect, not a mistake of yours; please report it with the lines above"


@pytest.mark.parametrize("device", ["mps", "hpu", "cuda:99", "tpu9"])
def test_a_device_that_does_not_work_here_is_no_defect(
    device: str, model_folder: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "a cat", str(image_folder), "--model", model_folder, "--device", device]) == 1
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "use 'cpu'" in captured or "try 'cpu'" in captured
