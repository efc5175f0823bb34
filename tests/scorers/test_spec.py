from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import seeded
from image_reward.cli import main
from image_reward.downloads import HubFile
from image_reward.scorers import MODELS, ModelSpec
from image_reward.scorers.build import build_imagereward
from image_reward.scorers.loading import find


def test_a_model_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(seeded.weights(seeded.TINY, 7), tmp_path / "tiny.pt")
    names = {"weights": "tiny.pt", "words": "words.txt"}
    files = {part: HubFile("owner/tiny", name, original_cache=str(tmp_path)) for part, name in names.items()}
    spec = ModelSpec("two files", "MIT", "any", build_imagereward, files, seeded.TINY)
    monkeypatch.setitem(MODELS, "two", spec)
    assert spec.local_paths() is None  # one is missing
    assert main(["models", "path", "two"]) == 1
    assert "models download two" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("cat")
    assert spec.local_paths() == find("two").paths == {part: tmp_path / name for part, name in names.items()}
    for command in ("path", "download"):
        assert main(["models", command, "two"]) == 0
        assert capsys.readouterr().out.split() == [str(path) for path in spec.local_paths().values()]
    assert main(["models", "verify", "two"]) == 0
    assert spec.size is None
    monkeypatch.setitem(MODELS, "two", replace(spec, files={part: replace(file, size=3) for part, file in files.items()}))
    assert MODELS["two"].size == 6
