"""A small CLIP-FlanT5 and its tokenizer: the same structure and special tokens, with seeded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

import qwen

NUM_EXTRA = 100
"""Of T5's ``<extra_id_N>`` tokens, which are the last in the vocabulary, the last first."""
PADDING = 28
"""Embeddings that no token has, as the published network has 28."""


def tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """As google/flan-t5's tokenizer.json, of these pieces: padding, end and unknown are the first three.

    Its normalizer, a table of SentencePiece's of 240 KB, is NFKC with other control characters and white space; here it is tokenizers' own.
    """
    made = Tokenizer(models.Unigram(list(pieces), unk_id=2))
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("\u2581", "always")])
    made.decoder = decoders.Metaspace("\u2581", "always")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    names = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in reversed(range(NUM_EXTRA)))]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return made


def tokenizer_file(folder: Path, pieces: Sequence[tuple[str, float]]) -> Path:
    file = folder / "tokenizer.json"
    tokenizer(pieces).save(str(file))
    return file


def config(num_pieces: int, **others: Any) -> dict[str, Any]:
    """The config.json of a small CLIP-FlanT5, with the keys of the published ones."""
    return {
        "model_type": "clip_t5",
        "architectures": ["CLIPT5ForConditionalGeneration"],
        "vocab_size": num_pieces + NUM_EXTRA + PADDING,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": 128,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "use_mm_proj": True,
    } | others


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """As ``qwen.weights``; the embeddings are one tensor under all of their names, as in the published files."""
    made = qwen.weights(shapes, seed)
    return {name: made["shared.weight"] if name.endswith("embed_tokens.weight") else tensor for name, tensor in made.items()}


def vision_config() -> dict[str, Any]:
    """Of an image tower with two heads of 64, as OpenAI's have 16 of them."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 84,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "projection_dim": 128,
    }
