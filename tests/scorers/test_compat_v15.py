"""The ways in which public programs use image-reward 1.5, each written as those programs write it."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import image_reward
import ImageReward as reward  # noqa: N813 - the quick start's own words
import seeded
from image_reward import CheckpointError
from image_reward.config import RewardConfig
from image_reward.downloads import HubFile
from image_reward.scorers import ImageReward, ImageRewardScorer
from image_reward.scorers.registry import MODELS
from upstream import Original

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
    assert model.score(prompt, img_list) == pytest.approx(rewards, abs=1e-5)


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


def test_n_prompts_with_n_images_whose_diagonal_is_taken(model: Any, original: Original) -> None:
    prompts, images = original.prompts[:4], original.images[:4]
    ranking, rewards = model.inference_rank(prompts, images)
    assert sorted(ranking) == list(range(1, 17))
    diagonal = torch.diagonal(torch.tensor(rewards).reshape(4, 4))
    np.testing.assert_allclose(diagonal, np.diagonal(original.rewards)[:4], rtol=0, atol=1e-5)
    _, flat = model.inference_rank(prompts[:2], images[:3])  # image by image
    np.testing.assert_allclose(flat, original.rewards[:2, :3].T.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [35, 75, 512])
def test_score_gard_on_pixels_that_need_gradients(length: int) -> None:
    model = ImageReward.from_tensors(seeded.peaked_weights(seeded.TINY, 7), seeded.TINY, "seeded weights").requires_grad_(False)
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
        assert rewards.item() == pytest.approx(expected["rewards"][i], abs=1e-4)  # peaked weights amplify rounding
        assert pixels.grad.norm().item() == pytest.approx(expected["grad_l2"][i], rel=1e-3)
        np.testing.assert_allclose(pixels.grad[0, :, 10, 20], expected["grad_sample"][i], rtol=1e-3, atol=1e-4)


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
            model.score_gard(ids, torch.ones_like(mask), pixels[:1]).item(), abs=1e-4
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_reward_assembled_by_hand(model: Any, dtype: torch.dtype, tolerance: float, original: Original) -> None:
    model = model.eval().to(dtype=dtype)
    prompt, image = original.prompts[0], original.images[7]
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
    assert value.item() == pytest.approx(original.rewards[0, 7], abs=tolerance)
    assert model.score(prompt, image) == pytest.approx(value.item(), abs=1e-2)


def test_one_image_embedding_meets_many_prompts_by_hand(model: Any, original: Original) -> None:
    text = model.blip.tokenizer(original.prompts[:3], padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        embeds = model.blip.visual_encoder(model.preprocess(original.images[2])[None])
        hidden = model.blip.text_encoder(text.input_ids, attention_mask=text.attention_mask, encoder_hidden_states=embeds)
        rewards = (model.mlp(hidden.last_hidden_state[:, 0]) - MEAN) / STD
    np.testing.assert_allclose(rewards[:, 0], original.rewards[:3, 2], rtol=0, atol=1e-5)


def test_state_dicts_have_the_released_names(model: Any, tmp_path: Path) -> None:
    released = seeded.weights(seeded.TINY, 8)
    assert list(model.state_dict()) == list(released)
    model.load_state_dict(released | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]})
    right = ImageRewardScorer.from_tensors(released, seeded.TINY, "seeded weights").score("cat", seeded.images()[0])
    assert model.score("cat", seeded.images()[0]) == pytest.approx(right, abs=1e-5)
    torch.save(model.state_dict(), tmp_path / "saved.pt")
    model.save_pretrained(tmp_path)
    again = image_reward.load(tmp_path / "saved.pt", config=tmp_path / "config.json")
    assert again.score("cat", seeded.images()[0]) == pytest.approx(right, abs=1e-5)
    whole = torch.nn.ModuleDict({"reward": model})
    assert "reward.mlp.layers.0.weight" in whole.state_dict()
    whole.load_state_dict(whole.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*mlp\.layers\.0\.bias"):
        model.load_state_dict({name: tensor for name, tensor in released.items() if name != "mlp.layers.0.bias"})


def test_copies_and_dtypes(model: Any) -> None:
    right = model.score("cat", seeded.images()[0])
    model.blip.tokenizer  # noqa: B018 - made on first use; copies carry it
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied.score("cat", seeded.images()[0]) == pytest.approx(right, abs=1e-5)
    assert model.to("cpu", dtype=torch.bfloat16).score("cat", seeded.images()[0]) == pytest.approx(right, abs=0.05)


# --- what programs assign to the parts ---


@pytest.fixture
def by_hand(model: Any) -> Any:
    """What 1.5 computes for the model's parts as they are at the time."""

    def reward_of(prompt: str, image: Image.Image) -> float:
        with torch.no_grad():
            text = model.blip.tokenizer([prompt], padding="max_length", truncation=True, max_length=35, return_tensors="pt")
            embeds = model.blip.visual_encoder(model.preprocess(image)[None])
            output = model.blip.text_encoder(
                text.input_ids,
                attention_mask=text.attention_mask,
                encoder_hidden_states=embeds,
                encoder_attention_mask=torch.ones(embeds.shape[:-1], dtype=torch.long),
                return_dict=True,
            )
            return ((model.mlp(output.last_hidden_state[:, 0]) - model.mean) / model.std).item()

    return reward_of


