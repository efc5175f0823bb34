"""CLIP: the checkpoints of OpenAI and OpenCLIP as transformers' ``CLIPModel``, and that network built without storage.

Both use the same names for tensors; transformers uses others, splits the fused query, key and value, and transposes the projections.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from image_reward.errors import CheckpointError, InputError
from image_reward.models.linear import make_fast

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

Activation = Literal["quick_gelu", "gelu"]
"""OpenAI trained with x * sigmoid(1.702 x), OpenCLIP mostly with the exact GELU. The weights do not show which."""

# Not weights: the sizes in OpenAI's files, and the causal mask that some versions of OpenCLIP saved.
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}

# Heads are 64 wide, except in the largest image towers of OpenCLIP (ViT-H, g, bigG), which all have 16.
_HEAD_WIDTH = 64
_VISION_HEADS = {1280: 16, 1408: 16, 1664: 16}


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is not a weight, and without the ``text.`` before the text tower's names in OpenCLIP's ``CustomTextCLIP``."""
    names = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in names.items() if name not in _NOT_WEIGHTS}


def transformers_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors under the names of OpenAI or OpenCLIP -> under the names of ``CLIPModel``. Raises ``CheckpointError`` for unknown names."""
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in plain_names(tensors).items():
        block = _BLOCK.fullmatch(name)
        if name in _OUTSIDE:
            renamed[_OUTSIDE[name]] = tensor
        elif name in _TRANSPOSED and tensor.ndim == 2:
            renamed[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif block and block[3] in ("attn.in_proj_weight", "attn.in_proj_bias") and len(tensor) % 3 == 0:
            parameter = block[3].rsplit("_", 1)[1]
            for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{_tower(block)}.self_attn.{kind}_proj.{parameter}"] = part
        elif block and block[3].rpartition(".")[0] in _IN_BLOCK and block[3].endswith((".weight", ".bias")):
            module, _, parameter = block[3].rpartition(".")
            renamed[f"{_tower(block)}.{_IN_BLOCK[module]}.{parameter}"] = tensor
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise CheckpointError(
            f"{source} is not a CLIP of OpenAI or OpenCLIP with a vision transformer: unknown are {', '.join(unknown[:5])}{more}"
        )
    return renamed


def _tower(block: re.Match[str]) -> str:
    return f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"


def clip_config(
    tensors: Mapping[str, Tensor],
    activation: Activation,
    end_token: int,
    source: str,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> CLIPConfig:
    """The sizes of a CLIP under the names of OpenAI or OpenCLIP, from the shapes; the heads, which no shape shows, from the width.

    Raises ``CheckpointError`` if a tensor that shows a size is missing, or for a width whose number of heads is not known.
    """
    from transformers import CLIPConfig

    tensors = plain_names(tensors)

    def shape(name: str, num_dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"{source} is not a CLIP of OpenAI or OpenCLIP with a vision transformer: {name} is missing")
        if tensors[name].ndim != num_dimensions:
            raise CheckpointError(f"{source}: {name} has shape {tuple(tensors[name].shape)} and should have {num_dimensions} dimensions")
        return tuple(tensors[name].shape)

    def num_layers(tower: str) -> int:
        return 1 + max((int(block[2]) for block in map(_BLOCK.fullmatch, tensors) if block and (block[1] or "") == tower), default=-1)

    vision_width, _, patch_size, _ = shape("visual.conv1.weight", 4)
    num_places = shape("visual.positional_embedding", 2)[0] - 1
    side = math.isqrt(num_places)
    if side * side != num_places:
        raise CheckpointError(f"{source}: visual.positional_embedding has {num_places} places for patches, which do not form a square")
    vocab_size, text_width = shape("token_embedding.weight", 2)
    if vision_heads is None and vision_width > 1024 and vision_width not in _VISION_HEADS:
        raise CheckpointError(f"{source}: an image tower of width {vision_width} is not known here; give vision_heads")
    vision_heads = vision_heads or _VISION_HEADS.get(vision_width, vision_width // _HEAD_WIDTH)
    text_heads = text_heads or text_width // _HEAD_WIDTH
    for width, heads, which in ((vision_width, vision_heads, "vision_heads"), (text_width, text_heads, "text_heads")):
        if not heads or width % heads:
            raise CheckpointError(f"{source}: a width of {width} cannot be divided among {heads} heads; give {which}")
    projection = shape("visual.proj", 2)[1]
    return CLIPConfig(
        projection_dim=projection,
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            "projection_dim": projection,
            "num_hidden_layers": num_layers(""),
            "num_attention_heads": text_heads,
            "max_position_embeddings": shape("positional_embedding", 2)[0],
            "hidden_act": activation,
            "eos_token_id": end_token,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            "projection_dim": projection,
            "num_hidden_layers": num_layers("visual."),
            "num_attention_heads": vision_heads,
            "image_size": side * patch_size,
            "patch_size": patch_size,
            "hidden_act": activation,
        },
    )


# The keys of transformers' config.json that determine the network, and the largest value of each size, far beyond any real CLIP.
_SIZES = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 20,
    "projection_dim": 1 << 20,
    "num_hidden_layers": 200,
    "num_attention_heads": 1 << 20,
    "vocab_size": 1 << 20,
    "max_position_embeddings": 1 << 20,
    "image_size": 1 << 14,
    "patch_size": 1 << 14,
    "num_channels": 3,
}
_OTHERS = ("hidden_act", "layer_norm_eps", "eos_token_id")


def clip_config_from_json(values: Mapping[str, Any]) -> CLIPConfig:
    """The sizes in the object of transformers' ``config.json``. Raises ``InputError``, or whatever transformers raises.

    Only what determines the network is passed on: other keys could make transformers build tables of any size, or return tuples.
    """
    from transformers import CLIPConfig

    def part(name: str) -> dict[str, Any] | None:
        value = values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InputError(f"{name!r} is not an object but {value!r:.60}")
        return {key: value[key] for key in (*_SIZES, *_OTHERS) if key in value}

    parts = {name: part(name) for name in ("text_config", "vision_config", "text_config_dict", "vision_config_dict")}
    top = {key: values[key] for key in ("projection_dim",) if key in values}
    config = CLIPConfig.from_dict(top | {name: value for name, value in parts.items() if value is not None})
    for tower in (config, config.text_config, config.vision_config):
        for key, largest in _SIZES.items():
            size = getattr(tower, key, 1)
            if type(size) is not int or not 1 <= size <= largest:
                raise InputError(f"{key} must be a whole number from 1 to {largest:,}, not {size!r:.60}")
        if not 0 < getattr(tower, "layer_norm_eps", 1e-5) <= 0.1:
            raise InputError(f"layer_norm_eps must be above 0 and at most 0.1, not {tower.layer_norm_eps}")
    vision = config.vision_config
    if vision.num_channels != 3 or vision.patch_size > vision.image_size:
        raise InputError(f"no image of {vision.image_size} px and 3 channels has patches of {vision.patch_size} px, {vision.num_channels}")
    return config


def clip_network(config: Any) -> CLIPModel:
    """``CLIPModel`` whose weights have no storage yet; the position ids, which no file contains, have."""
    from transformers import CLIPModel

    with torch.device("meta"):
        network = CLIPModel(config)
    for embeddings in (network.text_model.embeddings, network.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings, device="cpu")[None]
    make_fast(network)
    return network.eval()
