"""A Qwen2.5-VL or a Qwen3-VL from its files: its network, its chat template, how it reads images, and how it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from image_reward.checkpoints import Piece, built, pieces_of, read_object
from image_reward.config import (
    CHAT_NAMES,
    CONFIG_NAME,
    GENERATION_NAME,
    PICKLE_NAME,
    PREPROCESSOR_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    TransformConfig,
)
from image_reward.errors import CheckpointError
from image_reward.files import fill
from image_reward.images import ImageOptions
from image_reward.scorers.spec import Devices
from image_reward.scorers.vision_language import (
    ChatTemplate,
    ImagePatches,
    VisionLanguageProcessor,
    check_not_quantized,
    empty_network,
    load_network,
    longest_text,
    read_shards,
)
from image_reward.types import CLIP_MEAN, CLIP_STD

# --- files -----------------------------------------------------------------------------------------------------------------------------


class ChatFiles(NamedTuple):
    """The files of a checkpoint of transformers' format, which may lie in different folders."""

    config: Path
    weights: Sequence[Path]
    """One file, or the shards that an index names."""
    tokenizer: Path
    """``tokenizer.json``"""
    generation: Path | None = None
    """``generation_config.json``"""
    preprocessor: Path | None = None
    """``preprocessor_config.json``"""
    chat: Path | None = None
    """What carries a chat template: ``chat_template.jinja``, ``chat_template.json`` or ``tokenizer_config.json``"""

    @classmethod
    def in_folder(cls, folder: Path) -> ChatFiles:
        """Where transformers puts them. Whoever loads them says which are missing."""
        chats = (folder / name for name in CHAT_NAMES)
        generation, preprocessor = folder / GENERATION_NAME, folder / PREPROCESSOR_NAME
        return cls(
            folder / CONFIG_NAME,
            read_shards(folder, (WEIGHTS_NAME, PICKLE_NAME)),
            folder / TOKENIZER_NAME,
            generation if generation.is_file() else None,
            preprocessor if preprocessor.is_file() else None,
            next((path for path in chats if path.is_file() and (path.suffix != ".json" or _chat_in(path))), None),
        )

    @classmethod
    def of(cls, paths: Mapping[str, Path]) -> ChatFiles:
        """Those of a folder, or those that a ``ModelSpec`` names."""
        if "folder" in paths:
            return cls.in_folder(paths["folder"])
        weights = [path for path in paths.values() if path.suffix in (".safetensors", ".bin")]
        return cls(paths["config"], weights, paths["tokenizer"], paths.get("generation"), paths.get("preprocessor"), paths.get("chat"))


# --- text ------------------------------------------------------------------------------------------------------------------------------

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CHATS = {
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n",
    "qwen3_vl": "<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n",
}
"""What the published chat templates make of one question about images, by ``model_type``: for checkpoints that carry no template."""


def chat_text(question: str, kind: str, carried: Path | None = None, num_images: int = 1) -> str:
    """The text around a prompt: what a checkpoint's own chat template makes of images and a question, or, without one, the published.

    Raises ``CheckpointError`` for a template that cannot be used.
    """
    template = _chat_in(carried) if carried else None
    if template is None:
        return CHATS[kind].replace("{images}", _IMAGE * num_images).replace("{question}", question)
    from transformers.utils.chat_template_utils import render_jinja_template

    content = [{"type": "image", "image": ""}] * num_images + [{"type": "text", "text": question}]
    try:
        messages = [{"role": "user", "content": content}]
        rendered = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)[0][0]
    except Exception as error:  # whatever a template does
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"the chat template in {carried} cannot be used: {reason:.200}; use the base model's") from None
    if rendered.count(question) != 1 or rendered.count(_IMAGE) != num_images:
        shown = "one image" if num_images == 1 else f"{num_images} images"
        raise CheckpointError(f"the chat template in {carried} does not show {shown} and one question; use the base model's")
    return str(rendered)


def _chat_in(file: Path) -> str | None:
    """The chat template that a file carries, if it carries one."""
    if file.suffix != ".json":
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"the chat template in {file} is not UTF-8 text: {error}; use the base model's") from None
    template = read_object(file).get("chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file} has several chat templates, or none that is text; keep the one to use")
    return template


# --- the network -----------------------------------------------------------------------------------------------------------------------


class LoadedChat(NamedTuple):
    """What ``load_chat`` makes of a checkpoint."""

    network: nn.Module
    processor: VisionLanguageProcessor