class Shouting(torch.nn.Module):
    """A text encoder around the model's own, in 1.5's calling convention."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2
        return output


def reversed_image(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image.convert("RGB").resize((64, 64)))).permute(2, 0, 1).float() / 255
    return (1 - pixels) * 2


class LowerCaseOnly:
    """A tokenizer that reads the first word alone."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        return self.inner([prompt.split()[0] for prompt in prompts], **options)


def other() -> Any:
    from conftest import tiny

    return tiny(reward.ImageReward, seed=8)


PARTS = {
    "mlp": lambda m: setattr(m, "mlp", torch.nn.Sequential(torch.nn.Linear(48, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))),
    "mlp.layers": lambda m: setattr(m.mlp, "layers", torch.nn.Sequential(torch.nn.Linear(48, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))),
    "mlp.layers[-1]": lambda m: m.mlp.layers.__setitem__(-1, torch.nn.Linear(16, 1, bias=False)),
    "blip": lambda m: setattr(m, "blip", other().blip),
    "blip.visual_encoder": lambda m: setattr(m.blip, "visual_encoder", other().blip.visual_encoder),
    "blip.text_encoder": lambda m: setattr(m.blip, "text_encoder", other().blip.text_encoder),
    "a foreign text encoder": lambda m: setattr(m.blip, "text_encoder", Shouting(m.blip.text_encoder)),
    "blip.tokenizer": lambda m: setattr(m.blip, "tokenizer", LowerCaseOnly(m.blip.tokenizer)),
    "preprocess": lambda m: setattr(m, "preprocess", reversed_image),
    "mean": lambda m: setattr(m, "mean", 3.0),
    "std": lambda m: setattr(m, "std", 0.1),
    "network": lambda m: setattr(m, "network", other().network),
    "network.mlp": lambda m: setattr(m.network, "mlp", other().mlp),
    "network.blip": lambda m: setattr(m.network, "blip", other().blip),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_is_assigned_to_a_part_is_what_scores(part: str, model: Any, by_hand: Any) -> None:
    prompt, images = "A large cat", seeded.images()[:3]
    before = [model.score(prompt, image) for image in images]
    torch.manual_seed(0)
    PARTS[part](model)
    model.eval()
    expected = [by_hand(prompt, image) for image in images]
    assert expected != pytest.approx(before, abs=1e-2)
    assert model.score(prompt, images) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert model.inference_rank(prompt, images)[1] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert model.rank(prompt, images).rewards == pytest.approx(expected, rel=1e-4, abs=1e-4)
    copied = copy.deepcopy(model)
    assert copied.score(prompt, images) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_text_encoder_that_programs_hook_or_patch_is_called(model: Any) -> None:
    prompt, images = "A large cat", seeded.images()[:3]
    before = model.score(prompt, images)
    encoder, seen = model.blip.text_encoder, []
    hook = encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.last_hidden_state))
    assert model.score(prompt, images) == pytest.approx(before, abs=1e-5)
    hook.remove()
    first_tokens = torch.cat([tokens[:, 0] for tokens in seen])
    assert ((model.mlp(first_tokens) - MEAN) / STD)[:, 0].tolist() == pytest.approx(before, abs=1e-5)
    forward = encoder.forward
    encoder.forward = lambda *args, **kwargs: SimpleNamespace(last_hidden_state=3 * forward(*args, **kwargs).last_hidden_state)
    expected = ((model.mlp(3 * first_tokens) - MEAN) / STD)[:, 0].tolist()
    assert expected != pytest.approx(before, abs=1e-2)
    assert model.score(prompt, images) == pytest.approx(expected, abs=1e-4)


