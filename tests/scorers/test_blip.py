"""BLIP's own scores against the original's values and against transformers' BLIP."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import seeded
from image_reward.checkpoints import load_strictly, read_checkpoint
from image_reward.errors import CheckpointError, LongPromptWarning
from image_reward.models.blip import BlipConfig, MatchingNetwork
from image_reward.scorers import MODELS, load, load_all, score_together
from image_reward.scorers.blip import BlipMatchingScorer, BlipScorer
from upstream import Original

pytestmark = pytest.mark.filterwarnings("ignore::image_reward.LongPromptWarning")
CONFIG = seeded.TINY.network
IMAGE = seeded.image("rings", 96, 64, 3)


def released(retrieval: bool, config: BlipConfig = CONFIG) -> dict[str, Tensor]:
    """A checkpoint in the names of Salesforce's: towers, head, and what training alone needs."""
    ours = seeded.conditioned(seeded.shapes(MatchingNetwork, config), 7)
    found = {name.removeprefix("blip."): tensor for name, tensor in ours.items()}
    momentum = {}
    for name, tensor in found.items():
        part, rest = name.split(".", 1)
        if part != "itm_head":
            momentum[f"{part}_m.{rest}"] = tensor + 1
    found |= momentum | {"text_encoder.embeddings.position_ids": torch.arange(512)[None], "temp": torch.tensor(0.07)}
    found |= {"image_queue": torch.zeros(32, 8), "text_queue": torch.zeros(32, 8)}
    if retrieval:
        return found | {"idx_queue": torch.full((1, 8), -100), "ptr_queue": torch.zeros(1, dtype=torch.long)}
    return found | {"queue_ptr": torch.zeros(1, dtype=torch.long), "text_decoder.cls.predictions.bias": torch.zeros(3)}


@pytest.fixture
def blip() -> BlipScorer:
    return BlipScorer.from_tensors(seeded.weights(seeded.TINY, 7), "seeded weights", CONFIG)


@pytest.fixture
def matching(tmp_path: Path) -> BlipMatchingScorer:
    torch.save({"model": released(retrieval=True)}, tmp_path / "retrieval.pth")
    tensors, _ = read_checkpoint(tmp_path / "retrieval.pth")
    return BlipMatchingScorer.from_tensors(tensors, "retrieval.pth", CONFIG)


def test_the_contrastive_score_equals_the_originals(blip: BlipScorer, original: Original) -> None:
    np.testing.assert_allclose(blip.matrix(original.prompts, original.images), original.blip_itc, rtol=0, atol=1e-5)
    pairs = blip.score(original.prompts, original.images)
    np.testing.assert_allclose(pairs, np.diagonal(original.blip_itc), rtol=0, atol=1e-5)


def test_a_matrix_encodes_each_prompt_once_however_many_batches_of_images_there_are(blip: BlipScorer) -> None:
    images, prompts = seeded.images()[:5], ["cat", "a large dog", "cat"]
    whole = blip.matrix(prompts, images)
    seen: list[int] = []
    blip.blip.text_encoder.embeddings.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    blip.batch_size = 2
    np.testing.assert_allclose(blip.matrix(prompts, images), whole, rtol=0, atol=1e-5)
    assert seen == [2]


def test_blips_pretraining_checkpoint_has_the_same_towers(tmp_path: Path, original: Original) -> None:
    torch.save({"model": released(retrieval=False)}, tmp_path / "model_large.pth")
    tensors, _ = read_checkpoint(tmp_path / "model_large.pth")
    scorer = BlipScorer.from_tensors(tensors, "model_large.pth", CONFIG)
    assert scorer.score("cat", original.images) == pytest.approx(original.blip_itc[1], abs=1e-5)


