from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import seeded
from image_reward.cli import main
from image_reward.evaluation import published_results
from image_reward.evaluation.published_results import PublishedExample
from image_reward.scorers import MODELS, load


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


def test_info_before_a_download(
    run_json: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    info = run_json("models", "info", "CLIP")
    assert info["licence"] == "MIT"
    assert info["bytes"] == 1_710_540_580
    assert info["files"]["weights"] == "model.safetensors of openai/clip-vit-large-patch14"
    assert "parameters" not in info
    assert main(["models", "info", "HPSv2"]) == 0
    captured = capsys.readouterr()
    assert "image-reward models download HPSv2" in captured.err
    assert re.search("least_bytes +1,972,218,882", captured.out)  # nobody has published what the file has


@pytest.fixture
def published(model_folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two images of an example whose published rewards are what the model gives."""
    seeded.image("rings", 32, 32, 3).save(tmp_path / "a.png")
    seeded.image("rings", 32, 32, 4).save(tmp_path / "b.png")
    rewards = load(model_folder).score("a cat", [str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    example = PublishedExample("a cat", dict(zip(["a.png", "b.png"], rewards, strict=True)), "https://example.org/images", 1e-6)
    monkeypatch.setattr(published_results, "EXAMPLES", {model_folder: example})
    return tmp_path


def test_rewards_are_compared_with_those_published(model_folder: str, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["models", "verify", model_folder, "--published", str(published)]
    assert main(command) == 0
    assert "the rewards are the published ones, to 1e-06" in capsys.readouterr().out
    seeded.image("rings", 32, 32, 9).save(published / "b.png")
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "a.png" in captured.out
    assert "not the published ones, to 1e-06: compare the images with those at https://example.org/images. Processor" in captured.err
    (published / "b.png").unlink()
    assert main(command) == 2
    assert "lacks b.png; they are at https://example.org/images" in capsys.readouterr().err
    assert main(["models", "verify", "ImageReward-mini", "--published", str(published)]) == 2
    assert "no rewards are published for ImageReward-mini" in capsys.readouterr().err


def test_the_example_of_image_reward_1_is_that_of_its_documentation() -> None:
    example = published_results.EXAMPLES["ImageReward-v1.0"]
    assert list(example.rewards) == ["1.webp", "2.webp", "3.webp", "4.webp"]
    assert sorted(example.rewards.values(), reverse=True) == list(example.rewards.values())
