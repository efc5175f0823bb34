"""Each CLIP-shaped scorer by its name, from files of the published form (small, seeded) that a server on this machine publishes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import hub as hubs
import image_reward as ir
import ImageReward
import seeded
from image_reward.downloads import HubFile, WebFile
from image_reward.errors import CheckpointError
from image_reward.scorers import MODELS, load_all, score_together
from image_reward.scorers.clip import AestheticScorer, ClipScorer, ClipSettings, clip_from_state_dict
from image_reward.scorers.precision import is_quantized

NAMES = ["CLIP", "Aesthetic", "PickScore", "HPSv2", "HPSv2.1"]
PROMPTS = ["cat", "a photo of a dog", "two red birds"]
IMAGES = seeded.images()[2:5]  # none of them square
OPENAI = "openai/clip-vit-large-patch14"
LAION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ClipScorer:
    folder = seeded.clip_tokenizer_files(tmp_path_factory.mktemp("tokenizer"), ["c a", "ca t</w>", "d o", "do g</w>", "r e"])
    tensors = seeded.clip_weights(7)
    return clip_from_state_dict(tensors, folder, ClipSettings(convention="openai"), "seeded", activation="quick_gelu", text_heads=2)


@pytest.fixture
def published(reference: ClipScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    """The rows of the table, without the sizes and hashes of the real files, on a server that has small ones."""
    reference.save_pretrained(tmp_path / "clip")
    config = (tmp_path / "clip" / "config.json").read_text()
    files = {path.name: path.read_bytes() for path in (tmp_path / "clip").iterdir()}
    files["config.json"] = config.replace('"image_reward"', '"of_another_program"').encode()
    head, openclip = io.BytesIO(), io.BytesIO()
    torch.save(seeded.aesthetic_weights(7), head)
    torch.save({"state_dict": seeded.clip_weights(8)}, openclip)
    content = {f"{OPENAI}/{name}": files[name] for name in files}
    content |= {f"yuvalkirstain/PickScore_v1/{name}": files[name] for name in ("config.json", "model.safetensors")}
    content |= {f"{LAION}/{name}": files[name] for name in ("preprocessor_config.json", "tokenizer.json")}
    content |= {f"xswu/HPSv2/HPS_{version}_compressed.pt": openclip.getvalue() for version in ("v2", "v2.1")}
    content["head.pth"] = head.getvalue()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with hubs.serve(**content) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        for name in NAMES:
            small = {
                part: HubFile(file.repo, file.name) if isinstance(file, HubFile) else WebFile(f"{hub.url}/head.pth")
                for part, file in MODELS[name].files.items()
            }
            monkeypatch.setitem(MODELS, name, replace(MODELS[name], files=small))
        yield hub


def test_clip_is_the_cosine(published: hubs.Hub, reference: ClipScorer) -> None:
    scorer = ir.load("CLIP", "cpu")
    assert scorer.name == "CLIP"
    assert scorer.score(PROMPTS, IMAGES) == pytest.approx(reference.score(PROMPTS, IMAGES), abs=1e-5)
    assert {path.split("/")[2] for _, path, _ in published.requests} == {OPENAI.split("/")[1]}


def test_pickscore_is_scaled_and_takes_its_processor_from_elsewhere(published: hubs.Hub, reference: ClipScorer) -> None:
    scorer = ir.load("PickScore", "cpu")
    assert scorer.prepare.transform.convention == "transformers"
    square = [seeded.images()[0]] * 3  # where the two conventions of cropping agree
    factor = torch.tensor(4.6052).exp().item()
    assert scorer.score(PROMPTS, square) == pytest.approx([factor * cosine for cosine in reference.score(PROMPTS, square)], rel=1e-5)
    assert any(LAION in path for _, path, _ in published.requests)


@pytest.mark.parametrize("name", ["HPSv2", "HPSv2.1"])
def test_hpsv2_pads_and_has_plain_gelu(name: str, published: hubs.Hub, reference: ClipScorer, tmp_path: Path) -> None:
    scorer = ir.load(name, "cpu")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(reference.prepare.tokenizer.definition)
    settings = ClipSettings(convention="openai", fit="pad")
    expected = clip_from_state_dict(seeded.clip_weights(8), folder, settings, "seeded", activation="gelu")
    assert scorer.score(PROMPTS, IMAGES) == pytest.approx(expected.score(PROMPTS, IMAGES), abs=1e-5)
    assert any(f"HPS_{name[3:]}_compressed.pt" in path for _, path, _ in published.requests)


@pytest.mark.usefixtures("published")
def test_clip_and_aesthetic_share_their_tower(reference: ClipScorer) -> None:
    for order in (["CLIP", "Aesthetic"], ["Aesthetic", "CLIP"]):
        scorers = load_all(order, "cpu")
        assert [scorer.name for scorer in scorers] == order
        assert scorers[0].image_tower is scorers[1].image_tower
        found = dict(zip(order, score_together(scorers, PROMPTS, IMAGES), strict=True))
        expected = AestheticScorer.on(reference, seeded.aesthetic_weights(7), "seeded").score(PROMPTS, IMAGES)
        assert found["Aesthetic"] == pytest.approx(expected, abs=1e-5)
        assert found["CLIP"] == pytest.approx(reference.score(PROMPTS, IMAGES), abs=1e-5)


@pytest.mark.usefixtures("published")
def test_the_scores_of_image_reward_1(reference: ClipScorer) -> None:
    model = ImageReward.load_score("CLIP", device="cpu")
    assert model.score("cat", IMAGES) == pytest.approx(reference.score("cat", IMAGES), abs=1e-5)
    ranking, rewards = ImageReward.load_score("Aesthetic", device="cpu").inference_rank("cat", IMAGES)
    assert sorted(ranking) == [1, 2, 3]
    assert rewards[ranking.index(1)] == max(rewards)


@pytest.mark.usefixtures("published")
def test_any_clip_of_the_hub_by_its_id(tmp_path: Path) -> None:
    scorer = ir.load(OPENAI, "cpu")  # by id it is handled as transformers does
    assert scorer.prepare.transform.convention == "transformers"
    scorer.save_pretrained(tmp_path / "again")
    assert ir.load(tmp_path / "again", "cpu").score(PROMPTS, IMAGES) == pytest.approx(scorer.score(PROMPTS, IMAGES), abs=1e-5)
    with pytest.raises(CheckpointError, match="lacks preprocessor_config"):
        ir.load("yuvalkirstain/PickScore_v1", "cpu")


@pytest.mark.usefixtures("published")
def test_a_config_is_not_for_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in NAMES:
        with pytest.raises(ValueError, match=f"a config is for ImageReward checkpoints; {name} has its own sizes"):
            ir.load(name, "cpu", config=tmp_path / "config.json")


@pytest.mark.usefixtures("published")
def test_int8_of_a_shared_tower() -> None:
    pytest.importorskip("torchao")
    exact = score_together(load_all(["CLIP", "Aesthetic"], "cpu"), PROMPTS, IMAGES)
    scorers = load_all(["CLIP", "Aesthetic"], "cpu", "int8")
    assert all(is_quantized(scorer) for scorer in scorers)
    for found, expected in zip(score_together(scorers, PROMPTS, IMAGES), exact, strict=True):
        assert found != expected
        assert found == pytest.approx(expected, abs=0.05)