def test_distinct_prompts_are_encoded_once(blip: BlipScorer) -> None:
    seen: list[int] = []
    blip.blip.text_encoder.embeddings.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    images = seeded.images()[:4]
    apart = [blip.score(prompt, image) for prompt, image in zip(["cat", "a dog", "cat", "cat"], images, strict=True)]
    seen.clear()
    assert blip.score(["cat", "a dog", "cat", "cat"], images) == pytest.approx(apart, abs=1e-5)
    assert seen == [2]
    seen.clear()
    blip.matrix(["cat", "a dog", "sea"], images)
    assert seen == [3]


def test_the_matching_head_equals_transformers(matching: BlipMatchingScorer) -> None:
    from transformers import BlipConfig as TransformersConfig
    from transformers import BlipForImageTextRetrieval

    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64}
    vision |= {"patch_size": 16, "layer_norm_eps": 1e-6}
    text = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "encoder_hidden_size": 64}
    other = BlipForImageTextRetrieval(TransformersConfig(text_config=text, vision_config=vision, image_text_hidden_size=32)).eval()
    state = {transformers_name(name): tensor for name, tensor in matching.network.state_dict().items()}
    other.load_state_dict(state)

    prompts, images = seeded.PROMPTS[:4], seeded.images()[:4]
    tokens = matching.prepare.tokenizer(prompts)
    ids = tokens.ids.clone()
    ids[:, 0] = 30523
    blip = BlipScorer(matching.blip, CONFIG)
    pixels = torch.stack([matching.prepare.transform(image) for image in images])
    with torch.inference_mode():
        logits = other(input_ids=ids, pixel_values=pixels, attention_mask=tokens.mask.long()).itm_score
        pixels = torch.stack([blip.prepare.transform(image) for image in images])  # cropped, where the other stretches
        cosines = other(input_ids=tokens.ids, pixel_values=pixels, attention_mask=tokens.mask.long(), use_itm_head=False).itm_score
    assert matching.score(prompts, images) == pytest.approx((logits[:, 1] - logits[:, 0]).tolist(), abs=1e-5)
    probability = torch.tensor(matching.score(prompts, images)).sigmoid()
    torch.testing.assert_close(probability, logits.softmax(dim=1)[:, 1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(blip.matrix(prompts, images), cosines.T, rtol=0, atol=1e-5)


def transformers_name(name: str) -> str:
    name = name.removeprefix("blip.")
    for ours, theirs in [
        (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
        (r"visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
        (r"visual_encoder\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
        (r"visual_encoder\.norm", "vision_model.post_layernorm"),
        (r"visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
        (r"visual_encoder\.blocks\.(\d+)\.attn\.proj", r"vision_model.encoder.layers.\1.self_attn.projection"),
        (r"visual_encoder\.blocks\.(\d+)\.attn", r"vision_model.encoder.layers.\1.self_attn"),
        (r"visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    ]:
        name = re.sub(f"^{ours}", theirs, name)
    return name


def test_the_prompt_begins_with_enc(matching: BlipMatchingScorer) -> None:
    tokens = matching.prepare.tokenizer(["cat"])
    pixels = matching.prepare.transform(IMAGE)[None]
    with torch.inference_mode():
        with_cls = matching.network(pixels, tokens.ids, tokens.mask).item()
        with_enc = matching.network(pixels, torch.tensor([[30523, *tokens.ids[0, 1:].tolist()]]), tokens.mask).item()
    assert matching.score("cat", IMAGE) == pytest.approx(with_enc, abs=1e-5)
    assert abs(with_cls - with_enc) > 1e-3
    assert tokens.ids[0, 0] == 101


@pytest.mark.parametrize("kind", ["blip", "matching"])
def test_the_contract(kind: str, request: pytest.FixtureRequest, image_folder: Path) -> None:
    scorer = request.getfixturevalue(kind)
    images = [str(image_folder / f"{name}.png") for name in "abc"]
    rewards = scorer.score("cat", images)
    assert rewards == pytest.approx([scorer.score("cat", image) for image in images], abs=1e-5)
    assert scorer.rank("cat", images).rewards == rewards
    assert 0 < scorer.compare("cat", *images[:2]).a_better < 1
    assert scorer.matrix(["cat", "a dog"], images)[0].tolist() == pytest.approx(rewards, abs=1e-5)
    assert score_together([scorer, scorer], ["cat"] * 3, images)[1] == pytest.approx(rewards, abs=1e-5)
    pixels = torch.rand(2, 3, 80, 70, requires_grad=True)
    scorer.rewards("cat", pixels).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0
    scorer.cast(torch.bfloat16)
    assert scorer.score("cat", images) == pytest.approx(rewards, abs=0.2)
    with pytest.raises(ValueError, match="has no format of this package"):
        scorer.save_pretrained(image_folder)
    with pytest.warns(LongPromptWarning, match="the model reads 35"):
        scorer.score(seeded.LONG_PROMPT, images[0])


def test_strict_loading() -> None:
    tensors = {name: tensor for name, tensor in released(retrieval=True).items() if not name.endswith("position_ids")}
    with pytest.raises(CheckpointError, match=r"tiny does not fit the network: blip\.extra\.weight is unexpected"):
        BlipMatchingScorer.from_tensors(tensors | {"extra.weight": torch.zeros(1)}, "tiny", CONFIG)
    with pytest.raises(CheckpointError, match=r"itm_head\.bias is missing"):
        BlipMatchingScorer.from_tensors({n: t for n, t in tensors.items() if n != "itm_head.bias"}, "tiny", CONFIG)
    with pytest.raises(CheckpointError, match="tiny is none of BLIP's pretraining or retrieval checkpoints"):
        BlipMatchingScorer.from_tensors(seeded.weights(seeded.TINY, 7), "tiny", CONFIG)
    with pytest.raises(CheckpointError, match=r"blip\.text_proj\.bias is missing"):
        BlipScorer.from_tensors({n: t for n, t in seeded.weights(seeded.TINY, 7).items() if n != "blip.text_proj.bias"}, "tiny", CONFIG)
    with pytest.raises(CheckpointError, match=r"blocks\.3\.norm1\.weight is missing; .* 610 more"):
        BlipMatchingScorer.from_tensors(tensors, "tiny")


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``load("BLIP")`` and ``load("BLIP-ITM")`` find and build them, with files of the tiny sizes."""
    for name, retrieval in [("BLIP", False), ("BLIP-ITM", True)]:
        spec = MODELS[name]
        path = tmp_path / spec.files["weights"].name
        torch.save({"model": released(retrieval)}, path)
        monkeypatch.setitem(MODELS, name, replace(spec, files={"weights": replace(spec.files["weights"], original_cache=str(tmp_path))}))
    with pytest.raises(CheckpointError, match=r"model_large\.pth is one of BLIP's own checkpoints.* load it as BLIP or BLIP-ITM"):
        load(tmp_path / "model_large.pth")
    monkeypatch.setattr("image_reward.scorers.blip.BlipConfig", lambda: CONFIG)
    monkeypatch.setattr("image_reward.scorers.blip.replace", lambda config, image_size: config)  # noqa: ARG005
    blip, matching = load_all(["BLIP", "BLIP-ITM"], "cpu", exact=True)
    assert (blip.name, matching.name) == ("BLIP", "BLIP-ITM")
    assert isinstance(blip, BlipScorer)
    assert blip.blip.visual_encoder.original_order
    assert -1 <= blip.score("cat", IMAGE) <= 1
    assert matching.score("cat", IMAGE) != blip.score("cat", IMAGE)
    with pytest.raises(ValueError, match="a config is for ImageReward checkpoints; BLIP has its own sizes"):
        load_all(["BLIP"], config=seeded.TINY)


def test_the_sizes_of_the_retrieval_checkpoint() -> None:
    with torch.device("meta"):
        network = MatchingNetwork(replace(BlipConfig(), image_size=384))
        assert network.state_dict()["blip.visual_encoder.pos_embed"].shape == (1, 577, 1024)
        assert network.state_dict()["itm_head.weight"].shape == (2, 768)
    with pytest.raises(CheckpointError, match="is missing"):
        load_strictly(network, {}, "nothing")
