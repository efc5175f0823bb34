from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import seeded
from conftest import tiny
from image_reward.config import RewardConfig
from image_reward.errors import CheckpointError, DownloadError, InputError, UnknownModelError
from image_reward.scorers import MODELS, ImageRewardScorer, LoadOptions, ModelSpec, load, load_all
from image_reward.scorers.loading import find, locate


def test_what_is_found_has_names(tmp_path: Path) -> None:
    tiny(ImageRewardScorer).save_pretrained(tmp_path / "tiny")
    (tmp_path / "both.json").write_text('{"format": "image-reward-ensemble"}')
    weights = tmp_path / "tiny" / "model.safetensors"
    assert find(tmp_path / "tiny").paths == {"folder": tmp_path / "tiny"}
    assert find(weights).paths == {"weights": weights}
    assert find(tmp_path / "both.json").paths == {"config": tmp_path / "both.json"}
    assert [locate(path)[0] for path in (tmp_path / "tiny", weights)] == [tmp_path / "tiny", weights]
    with pytest.raises(CheckpointError, match=r"both\.json: this is not a model folder, and not a file of weights"):
        locate(tmp_path / "both.json")
    with pytest.raises(CheckpointError, match=r"/config\.json is the config of a model .*; give the folder \S+/tiny"):
        find(tmp_path / "tiny" / "config.json")


def test_what_scorers_have_in_common_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def build(paths: Mapping[str, Path], options: LoadOptions) -> Any:
        scorer = tiny(ImageRewardScorer)
        scorer.tower = options.once(("tower", tuple(paths)), lambda: made.append(nn.Linear(1, 1)) or made[-1])
        return scorer

    for name in ("one", "two"):
        monkeypatch.setitem(MODELS, name, ModelSpec(name, "MIT", "any", build))
    one, two = load_all(["one", "two"], "cpu", batch_size=3)
    assert one.tower is two.tower is made[0]
    assert one.batch_size == two.batch_size == 3
    load("one", "cpu")
    assert len(made) == 2


def test_scorers_of_one_name_are_built_with_the_names_that_were_asked_for(tmp_path: Path) -> None:
    folders = [tmp_path / run / "model" for run in ("a", "b", "c")]
    for folder in folders:
        tiny(ImageRewardScorer).save_pretrained(folder)
    assert [scorer.name for scorer in load_all(folders[:1], "cpu")] == ["model"]
    assert [scorer.name for scorer in load_all(folders[:2], "cpu")] == [str(folder) for folder in folders[:2]]
    assert [scorer.name for scorer in load_all([folders[2], "ImageReward-mini"], "cpu", taken=["model"])] == [
        str(folders[2]),
        "ImageReward-mini",
    ]


def test_folders_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match=r"config\.json is not of a known kind of model: .* is 'vit'; known are image-reward,"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"is not of a known kind of model: .* is None"):
        load(tmp_path)


def test_percentiles_are_those_of_published_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without a config may be anybody's, on another scale."""
    path = tmp_path / "weights.pt"
    torch.save(seeded.weights(seeded.TINY, 7), path)
    assert load(path, "cpu", config=seeded.TINY).reference == seeded.TINY.reward.reference
    spec = MODELS["ImageReward-v1.0"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    published = replace(spec.files["weights"], size=path.stat().st_size, sha256=digest)
    monkeypatch.setitem(MODELS, "ImageReward-v1.0", replace(spec, files={"weights": published}, config=seeded.TINY))
    assert load(path, "cpu").reference == "ImageReward-v1.0"
    torch.save(seeded.weights(seeded.TINY, 8), path)
    sizes = replace(seeded.TINY, reward=RewardConfig(reference=None))
    monkeypatch.setattr("image_reward.scorers.build.ScorerConfig", lambda reward: replace(sizes, reward=reward))
    assert load(path, "cpu").reference is None


@pytest.mark.parametrize(
    ("repo", "names"),
    [("THUDM/ImageReward", "what ImageReward-v1.0 comes from"), ("xswu/HPSv2", r"what HPSv2 and HPSv2\.1 come from")],
)
def test_a_hub_id_of_registered_weights_names_the_model(repo: str, names: str) -> None:
    with pytest.raises(UnknownModelError, match=f"{repo} is not a model folder, but {names}; give that name"):
        find(repo)


def test_offline_a_hub_id_that_is_not_here_is_not_said_to_lack_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for repo in ("openai/clip-vit-large-patch14", "owner/none"):
        with pytest.raises(DownloadError, match=rf"{repo} is .*: it is not on this machine and offline mode \(HF_HUB_OFFLINE\) is on\. "):
            find(repo)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="a machine without MPS")
def test_a_device_that_pytorch_was_built_without() -> None:
    with pytest.raises(InputError, match=r"^this PyTorch was built without mps, or finds no such device here; use 'cpu'$"):
        load("ImageReward-mini", device="mps")
