from __future__ import annotations

from pathlib import Path

import pytest

from image_reward.cli import main
from image_reward.training import MaskedLanguageTraining, masked_language_model


def test_the_result_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def pretrain(config: MaskedLanguageTraining, comparisons: list[object]) -> masked_language_model.PretrainingResult:
        assert (config.data, len(comparisons)) == (("shapes:6",), 6)
        return masked_language_model.PretrainingResult(tmp_path / "model", 10, 0.25)

    monkeypatch.setattr(masked_language_model, "pretrain", pretrain)
    assert main(["pretrain", "--data", "shapes:6", "--output", str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/model: 10 steps, 0.250 of masked tokens predicted correctly\n"
