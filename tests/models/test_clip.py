from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import seeded
from image_reward.checkpoints import load_strictly
from image_reward.errors import CheckpointError
from image_reward.models.clip import clip_config, clip_network, transformers_names


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return seeded.clip_weights(7)


def config(tensors: dict[str, Tensor], **options: Any) -> Any:
    return clip_config(tensors, "gelu", 49407, "tiny.pt", **({"vision_heads": 2, "text_heads": 2} | options))


def test_sizes_are_read_from_the_shapes(tensors: dict[str, Tensor]) -> None:
    found = config(tensors)
    text, vision = found.text_config, found.vision_config
    assert (found.projection_dim, vision.image_size, vision.patch_size) == (32, 64, 16)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (49408, 77, 49407)
    for tower, width in ((text, 64), (vision, 128)):
        assert (tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers, tower.num_attention_heads) == (width, 4 * width, 2, 2)
        assert (tower.hidden_act, tower.layer_norm_eps) == ("gelu", 1e-5)


@pytest.mark.parametrize(
    ("vision", "text", "heads"),
    [(768, 512, (12, 8)), (1024, 768, (16, 12)), (1280, 1024, (16, 16)), (1408, 1024, (16, 16)), (1664, 1280, (16, 20))],
    ids=["ViT-B", "ViT-L", "ViT-H", "ViT-g", "ViT-bigG"],
)
def test_heads_of_the_published_models(vision: int, text: int, heads: tuple[int, int]) -> None:
    """Those that the model configs of OpenAI and OpenCLIP give."""
    with torch.device("meta"):
        tensors = {
            "visual.conv1.weight": torch.empty(vision, 3, 14, 14),
            "visual.positional_embedding": torch.empty(257, vision),
            "visual.proj": torch.empty(vision, 64),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": torch.empty(4 * vision, vision),
            "transformer.resblocks.0.mlp.c_fc.weight": torch.empty(4 * text, text),
            "token_embedding.weight": torch.empty(99, text),
            "positional_embedding": torch.empty(77, text),
        }
    found = config(tensors, vision_heads=None, text_heads=None)
    assert (found.vision_config.num_attention_heads, found.text_config.num_attention_heads) == heads


def test_the_fused_projections_are_split_in_order(tensors: dict[str, Tensor]) -> None:
    found = transformers_names(tensors, "tiny.pt")
    for kind, part in zip("qkv", tensors["visual.transformer.resblocks.1.attn.in_proj_weight"].split(128), strict=True):
        assert torch.equal(found[f"vision_model.encoder.layers.1.self_attn.{kind}_proj.weight"], part)
    for kind, part in zip("qkv", tensors["transformer.resblocks.0.attn.in_proj_bias"].split(64), strict=True):
        assert torch.equal(found[f"text_model.encoder.layers.0.self_attn.{kind}_proj.bias"], part)
    assert torch.equal(found["visual_projection.weight"], tensors["visual.proj"].T)
    assert torch.equal(found["text_projection.weight"], tensors["text_projection"].T)


def test_it_fills_the_network_exactly_and_leaves_nothing_without_storage(tensors: dict[str, Tensor]) -> None:
    network = clip_network(config(tensors))
    assert all(parameter.is_meta for parameter in network.parameters())
    load_strictly(network, transformers_names(tensors, "tiny.pt"), "tiny.pt")
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    assert network.text_model.embeddings.position_ids.tolist() == [list(range(77))]
    assert network.vision_model.embeddings.position_ids.tolist() == [list(range(17))]
    assert "text_model.embeddings.position_ids" not in network.state_dict()


def test_what_versions_of_openclip_add_changes_nothing(tensors: dict[str, Tensor]) -> None:
    plain = transformers_names(tensors, "tiny.pt")
    others = {
        "custom text": {
            name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor for name, tensor in tensors.items()
        }
        | {"text.attn_mask": torch.zeros(77, 77)},
        "mask": tensors | {"attn_mask": torch.zeros(77, 77)},
        "sizes": tensors | {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")},
    }
    for which, other in others.items():
        found = transformers_names(other, "tiny.pt")
        assert set(found) == set(plain), which
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        assert config(other).to_dict() == config(tensors).to_dict()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("visual.attnpool.positional_embedding", (5, 4)),
        ("visual.transformer.resblocks.0.ls_1.gamma", (128,)),
        ("visual.transformer.resblocks.0.attn.in_proj_scale", (384,)),
        ("transformer.resblocks.0.mlp.c_gate.weight", (4, 4)),
        ("transformer.resblocks.0.ln_1.scale", (64,)),
        ("logit_bias", ()),
        ("text_projection", (32,)),
        ("transformer.resblocks.1.attn.in_proj_bias", (191,)),
    ],
)
def test_a_tensor_of_another_network_is_named(name: str, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> None:
    with pytest.raises(
        CheckpointError, match=rf"tiny\.pt is not a CLIP of OpenAI or OpenCLIP with a vision transformer: unknown are {name}$"
    ):
        transformers_names(tensors | {name: torch.zeros(shape)}, "tiny.pt")


def test_many_unknown_tensors_are_counted(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"unknown are visual\.layer1\.0, .*, visual\.layer1\.4 and 3 more$"):
        transformers_names(tensors | {f"visual.layer1.{i}": torch.zeros(1) for i in range(8)}, "tiny.pt")


@pytest.mark.parametrize(
    "name", ["visual.conv1.weight", "visual.proj", "token_embedding.weight", "transformer.resblocks.0.mlp.c_fc.weight"]
)
def test_a_missing_size_is_named(name: str, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        config({other: tensor for other, tensor in tensors.items() if other != name})


def test_sizes_that_cannot_be(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"visual.proj has shape \(4,\) and should have 2 dimensions"):
        config(tensors | {"visual.proj": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="has 18 places for patches, which do not form a square"):
        config(tensors | {"visual.positional_embedding": torch.zeros(19, 128)})
    with pytest.raises(CheckpointError, match="a width of 128 cannot be divided among 3 heads; give vision_heads"):
        config(tensors, vision_heads=3)
    with pytest.raises(CheckpointError, match="an image tower of width 2048 is not known here; give vision_heads"):
        config(tensors | {"visual.conv1.weight": torch.zeros(2048, 3, 16, 16)}, vision_heads=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_final.bias": None}, "text_model.final_layer_norm.bias is missing"),
        ({"visual.transformer.resblocks.1.ln_2.weight": None}, "vision_model.encoder.layers.1.layer_norm2.weight is missing"),
        ({"visual.class_embedding": torch.zeros(127)}, r"class_embedding has shape \(127,\) and should have \(128,\)"),
        ({"visual.ln_pre.bias": torch.full((128,), torch.nan)}, "vision_model.pre_layrnorm.bias holds NaN or infinite weights"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str, tensors: dict[str, Tensor]) -> None:
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        load_strictly(clip_network(config(tensors)), transformers_names(changed, "tiny.pt"), "tiny.pt")
