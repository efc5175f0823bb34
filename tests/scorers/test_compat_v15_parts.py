"""The parts under their names in image-reward 1.5: called, hooked and shown as its programs do."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import seeded
from image_reward.config import RewardConfig
from image_reward.scorers import ImageReward, compat_v15_parts
from image_reward.scorers.compat_v15_parts import MLP, BertModel, BLIP_Pretrain, VisionTransformer, is_plain, random_weights

MEAN, STD = RewardConfig().mean, RewardConfig().std
SIZES = seeded.TINY.network


@pytest.fixture
def inputs(model: Any) -> dict[str, Any]:
    """Two prompts with an image each, for the text encoder."""
    text = model.blip.tokenizer(["cat", "a photo of two dogs"], padding="max_length", max_length=12, return_tensors="pt")
    pixels = torch.stack([model.preprocess(image) for image in seeded.images()[:2]])
    embeds = model.blip.visual_encoder(pixels)
    return {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask,
        "encoder_hidden_states": embeds,
        "encoder_attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long),
    }


def reward(model: Any, output: Any) -> torch.Tensor:
    return (model.mlp(output.last_hidden_state[:, 0]) - MEAN) / STD


def test_the_text_encoder_gives_what_the_shorter_way_gives(model: Any, inputs: dict[str, Any]) -> None:
    encoder = model.blip.text_encoder
    with torch.no_grad():
        output = encoder(**inputs, output_attentions=True, output_hidden_states=True)
        images = encoder.read_image(inputs["encoder_hidden_states"])
        expected = encoder.encode(inputs["input_ids"], inputs["attention_mask"], images)
        torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=1e-5)
        plain = encoder(**inputs)
        torch.testing.assert_close(plain[0], expected, rtol=0, atol=1e-5)
        text = encoder(inputs["input_ids"], attention_mask=inputs["attention_mask"], mode="text").last_hidden_state
        torch.testing.assert_close(text, encoder.encode(inputs["input_ids"], inputs["attention_mask"]), rtol=0, atol=1e-5)
        embedded = encoder(**(inputs | {"input_ids": None, "inputs_embeds": encoder.get_input_embeddings()(inputs["input_ids"])}))
        torch.testing.assert_close(embedded.last_hidden_state, expected, rtol=0, atol=1e-5)
        first, pooled = encoder(**inputs, return_dict=False)
    assert pooled is None
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)
    assert [len(part) for part in (output.hidden_states, output.attentions, output.cross_attentions)] == [3, 2, 2]
    torch.testing.assert_close(output.hidden_states[-1], output.last_hidden_state)
    for weights, length in ((output.attentions[0], 12), (output.cross_attentions[1], 17)):
        assert weights.shape == (2, SIZES.text_heads, 12, length)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, SIZES.text_heads, 12))
    assert not output.attentions[0][0, ..., 3:].any()  # "cat" is padded


def test_one_head_can_be_masked(model: Any, inputs: dict[str, Any]) -> None:
    encoder = model.blip.text_encoder
    all_heads = torch.ones(2, 1, SIZES.text_heads, 1, 1)
    without = all_heads.clone()
    without[0, :, 1] = 0
    with torch.no_grad():
        expected = encoder(**inputs).last_hidden_state
        torch.testing.assert_close(encoder(**inputs, head_mask=all_heads).last_hidden_state, expected, rtol=0, atol=1e-5)
        assert (encoder(**inputs, head_mask=without).last_hidden_state - expected).abs().max() > 1e-3


def test_the_text_encoder_says_what_it_lacks(model: Any, inputs: dict[str, Any]) -> None:
    encoder, ids = model.blip.text_encoder, torch.tensor([[101, 102]] * 3)
    for arguments, message in [
        ({"input_ids": ids}, "encoder_hidden_states is missing"),
        ({"input_ids": ids, "encoder_hidden_states": inputs["encoder_hidden_states"]}, "3 prompts cannot be divided among 2 images"),
        ({"input_ids": ids, "mode": "fusion"}, "not 'fusion'"),
        ({"mode": "text"}, "give input_ids, inputs_embeds or encoder_embeds"),
        (inputs | {"is_decoder": True}, "is_decoder is for BLIP's captioning"),
        (inputs | {"past_key_values": (1,)}, "past_key_values is for BLIP's captioning"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoder(**arguments)


PLACES = [
    "blip.visual_encoder",
    "blip.visual_encoder.patch_embed",
    "blip.visual_encoder.blocks.1",
    "blip.visual_encoder.blocks.1.attn",
    "blip.visual_encoder.blocks.1.attn.attn_drop",
    "blip.visual_encoder.blocks.1.mlp.fc1",
    "blip.visual_encoder.norm",
    "blip.text_encoder",
    "blip.text_encoder.embeddings",
    "blip.text_encoder.embeddings.position_embeddings",
    "blip.text_encoder.encoder",
    "blip.text_encoder.encoder.layer.0",
    "blip.text_encoder.encoder.layer.1.attention",
    "blip.text_encoder.encoder.layer.1.attention.self",
    "blip.text_encoder.encoder.layer.1.attention.self.dropout",
    "blip.text_encoder.encoder.layer.1.attention.self.query",
    "blip.text_encoder.encoder.layer.1.crossattention.self.key",
    "blip.text_encoder.encoder.layer.1.crossattention.output",
    "blip.text_encoder.encoder.layer.1.intermediate",
    "blip.text_encoder.encoder.layer.1.output.LayerNorm",
    "mlp",
    "mlp.layers",
    "mlp.layers.7",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_on_any_part_is_called(place: str, model: Any) -> None:
    images = seeded.images()[:2]
    expected = model.score("cat", images)
    outputs: list[Any] = []
    hook = model.get_submodule(place).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    assert model.score("cat", images) == pytest.approx(expected, abs=1e-5)
    (output,) = outputs
    if place.split(".")[-2:] == ["layer", "0"] or place.endswith(("attention", "self")):
        assert isinstance(output, tuple)
        output = output[0]  # hidden states, as in 1.5
    if place.startswith("blip.text_encoder.encoder.layer") and "key" not in place and "dropout" not in place:
        assert output.shape[:2] == (2, 3)  # every token, not the first alone
    hook.remove()
    outputs.clear()
    assert is_plain(model.blip.text_encoder)
    assert model.score("cat", images) == pytest.approx(expected, abs=1e-5)
    assert not outputs


def test_a_hook_that_changes_an_output_changes_the_score(model: Any) -> None:
    before = model.score("cat", seeded.images()[0])
    layer = model.blip.text_encoder.encoder.layer[0]
    hook = layer.register_forward_hook(lambda _module, _inputs, output: (2 * output[0], *output[1:]))
    assert model.score("cat", seeded.images()[0]) != pytest.approx(before, abs=1e-3)
    hook.remove()
    assert model.score("cat", seeded.images()[0]) == pytest.approx(before, abs=1e-5)


def test_a_class_that_is_patched_and_a_layer_that_is_wrapped_are_called(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.calls = inner, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.inner(*args, **kwargs)

    expected = model.score("cat", seeded.images()[0])
    wrapped = copy.deepcopy(model)
    wrapped.blip.text_encoder.encoder.layer[0] = Wrapper(wrapped.blip.text_encoder.encoder.layer[0])
    assert wrapped.score("cat", seeded.images()[0]) == pytest.approx(expected, abs=1e-5)
    assert wrapped.blip.text_encoder.encoder.layer[0].calls == 1
    forward, calls = BertModel.forward, []
    monkeypatch.setattr(BertModel, "forward", lambda self, *args, **kwargs: calls.append(1) or forward(self, *args, **kwargs))
    assert model.score("cat", seeded.images()[0]) == pytest.approx(expected, abs=1e-5)
    assert calls == [1]


def test_attention_to_the_image_is_kept_with_its_gradients(model: Any, inputs: dict[str, Any]) -> None:
    """ALBEF's Grad-CAM, in BLIP's notebooks: attention maps of a layer times their gradients."""
    attention = model.blip.text_encoder.encoder.layer[1].crossattention.self
    attention.save_attention = True
    inputs = {name: value.detach() for name, value in inputs.items()}
    output = model.blip.text_encoder(**inputs)
    reward(model, output).sum().backward()
    weights, gradients = attention.get_attention_map(), attention.get_attn_gradients()
    assert weights.shape == gradients.shape == (2, SIZES.text_heads, 12, 17)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, SIZES.text_heads, 12))
    assert gradients.abs().sum() > 0
    # The gradient is that of the reward: adding a little to a weight changes it by as much.
    position = (0, 0, 0, int(gradients[0, 0, 0].abs().argmax()))
    hook = attention.dropout.register_forward_hook(
        lambda _module, _inputs, out: out.index_put(tuple(map(torch.tensor, position)), out[position] + 1e-2)
    )
    with torch.no_grad():
        moved = reward(model, model.blip.text_encoder(**inputs)) - reward(model, output)
    hook.remove()
    assert moved[0].item() == pytest.approx(1e-2 * gradients[position].item(), rel=0.05)
    attention.save_attention = False
    del attention.attention_map
    model.score("cat", seeded.images()[0])
    assert not hasattr(attention, "attention_map")
    attention.save_attention = True
    model.score("cat", seeded.images()[0])
    assert attention.get_attention_map().shape == (1, SIZES.text_heads, 3, 17)


def test_attention_within_the_image_is_kept_too(model: Any) -> None:
    pixels = torch.stack([model.preprocess(image) for image in seeded.images()[:2]])
    tower = model.blip.visual_encoder
    tokens = tower(pixels, register_blk=1)
    torch.testing.assert_close(tokens, tower(pixels), rtol=0, atol=1e-5)
    tokens[:, 0].square().sum().backward()
    attention = tower.blocks[1].attn
    assert attention.get_attention_map().shape == attention.get_attn_gradients().shape == (2, SIZES.vision_heads, 17, 17)
    assert attention.get_attn_gradients().abs().sum() > 0
    assert not hasattr(tower.blocks[0].attn, "attention_map")


def test_recomputed_activations_give_the_same_gradients(model: Any, inputs: dict[str, Any]) -> None:
    inputs = {name: value.detach() for name, value in inputs.items()}

    def gradient() -> torch.Tensor:
        model.zero_grad()
        reward(model, model.blip.text_encoder(**inputs)).sum().backward()
        return model.blip.text_encoder.embeddings.word_embeddings.weight.grad.clone()

    expected = gradient()
    model.blip.text_encoder.gradient_checkpointing = True
    torch.testing.assert_close(gradient(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast(model: Any, inputs: dict[str, Any], dtype: torch.dtype) -> None:
    with torch.no_grad():
        expected = reward(model, model.blip.text_encoder(**inputs))
        with torch.autocast("cpu", dtype):
            rounded = reward(model, model.blip.text_encoder(**inputs))
        torch.testing.assert_close(rounded.float(), expected, rtol=0, atol=0.05)
        encoder = model.blip.text_encoder.to(dtype)
        output = encoder(**(inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"].to(dtype)}))
    assert output.last_hidden_state.dtype == encoder.dtype == dtype
    torch.testing.assert_close(reward(model, output), expected, rtol=0, atol=0.05)


def test_new_parts_are_random_as_berts_are_and_know_it() -> None:
    torch.manual_seed(0)
    tower = VisionTransformer(img_size=64, embed_dim=64, depth=2, num_heads=4)
    head = MLP(48)
    assert tower.blocks[1].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert tower.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert head.layers[0].weight.std().item() == pytest.approx(1 / 49, rel=0.05)
    assert not head.layers[0].bias.any()
    assert head.input_size == 48
    whole = nn.ModuleDict({"tower": tower, "head": head})
    assert random_weights(whole) == [name for name, _ in whole.named_parameters()]
    copies = [copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), whole.double().float()]
    assert [random_weights(copied) == random_weights(whole) for copied in copies] == [True] * 3
    with torch.no_grad():
        copies[0]["head"].layers[0].weight.add_(1e-6)
    head.layers[2] = nn.Linear(1024, 128)
    assert "head.layers.0.weight" not in random_weights(copies[0])
    assert random_weights(whole)[-8:] == [f"head.layers.{i}.{kind}" for i in (0, 4, 6, 7) for kind in ("weight", "bias")]
    whole.load_state_dict(whole.state_dict())
    assert random_weights(whole) == []


def test_a_model_that_is_loaded_has_no_random_weights(model: Any) -> None:
    assert random_weights(model) == []
    assert isinstance(model.blip, BLIP_Pretrain)
    assert isinstance(model.mlp, MLP)
    assert isinstance(model.blip.text_encoder, BertModel)
    assert isinstance(model.blip.visual_encoder, VisionTransformer)


def test_weights_that_training_does_not_reach_may_stay_random(tmp_path: Path) -> None:
    """The projections are BLIP's and play no part in the reward."""
    (tmp_path / "config.json").write_text(seeded.TINY.to_json())
    model = ImageReward(med_config=tmp_path / "config.json")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    text = model.blip.tokenizer(["cat"], return_tensors="pt")
    model.score_gard(text.input_ids, text.attention_mask, torch.rand(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    assert {name.split(".")[1] for name in random_weights(model)} == {"vision_proj", "text_proj"}
    assert isinstance(model.eval().score("cat", seeded.images()[0]), float)


def test_parts_that_blip_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match=r"BLIP's image tower has in_chans=3 here, not 1"):
        VisionTransformer(in_chans=1)
    config = BertModel.of(replace(SIZES, text_layers=1)).config
    with pytest.raises(ValueError, match="give add_pooling_layer=False"):
        BertModel(config)


def test_positions_of_images_of_another_size_are_interpolated() -> None:
    tower = VisionTransformer(img_size=64, embed_dim=8, depth=1, num_heads=2)
    same = torch.rand(1, 17, 8)
    assert compat_v15_parts.interpolate_pos_embed(same, tower) is same
    constant = torch.cat([torch.zeros(1, 1, 8), torch.ones(1, 9, 8)], dim=1)
    wanted = torch.cat([torch.zeros(1, 1, 8), torch.ones(1, 16, 8)], dim=1)
    torch.testing.assert_close(compat_v15_parts.interpolate_pos_embed(constant, tower), wanted)