def test_a_new_scale_is_used_by_every_method(model: Any, tmp_path: Path) -> None:
    a, b = seeded.images()[:2]
    raw = np.array([model.score("cat", image) for image in (a, b)]) * STD + MEAN
    model.mean, model.std = 1.0, 2.0
    text = model.blip.tokenizer(["cat"], return_tensors="pt")
    pixels = model.preprocess(a)[None]
    assert model.score_gard(text.input_ids, text.attention_mask, pixels).item() == pytest.approx((raw[0] - 1) / 2, abs=1e-5)
    preference = model.compare("cat", a, b)
    assert preference.a_better == pytest.approx(1 / (1 + np.exp(raw[1] - raw[0])), abs=1e-5)  # raw rewards have not changed
    assert model.reference is None  # it is of another scale
    model.save_pretrained(tmp_path / "saved")
    assert image_reward.load(tmp_path / "saved").score("cat", a) == pytest.approx((raw[0] - 1) / 2, abs=1e-5)
    with pytest.raises(CheckpointError, match="std positive"):
        model.std = 0.0


def test_what_cannot_take_effect_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=r"preprocess is a function from a PIL image to normalised pixels \[3, S, S\], not int"):
        model.preprocess = 3
    model.preprocess = reversed_image
    with pytest.raises(image_reward.ImageReadError, match=r"works on PIL images alone; give what it makes of an image to score_gard\(\)"):
        model.rewards("cat", torch.rand(1, 3, 64, 64))
    with pytest.raises(TypeError, match="child module 'mlp'"):
        model.mlp = lambda features: features


def test_the_device_may_be_assigned(model: Any) -> None:
    model.device = "cpu"
    assert str(model.device) == "cpu"
    model.device = torch.device("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_parameters_have_the_released_names(model: Any) -> None:
    """Programs freeze by name: with other names they would freeze nothing."""
    assert [name for name, _ in model.named_parameters()] == list(model.state_dict()) == list(seeded.weights(seeded.TINY, 7))


def test_one_prompt_meets_many_images(model: Any) -> None:
    images = seeded.images()[:3]
    pixels = torch.stack([model.preprocess(image) for image in images])
    text = model.blip.tokenizer(["cat"], return_tensors="pt")
    with torch.no_grad():
        rewards = model.score_gard(text.input_ids, text.attention_mask, pixels)
        output = model.blip.text_encoder(text.input_ids, text.attention_mask, encoder_hidden_states=model.blip.visual_encoder(pixels))
    assert rewards.shape == (3, 1)
    assert rewards[:, 0].tolist() == pytest.approx([model.score("cat", image) for image in images], abs=1e-5)
    assert ((model.mlp(output.last_hidden_state[:, 0]) - MEAN) / STD)[:, 0].tolist() == pytest.approx(rewards[:, 0].tolist(), abs=1e-5)


def test_a_long_prompt_is_reported_by_an_assigned_tokenizer_too(model: Any) -> None:
    model.blip.tokenizer  # noqa: B018 - from now on the model reads prompts with it
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.score("word " * 40, seeded.images()[:2])
    assert [str(w.message).split(" of the prompt")[0] for w in caught] == ["the last 7 of 42 tokens"]


def test_weights_that_were_loaded_in_inference_mode_give_gradients(folder: str) -> None:
    with torch.inference_mode():
        model = reward.load(folder)
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    model.rewards("cat", pixels).sum().backward()
    assert pixels.grad is not None
    assert model.mlp.layers[0].weight.grad is not None


def test_score_gard_refuses_what_cannot_be_scored(model: Any) -> None:
    ids, mask = torch.tensor([[101, 102]] * 3), torch.ones(3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"shape \(3, 3, 224, 224\); the network reads \[I, 3, 64, 64\]"):
        model.score_gard(ids, mask, torch.rand(3, 3, 224, 224))
    with pytest.raises(ValueError, match="3 prompts cannot be divided among 2 images"):
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


def test_download_root_may_hold_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, original: Original) -> None:
    torch.save(seeded.weights(seeded.TINY, 7), tmp_path / "ImageReward.pt")
    content = (tmp_path / "ImageReward.pt").read_bytes()
    file = HubFile("THUDM/ImageReward", "ImageReward.pt", len(content), hashlib.sha256(content).hexdigest())
    spec = replace(MODELS["ImageReward-v1.0"], files={"weights": file}, config=seeded.TINY)
    monkeypatch.setitem(MODELS, "ImageReward-v1.0", spec)
    model = reward.load("ImageReward-v1.0", download_root=str(tmp_path))
    assert model.score("cat", seeded.images()[0]) == pytest.approx(original.rewards[1, 4], abs=1e-5)


