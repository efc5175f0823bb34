"""Scorers of each kind from their files, and folders from strangers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import seeded
from image_reward.downloads import HubFile
from image_reward.errors import CheckpointError, ImageRewardError
from image_reward.scorers import MODELS, ModelSpec, load
from image_reward.scorers.build import build_openai_clip
from image_reward.scorers.clip import ClipSettings, clip_from_folder, clip_from_state_dict


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP as this package writes it."""
    words = seeded.clip_tokenizer_files(tmp_path_factory.mktemp("words"), ["c a", "ca t</w>"])
    settings = {"activation": "quick_gelu", "vision_heads": 2, "text_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "clip"
    clip_from_state_dict(seeded.clip_weights(7), words, ClipSettings(), "seeded", **settings).save_pretrained(folder)
    return folder


def test_files_of_one_model_may_lie_in_different_folders(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"config": "config.json", "weights": "model.safetensors"}
    names |= {"preprocessor": "preprocessor_config.json", "tokenizer": "tokenizer.json"}
    for part, name in names.items():
        (tmp_path / part).mkdir()
        shutil.copy(clip_folder / name, tmp_path / part / name)
    files = {part: HubFile("owner/clip", name, original_cache=str(tmp_path / part)) for part, name in names.items()}
    monkeypatch.setitem(MODELS, "spread", ModelSpec("a small CLIP", "MIT", "any", build_openai_clip, files))
    expected = clip_from_folder(clip_folder, ClipSettings(convention="openai"))
    image = seeded.images()[0]
    assert load("spread", "cpu").score("cat", image) == pytest.approx(expected.score("cat", image), abs=1e-6)


def changed(folder: Path, target: Path, file: str, change: dict[str, Any]) -> Path:
    """A copy of a model folder in which a JSON file has other values; ``a.b`` is the key b of the object a."""
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text())
    for key, value in change.items():
        *outer, last = key.split(".")
        (values[outer[0]] if outer else values)[last] = value
    (target / file).write_text(json.dumps(values))
    return target


SIZES = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"]


@pytest.mark.parametrize("value", [150, 201, 10**7, 10**18, 10**19, 0, -1, 2.5, True, None, "2", [2]], ids=repr)
@pytest.mark.parametrize(
    "key",
    [f"{tower}_config.{size}" for tower in ("text", "vision") for size in SIZES]
    + ["vision_config.image_size", "vision_config.patch_size", "vision_config.num_channels", "projection_dim"]
    + ["text_config.vocab_size", "text_config.max_position_embeddings", "text_config.layer_norm_eps", "vision_config.layer_norm_eps"],
)
def test_sizes_of_a_clip_that_do_not_fit(key: str, value: Any, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/model"):
        load(changed(clip_folder, tmp_path / "model", "config.json", {key: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"return_dict": False, "text_config.return_dict": False, "vision_config.return_dict": False},
        {"text_config.num_labels": 10**9, "num_labels": 10**9},
        {"text_config.output_hidden_states": True, "vision_config.output_attentions": True},
        {"text_config.gradient_checkpointing": True, "vision_config.attention_dropout": 0.9},
        {"dtype": "float16", "attn_implementation": "flash_attention_2"},
        {"text_config.chunk_size_feed_forward": 1, "text_config.pruned_heads": {"0": [0]}},
    ],
    ids=str,
)
def test_what_does_not_decide_a_clip_changes_nothing(change: dict[str, Any], clip_folder: Path, tmp_path: Path) -> None:
    image = seeded.images()[0]
    expected = load(clip_folder).score("cat", image)
    assert load(changed(clip_folder, tmp_path / "model", "config.json", change)).score("cat", image) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_of_a_clip_that_are_not_files(name: str, kind: str, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    with pytest.raises(ImageRewardError, match=rf"/model.*{name}"):
        load(folder)


def test_ensembles_of_absurd_size(tmp_path: Path) -> None:
    members = [{"model": f"m{i}"} for i in range(100_000)]
    (tmp_path / "many.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": 1, "members": members}))
    with pytest.raises(CheckpointError, match=r"many\.json has 100,000 members; an ensemble has at most 100"):
        load(tmp_path / "many.json")


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 1e-60},
        {"weight": 3e38},
        {"weight": 0},
        {"weight": 10**100},
        {"reference": {"mean": 0, "std": 1e-30, "num_images": 2, "origin": "x"}},
        {"reference": {"mean": 1e300, "std": 1, "num_images": 2, "origin": "x"}},
        {"reference": {"mean": 0, "std": 1, "num_images": 10**19, "origin": "x"}},
    ],
    ids=str,
)
def test_members_on_scales_that_cannot_be_averaged(change: dict[str, Any], tmp_path: Path) -> None:
    reference = {"mean": 0, "std": 1, "num_images": 2, "origin": "x"}
    members = [{"model": "ImageReward-mini", "reference": reference} | change]
    (tmp_path / "odd.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": 1, "members": members}))
    with pytest.raises(CheckpointError, match=r"odd\.json: .* must be "):
        load(tmp_path / "odd.json")


@pytest.mark.parametrize("version", [True, 1.0, "1", [1], None])
def test_versions_that_are_not_the_number_1(version: Any, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": version, "members": []}))
    with pytest.raises(CheckpointError, match=r"e\.json has format version .*; this release of image-reward reads version 1"):
        load(tmp_path / "e.json")
    settings = json.loads((clip_folder / "config.json").read_text())["image_reward"]
    with pytest.raises(CheckpointError, match=r"image_reward has version .*; this release of image-reward reads version 1"):
        load(changed(clip_folder, tmp_path / "model", "config.json", {"image_reward": settings | {"version": version}}))
