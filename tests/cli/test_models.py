from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import seeded
from image_reward.cli import main
from image_reward.scorers import MODELS


def test_models_list_and_path(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = MODELS["ImageReward-v1.0"]
    there = replace(spec.files["weights"], size=5, original_cache=str(tmp_path))
    monkeypatch.setitem(MODELS, "ImageReward-v1.0", replace(spec, files={"weights": there}))
    assert main(["models", "list"]) == 0
    assert "ImageReward-v1.0" in capsys.readouterr().out
    assert main(["models", "path", "ImageReward-v1.0"]) == 1
    assert "models download ImageReward-v1.0" in capsys.readouterr().err
    (tmp_path / "ImageReward.pt").write_bytes(b"12345")
    assert main(["models", "path", "ImageReward-v1.0"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "ImageReward.pt")
    assert main(["models", "list", "--json"]) == 0
    assert {row["name"]: row["paths"] for row in json.loads(capsys.readouterr().out)}["ImageReward-v1.0"] == [
        str(tmp_path / "ImageReward.pt")
    ]
    assert main(["models", "path", "something"]) == 2
    assert main(["models", "verify", "ImageReward-v1.0"]) == 1  # five bytes are not the model
    assert "sha256" in capsys.readouterr().err


def test_models_convert_verify_info(
    run_json: Callable[..., Any], capsys: pytest.CaptureFixture[str], model_folder: str, tmp_path: Path
) -> None:
    released = tmp_path / "released.pt"
    torch.save(seeded.weights(seeded.TINY, 7), released)
    config = str(Path(model_folder) / "config.json")
    converted = tmp_path / "converted"
    assert main(["models", "convert", str(released), str(converted), "--config", config]) == 0
    assert sorted(path.name for path in converted.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert main(["models", "convert", str(released), str(converted), "--config", config]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["models", "verify", str(converted)]) == 0
    assert "is valid: " in capsys.readouterr().out
    assert main(["models", "verify", str(released)]) == 1
    assert "give its config if it is of another size" in capsys.readouterr().err
    info = run_json("models", "info", str(converted))
    assert info["network"]["text_width"] == 48
    assert info["max_tokens"] == 35
    assert info["linear_layers"] == {"plain": 3 * 4 + 2 * 10 + 2}  # so small that no other way is worth it
    assert main(["models", "info", str(converted)]) == 0
    assert "network.vision_width" in capsys.readouterr().out
    half = tmp_path / "half"
    assert main(["models", "convert", str(converted), str(half), "--dtype", "float16"]) == 0
    assert os.path.getsize(half / "model.safetensors") < 0.6 * os.path.getsize(converted / "model.safetensors")  # noqa: PTH202
