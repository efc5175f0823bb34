"""The ways in which public programs use image-reward 1.5, each written as those programs write it."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import image_reward
import ImageReward as reward  # noqa: N813 - the quick start's own words
import seeded
from image_reward import CheckpointError
from image_reward.checkpoints import RewardConfig
from image_reward.scorers import ImageRewardScorer

pytestmark = pytest.mark.filterwarnings("ignore::image_reward.LongPromptWarning")
MEAN, STD = RewardConfig().mean, RewardConfig().std


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> str:
    model.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_quick_start_of_the_original_documentation(folder: str, image_folder: Path) -> None:
    model = reward.load(folder)
    prompt = "a painting of an ocean"
    img_list = [str(image_folder / name) for name in ("a.png", "b.png", "c.png")]
    with torch.no_grad():
        ranking, rewards = model.inference_rank(prompt, img_list)
        assert sorted(ranking) == [1, 2, 3]
        for index, path in enumerate(img_list):
            score = model.score(prompt, path)
            assert isinstance(score, float)
            assert score == pytest.approx(rewards[index], abs=1e-5)
    assert rewards[ranking.index(1)] == max(rewards)
    assert model.score(prompt, img_list) == pytest.approx(rewards, abs=1e-6)


def test_names() -> None:
    assert reward.available_models() == ["ImageReward-v1.0"]
    assert issubclass(reward.ImageReward, torch.nn.Module)


def test_one_image_gives_bare_numbers_that_a_loop_appends(model: Any) -> None:
    scores = []
    for image in seeded.images()[:3]:
        rank, value = model.inference_rank("cat", [image])
        assert rank == 1
        scores.append(value)
    assert torch.tensor(scores).shape == (3,)
    assert model.score("cat", [seeded.images()[0]]) == pytest.approx(scores[0], abs=1e-5)


def test_rank_and_compare_work_here_too(model: Any) -> None:
    assert model.rank("cat", seeded.images()[:1]).ranking == [1]
    assert 0 < model.compare("cat", *seeded.images()[:2]).a_better < 1


def test_n_prompts_with_n_images_whose_diagonal_is_taken(model: Any, reference: dict[str, Any]) -> None:
    prompts, images = seeded.PROMPTS[:4], seeded.images()[:4]
    ranking, rewards = model.inference_rank(prompts, images)
    assert sorted(ranking) == list(range(1, 17))
    diagonal = torch.diagonal(torch.tensor(rewards).reshape(4, 4))
    np.testing.assert_allclose(diagonal, [reference["7"]["rewards"][i][i] for i in range(4)], rtol=0, atol=1e-5)
    _, flat = model.inference_rank(prompts[:2], images[:3])  # image by image
    np.testing.assert_allclose(flat, np.array(reference["7"]["rewards"])[:2, :3].T.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [35, 75, 512])
def test_score_gard_on_pixels_that_need_gradients(model: Any, length: int) -> None:
    model.requires_grad_(False)
    expected = json.loads((Path(__file__).parents[1] / "data" / "gradients_tiny.json").read_text())
    for i, (prompt, image) in enumerate(zip(expected["prompts"], expected["images"], strict=True)):
        text = model.blip.tokenizer(
            seeded.PROMPTS[prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(model.device)
        assert text.input_ids.shape == (1, length)
        pixels = model.preprocess(seeded.images()[image]).unsqueeze(0).requires_grad_()
        rewards = model.score_gard(text.input_ids, text.attention_mask, pixels)
        assert rewards.shape == (1, 1)
        rewards.sum().backward()
        assert rewards.item() == pytest.approx(expected["rewards"][i], abs=1e-5)
        assert pixels.grad.norm().item() == pytest.approx(expected["grad_l2"][i], rel=1e-4)
        np.testing.assert_allclose(pixels.grad[0, :, 10, 20], expected["grad_sample"][i], rtol=1e-4, atol=1e-5)


def test_score_gard_in_batches_of_unlike_lengths_and_with_padding_on_the_left(model: Any) -> None:
    prompts, images = seeded.PROMPTS[:2], seeded.images()[:2]
    text = model.blip.tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    pixels = torch.stack([model.preprocess(image) for image in images])
    with torch.no_grad():
        rewards = model.score_gard(text.input_ids, text.attention_mask, pixels)
        assert rewards[:, 0].tolist() == pytest.approx([model.score(p, i) for p, i in zip(prompts, images, strict=True)], abs=1e-5)
        ids, mask = text.input_ids[:1, :10], torch.ones(1, 10, dtype=torch.long)
        mask[0, 1] = 0  # a hole is masked, not trimmed
        assert model.score_gard(ids, mask, pixels[:1]).item() != pytest.approx(
            model.score_gard(ids, torch.ones_like(mask), pixels[:1]).item(), abs=1e-6
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
def test_a_reward_assembled_by_hand(model: Any, dtype: torch.dtype, tolerance: float, reference: dict[str, Any]) -> None:
    model = model.eval().to(dtype=dtype)
    prompt, image = seeded.PROMPTS[0], seeded.images()[3]
    with torch.no_grad():
        text = model.blip.tokenizer(prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt").to(model.device)
        pixels = model.preprocess(image).unsqueeze(0).to(model.device, dtype=dtype)
        image_embeds = model.blip.visual_encoder(pixels)
        image_atts = torch.ones(image_embeds.size()[:-1], dtype=torch.long).to(model.device)
        output = model.blip.text_encoder(
            text.input_ids,
            attention_mask=text.attention_mask,
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=image_atts,
            return_dict=True,
        )
        assert output.last_hidden_state.shape == (1, 35, 48)
        value = (model.mlp(output.last_hidden_state[:, 0, :]) - model.mean) / model.std
    assert value.shape == (1, 1)
    assert value.item() == pytest.approx(reference["7"]["rewards"][0][3], abs=tolerance)
    assert model.score(prompt, image) == pytest.approx(value.item(), abs=1e-2)


def test_one_image_embedding_meets_many_prompts_by_hand(model: Any, reference: dict[str, Any]) -> None:
    text = model.blip.tokenizer(seeded.PROMPTS[:3], padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        embeds = model.blip.visual_encoder(model.preprocess(seeded.images()[2])[None])
        hidden = model.blip.text_encoder(text.input_ids, attention_mask=text.attention_mask, encoder_hidden_states=embeds)
        rewards = (model.mlp(hidden.last_hidden_state[:, 0]) - MEAN) / STD
    np.testing.assert_allclose(rewards[:, 0], np.array(reference["7"]["rewards"])[:3, 2], rtol=0, atol=1e-5)


def test_state_dicts_have_the_released_names(model: Any, tmp_path: Path) -> None:
    released = seeded.weights(seeded.TINY, 8)
    assert list(model.state_dict()) == list(released)
    model.load_state_dict(released | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]})
    right = ImageRewardScorer.from_tensors(released, seeded.TINY, "seeded weights").score("cat", seeded.images()[0])
    assert model.score("cat", seeded.images()[0]) == right
    torch.save(model.state_dict(), tmp_path / "saved.pt")
    model.save_pretrained(tmp_path)
    assert image_reward.load(tmp_path / "saved.pt", config=tmp_path / "config.json").score("cat", seeded.images()[0]) == right
    whole = torch.nn.ModuleDict({"reward": model})
    assert "reward.mlp.layers.0.weight" in whole.state_dict()
    whole.load_state_dict(whole.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*network\.mlp\.layers\.0\.bias"):
        model.load_state_dict({name: tensor for name, tensor in released.items() if name != "mlp.layers.0.bias"})


def test_copies_and_dtypes(model: Any) -> None:
    right = model.score("cat", seeded.images()[0])
    model.blip.tokenizer  # noqa: B018 - made on first use; copies carry it
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.score("cat", seeded.images()[0]) == right
    assert model.to("cpu", dtype=torch.bfloat16).score("cat", seeded.images()[0]) == pytest.approx(right, abs=0.3)
    assert (model.mean, model.std) == (MEAN, STD)
    with pytest.raises(AttributeError):
        model.mean = 0.0  # a scale that only some methods would use


def test_score_gard_refuses_what_cannot_be_scored(model: Any) -> None:
    ids, mask = torch.tensor([[101, 102]] * 3), torch.ones(3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"shape \(3, 3, 224, 224\); the network reads \[I, 3, 64, 64\]"):
        model.score_gard(ids, mask, torch.rand(3, 3, 224, 224))
    with pytest.raises(ValueError, match="3 prompts cannot be shared out among 2 images"):
        model.score_gard(ids, mask, torch.rand(2, 3, 64, 64))
    mask[1] = 0
    with pytest.raises(ValueError, match="hides every token of a prompt"):
        model.score_gard(ids, mask, torch.rand(3, 3, 64, 64))


def test_a_tuner_may_freeze_the_model_and_load_may_not(folder: str) -> None:
    model = reward.load(folder, device="cpu")
    assert all(p.requires_grad for p in model.parameters())  # as in 1.5: whoever tunes a generator freezes it
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())
    assert str(model.device) == "cpu"


def test_download_root_may_hold_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from image_reward.checkpoints import HubFile
    from image_reward.scorers.registry import MODELS

    torch.save(seeded.weights(seeded.TINY, 7), tmp_path / "ImageReward.pt")
    import hashlib

    content = (tmp_path / "ImageReward.pt").read_bytes()
    file = HubFile("THUDM/ImageReward", "ImageReward.pt", len(content), hashlib.sha256(content).hexdigest())
    spec = replace(MODELS["ImageReward-v1.0"], files=(file,), config=seeded.TINY)
    monkeypatch.setitem(MODELS, "ImageReward-v1.0", spec)
    model = reward.load("ImageReward-v1.0", download_root=str(tmp_path))
    assert model.score("cat", seeded.images()[0]) == pytest.approx(0.8897, abs=1e-4)


def test_med_config_must_describe_the_network(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "med_config.json"
    path.write_text(json.dumps({"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 30524, "encoder_width": 768}))
    reward.load(folder, med_config=str(path))
    path.write_text(json.dumps({"hidden_size": 768}))
    with pytest.raises(CheckpointError, match="hidden_size = 768, but the checkpoint's text tower has 48"):
        reward.load(folder, med_config=path)
    for content in (b"[]", b"\x89PNG"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"med_config\.json is not a JSON object"):
            reward.load(folder, med_config=path)


def test_the_old_silent_wrong_scores_are_errors(model: Any, image_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        model.inference_rank("cat", [str(image_folder / "a.png"), "missing.png"])
    with pytest.raises(ValueError, match="at least one image"):
        model.inference_rank("cat", [])
    with pytest.raises(ValueError, match="at least one prompt"):
        model.inference_rank([], [Image.new("RGB", (8, 8))])
