"""Small networks and a small tokenizer of Qwen's kind: the same structure and special tokens, with seeded weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
"""Qwen2-VL's, in the order of their ids."""

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Of Qwen/Qwen2-VL-7B-Instruct and Qwen/Qwen2.5-VL-7B-Instruct (Apache-2.0), which the original programs fetch."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def letters() -> list[str]:
    """The characters that stand for the 256 bytes, in the order of their ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def tokenizer(merges: Sequence[str] = (), special_tokens: Sequence[str] = SPECIAL_TOKENS, written: Sequence[str] = ()) -> Tokenizer:
    """Byte-level pairs as Qwen2's tokenizer: of 256 bytes and the tokens that "left right" merges make; then the special tokens.

    ``written``: texts that are tokens too, which the network may write, and which no text is read as.
    """
    words = dict.fromkeys([*letters(), *(merge.replace(" ", "") for merge in merges)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words |= dict.fromkeys("".join(part for part, _ in byte_level.pre_tokenize_str(text)) for text in written)
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, pairs))
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return made


def tokenizer_file(folder: Path, merges: Sequence[str] = (), special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Path:
    file = folder / "tokenizer.json"
    tokenizer(merges, special_tokens).save(str(file))
    return file


def config(num_tokens: int, **others: Any) -> dict[str, Any]:
    """The config.json of a small Qwen2-VL, flat as the published ones are. Images have patches of 14 pixels, as there.

    ``num_tokens``: of the tokenizer. ``vocab_size`` may be larger.
    """
    first = num_tokens - len(SPECIAL_TOKENS)
    ids = {name: first + number for number, name in enumerate(SPECIAL_TOKENS)}
    return {
        "model_type": "qwen2_vl",
        "vocab_size": num_tokens,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        **others,
    }


def config_2_5(num_tokens: int, **others: Any) -> dict[str, Any]:
    """The config.json of a small Qwen2.5-VL, flat as the published ones are, with windows in its image tower."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "hidden_act": "silu",
    }
    own = {"model_type": "qwen2_5_vl", "max_position_embeddings": 32768, "vision_config": vision}
    return config(num_tokens) | own | others


def config_3(num_tokens: int, **others: Any) -> dict[str, Any]:
    """The config.json of a small Qwen3-VL. Images have patches of 16 pixels, as there."""
    flat = config(num_tokens)
    ids = {name: flat[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": num_tokens,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
        "hidden_act": "silu",
        "bos_token_id": flat["bos_token_id"],
        "eos_token_id": flat["eos_token_id"],
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "hidden_act": "gelu_pytorch_tanh",
    }
    return {"model_type": "qwen3_vl", "tie_word_embeddings": False, "text_config": text, "vision_config": vision, **ids, **others}


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Seeded weights under their names: values of bfloat16, as in the published files, but float32 for a head called ``rm_head``.

    Attention is peaked, so that positions, images and prompts all show in what comes out.
    """

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        values = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape).astype(np.float32)
        if "norm" in name or "ln_q" in name:
            values = np.float32(0.1) * values + np.float32(name.endswith("weight"))
        elif name.endswith("bias"):
            values = np.float32(0.05) * values
        elif "embed_tokens" not in name:
            peaked = any(part in name for part in ("q_proj", "k_proj", "qkv"))
            values = values * np.float32((2.0 if peaked else 1.0) / np.sqrt(np.prod(shape[1:])))
        drawn = torch.from_numpy(values)
        return drawn if name.startswith("rm_head") else drawn.bfloat16().float()

    return {name: weight(name, shape) for name, shape in shapes.items()}


def changed(folder: Path, to: Path, config: dict[str, Any] | None = None, **files: str | None) -> Path:
    """A copy of a folder in which values of config.json are others, and whole files; None for a file that is to be missing."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | (config or {})))
    for name, text in files.items():
        path = to / f"{name}.json"
        path.write_text(text) if text is not None else path.unlink()
    return to