def load_chat(
    files: ChatFiles,
    values: dict[str, Any],
    template: Callable[[int], ChatTemplate],
    *,
    num_tokens: tuple[int, int] | None = None,
    num_images: int = 1,
    num_written: int = 0,
    options: ImageOptions,
    dtype: torch.dtype,
    devices: Devices = None,
) -> LoadedChat:
    """The network of a checkpoint, read a part at a time to where it is to be, and what makes its batches.

    Args:
        values: what ``files.config`` holds, of a ``model_type`` in ``CHATS``.
        template: makes the template, given how many tokens a text may have.
        num_tokens: the fewest and the most of an image; by default those of the checkpoint's ``preprocessor_config.json``.
        num_images: the most that one text shows.
        num_written: tokens that are kept free for an answer.

    Raises ``CheckpointError``: a file is missing or damaged, or they do not belong together.
    """
    import transformers

    kind = values["model_type"]
    check_not_quantized(values, files.config)
    config_class, network_class = {
        "qwen2_5_vl": ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
        "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
    }[kind]
    config = built(lambda: getattr(transformers, config_class)(**values), files.config, "network")
    vision = config.vision_config
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    least, most = (number * token for number in num_tokens) if num_tokens else _pixel_budget(files.preprocessor, kind)
    own = template(longest_text(config, files.config, num_images * (most // token) + num_written))
    own.check_image_token(files.tokenizer, config.image_token_id, files.config)
    source = str(files.weights[0] if len(files.weights) == 1 else files.weights[0].parent)
    network = built(lambda: empty_network(lambda: getattr(transformers, network_class)(config)), files.config, "network")
    hint = f". The sizes are those of {files.config}: is it of another base?"
    load_network(network, chat_names(pieces_of(files.weights)), source, dtype=dtype, devices=devices, hint=hint)
    patches = ImagePatches(
        least,
        most,
        vision.patch_size,
        vision.spatial_merge_size,
        vision.temporal_patch_size,
        *_pixel_statistics(files.preprocessor, kind),
        options,
    )
    return LoadedChat(network, VisionLanguageProcessor(patches, own))


def _pixel_statistics(file: Path | None, kind: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and standard deviation that pixels are normalised with: a checkpoint's own, or those of the published ones."""
    asked = read_object(file) if file else {}
    mean, std = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) if kind == "qwen3_vl" else (CLIP_MEAN, CLIP_STD)
    values = {"size": 1, "mean": asked.get("image_mean", list(mean)), "std": asked.get("image_std", list(std))}
    own = fill(TransformConfig, values, str(file))
    return own.mean, own.std


_PIXELS = {"qwen2_5_vl": (4 * 28**2, 16384 * 28**2), "qwen3_vl": (64 * 32**2, 16384 * 32**2)}
"""The fewest and the most pixels of an image in the published ``preprocessor_config.json``."""


def _pixel_budget(file: Path | None, kind: str) -> tuple[int, int]:
    """The fewest and the most pixels of an image: a checkpoint's own, or those of the published ones."""
    asked = read_object(file) if file else {}
    size = asked.get("size") or {}
    if not isinstance(size, dict):
        raise CheckpointError(f"{file}: size must be an object with shortest_edge and longest_edge, not {size!r:.60}")
    limits = []
    for names, default in zip((("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")), _PIXELS[kind], strict=True):
        # Older programs write the first name, or both with one value.
        limit = next((place[name] for place, name in zip((asked, size), names, strict=True) if place.get(name) is not None), default)
        if type(limit) is not int or limit < 1:
            raise CheckpointError(f"{file}: {names[0]} must be a number of pixels, not {limit!r:.60}")
        limits.append(limit)
    if limits[0] > limits[1]:
        raise CheckpointError(f"{file}: an image would have at least {limits[0]:,} pixels and at most {limits[1]:,}")
    return limits[0], limits[1]


def chat_names(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """The names that checkpoints have, of which those before transformers 4.52 lack the parts of the model -> today's."""
    renamed: dict[str, Piece] = {}
    for name, piece in pieces.items():
        if name.startswith("visual."):
            renamed[f"model.{name}"] = piece
        elif name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
            renamed[f"model.language_model.{name.removeprefix('model.')}"] = piece
        else:
            renamed[name] = piece
    return renamed


# --- writing ---------------------------------------------------------------------------------------------------------------------------


def repetition_penalty(file: Path | None) -> float:
    """The one of a checkpoint's generation config: transformers applies it without sampling too."""
    penalty = read_object(file).get("repetition_penalty") if file else None
    if penalty is None:
        return 1.0
    if not isinstance(penalty, int | float) or isinstance(penalty, bool) or not 0 < penalty < math.inf:
        raise CheckpointError(f"{file}: repetition_penalty must be a positive number, not {penalty!r:.60}")
    return float(penalty)


def penalised(logits: Tensor, was_read: Tensor, penalty: float) -> Tensor:
    """Logits [N, V] after transformers' penalty of repetition, of the tokens that were read or written [N, V], bool."""
    return torch.where(was_read, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


_ENDS = ("<|im_end|>", "<|endoftext|>")


def end_tokens(file: Path | None, template: ChatTemplate) -> tuple[int, ...]:
    """The tokens that end an answer: those of a checkpoint's generation config, or those of the published ones."""
    ids = read_object(file).get("eos_token_id") if file else None
    if ids is None:
        template = ChatTemplate("".join(_ENDS), template.definition)
        template.check_tokens(str(file or "the tokenizer"))
        return tuple(template.token_id(token) for token in _ENDS)
    ends = ids if isinstance(ids, list) else [ids]
    if not ends or not all(type(number) is int and 0 <= number < template.vocab_size for number in ends):
        raise CheckpointError(f"{file}: eos_token_id must be a token, or a list of them, not {ids!r:.60}")
    return tuple(ends)