def test_med_config_must_describe_the_network(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "med_config.json"
    path.write_text(json.dumps({"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 30524, "encoder_width": 768}))
    reward.load(folder, med_config=str(path))
    path.write_text(json.dumps({"hidden_size": 768}))
    with pytest.raises(CheckpointError, match="hidden_size = 768, but the checkpoint's network has 48"):
        reward.load(folder, med_config=path)
    for content in (b"[]", b"\x89PNG"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"med_config\.json is not a? ?JSON"):
            reward.load(folder, med_config=path)


def test_the_old_silent_wrong_scores_are_errors(model: Any, image_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        model.inference_rank("cat", [str(image_folder / "a.png"), "missing.png"])
    with pytest.raises(ValueError, match="at least one image"):
        model.inference_rank("cat", [])
    with pytest.raises(ValueError, match="at least one prompt"):
        model.inference_rank([], [Image.new("RGB", (8, 8))])


@pytest.fixture
def blip_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``load_score("BLIP")`` with a file of the tiny sizes in the download root."""
    from image_reward.scorers import blip

    torch.save({"model": seeded.weights(seeded.TINY, 7)}, tmp_path / "model_large.pth")
    monkeypatch.setattr(blip, "BlipConfig", lambda: seeded.TINY.network)
    return reward.load_score("BLIP", device="cpu", download_root=str(tmp_path))


def test_scores(blip_score: Any, image_folder: Path, original: Original) -> None:
    assert reward.available_scores() == ["CLIP", "BLIP", "Aesthetic"]
    assert isinstance(blip_score, torch.nn.Module)
    assert str(blip_score.device) == "cpu"
    assert blip_score.preprocess(seeded.images()[0]).shape == (3, 64, 64)
    expected = original.blip_itc
    ranking, rewards = blip_score.inference_rank("cat", original.images)
    assert rewards == pytest.approx(expected[1], abs=1e-5)
    assert [rewards[ranking.index(rank)] for rank in range(1, 9)] == sorted(rewards, reverse=True)
    rank, value = blip_score.inference_rank("cat", [str(image_folder / "a.png")])
    assert (rank, value) == (1, pytest.approx(expected[1, 4], abs=1e-5))
    assert blip_score.score("cat", seeded.images()[0]) == blip_score.score("cat", seeded.images()[:1]) == pytest.approx(value, abs=1e-5)
    _, flat = blip_score.inference_rank(original.prompts[:2], original.images[:3])  # image by image
    np.testing.assert_allclose(flat, expected[:2, :3].T.flatten(), rtol=0, atol=1e-5)


def test_a_score_that_reads_no_prompt_gives_a_number_for_each_image(blip_score: Any) -> None:
    blip_score.scorer.reads_prompt = False
    _, rewards = blip_score.inference_rank(["cat", "a dog"], seeded.images()[:3])
    assert len(rewards) == 3


def test_names_that_are_no_scores_or_models() -> None:
    with pytest.raises(
        image_reward.UnknownModelError, match=r"no score is called 'ImageReward-v1\.0'; available are CLIP, BLIP, Aesthetic"
    ):
        reward.load_score("ImageReward-v1.0")
    with pytest.raises(image_reward.UnknownModelError, match=r"BLIP is not an ImageReward model; load_score\(\) or image_reward\.load\(\)"):
        reward.load("BLIP")
