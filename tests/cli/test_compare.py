from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from image_reward.cli import main


def test_preferences_sum_to_one(
    run_json: Callable[..., Any], capsys: pytest.CaptureFixture[str], model_folder: str, images: list[str]
) -> None:
    a, b, _ = images
    printed = run_json("compare", "cat", a, b, "--model", model_folder)
    assert printed["a_better"] + printed["tie"] + printed["b_better"] == pytest.approx(1)
    assert printed["a_better"] == pytest.approx(0.3653, abs=1e-4)
    assert main(["compare", "cat", a, b, "--model", model_folder]) == 0
    assert "36.5 %" in capsys.readouterr().out
