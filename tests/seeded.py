"""Weights, images and prompts that are the same on every machine: what the reference values in tests/data were computed on.

The streams are NumPy's legacy generator, which is frozen, and integer arithmetic.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from image_reward.config import ScorerConfig, TransformConfig
from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.models.heads import LinearHead

TINY = ScorerConfig(
    network=BlipConfig(
        image_size=64,
        patch_size=16,
        vision_width=64,
        vision_layers=3,
        vision_heads=4,
        text_width=48,
        text_layers=2,
        text_heads=4,
        text_hidden=96,
        projection_width=32,
    ),
    image=TransformConfig(size=64),
)

PROMPTS = [
    "a painting of an ocean with clouds and birds, day time, low depth field effect",
    "cat",
    "",
    "A PHOTO of a Café in Zürich, 8K!!! ultra-detailed",
    "portrait of a beautiful thick muscular fitness model wearing boxing gloves, blonde hair and ponytail, elegant, art by "
    "stanley artgerm lau, wlop, rossdraws, james jean, andrei riabovitchev, marc simonetti and sakimichan, trending on artstation",
    "一只猫坐在窗台上",
    "\U0001f600 emoji   and\ttabs\nand newlines",
    "anthropomorphic crow werecreature, photograph captured in a forest",
]
LONG_PROMPT = PROMPTS[4]

IMAGES = [
    ("gradient", 512, 512, 1),
    ("checker", 512, 512, 2),
    ("rings", 640, 427, 3),
    ("noise", 300, 301, 4),
    ("gradient", 225, 1024, 5),
    ("rings", 224, 224, 6),
    ("checker", 97, 61, 7),
    ("noise", 1024, 768, 8),
]


Shapes = dict[str, tuple[int, ...]]


def weights(config: ScorerConfig, seed: int) -> dict[str, Tensor]:
    """A state dict in the released checkpoint's names that does not amplify rounding, so that any processor gives its rewards to 1e-5."""
    return conditioned(shapes(ImageRewardNetwork, config.network), seed)


def peaked_weights(config: ScorerConfig, seed: int) -> dict[str, Tensor]:
    """As ``weights``, with attention that is nearly one-hot: what rounds differently is amplified, the more the larger the network is."""
    return {name: torch.from_numpy(_weight(name, shape, seed)) for name, shape in shapes(ImageRewardNetwork, config.network).items()}


def shapes(kind: Callable[..., nn.Module], *arguments: Any) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in kind(*arguments).state_dict().items()}


def conditioned(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Weights for all tensors of a network: small residual branches, and logits of attention of about unit deviation."""
    residual = [name for name in shapes if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "output.dense.weight"))]
    num_branches = {tower: sum(tower in name for name in residual) for tower in ("visual_encoder", "text_encoder")}

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = _normal(f"conditioned:{name}", shape, seed)
        if "norm" in name.lower() and name.endswith("weight"):
            return np.float32(1) + np.float32(0.1) * values
        if name.endswith("bias"):
            return np.float32(0.05) * values
        if "embeddings" in name or name.endswith(("cls_token", "pos_embed")):
            return np.float32(0.5) * values
        gain = 1 / np.sqrt(np.prod(shape[1:]))
        if "crossattention.output.dense" in name:
            gain *= 0.5  # enough for the image to decide the reward
        elif name in residual:
            gain /= np.sqrt(num_branches["visual_encoder" if "visual_encoder" in name else "text_encoder"])
        return values * np.float32(gain)

    return {name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()}


def clip_weights(seed: int) -> dict[str, Tensor]:
    """A small CLIP under OpenAI's names: embedding 32, image 64 px, patch 16, widths 128 and 64 (text), 2 layers and 2 heads each."""
    shapes: Shapes = {"logit_scale": (), "text_projection": (64, 32), "visual.proj": (128, 32)}
    shapes |= {"positional_embedding": (77, 64), "token_embedding.weight": (49408, 64)}
    shapes |= {"visual.class_embedding": (128,), "visual.positional_embedding": (17, 128), "visual.conv1.weight": (128, 3, 16, 16)}
    norms = {"ln_final": 64, "visual.ln_pre": 128, "visual.ln_post": 128}
    for tower, width in (("", 64), ("visual.", 128)):
        for block in (f"{tower}transformer.resblocks.{i}" for i in range(2)):
            norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            for name, fan_out, fan_in in (("attn.out_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4)):
                shapes |= {f"{block}.{name}.weight": (fan_out * width, fan_in * width), f"{block}.{name}.bias": (fan_out * width,)}
    shapes |= {f"{name}.{kind}": (width,) for name, width in norms.items() for kind in ("weight", "bias")}
    return {name: torch.from_numpy(np.asarray(_weight(name, shape, seed))) for name, shape in shapes.items()}


def aesthetic_weights(seed: int, width: int = 32) -> dict[str, Tensor]:
    return {name: torch.from_numpy(_weight(f"mlp.{name}", shape, seed)) for name, shape in shapes(LinearHead, width).items()}


def mps_weights(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Of a small MPS. The first token of a text stands out, as in trained ones, so that others resemble the condition less."""
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        peaked = any(part in name for part in ("q_proj", "k_proj", "to_q", "fused_attn"))
        values = _weight(name, shape, seed) * np.float32(2 if peaked else 1)
        made[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
        if name.endswith("inv_freq"):
            made[name] = 1 / 10_000 ** (torch.arange(0, 64, 2).float() / 64)
        elif name.endswith("fn.norm.bias"):
            made[name].zero_()
        elif name.endswith("logit_scale"):
            made[name] = torch.tensor(4.6052)
    width = shapes["model.text_projection.weight"][1]
    direction = torch.tensor([1.0, -1.0]).repeat(width // 2) / width**0.5
    made["model.text_model.embeddings.token_embedding.weight"][49406] += 10 * direction
    made["model.text_projection.weight"] += 4 * direction
    return made


def clip_tokenizer_files(folder: Path, merges: Sequence[str]) -> Path:
    """vocab.json and merges.txt in OpenAI's order of ids; where merges are missing, so are ids, and the two special tokens keep theirs."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: i for i, word in enumerate(words)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


def _weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name == "logit_scale":
        return np.array(4.6052, dtype=np.float32)
    values = _normal(name, shape, seed)
    if ("norm" in name.lower() or "ln_" in name) and name.endswith("weight"):
        return 1 + 0.1 * values
    if name.endswith("bias"):
        return 0.05 * values
    if "embeddings" in name or name.endswith(("cls_token", "pos_embed")):
        return 0.5 * values
    peaked = any(part in name for part in (".query.", ".key.", ".qkv."))  # peaked attention, so that the text matters
    return values * np.float32((2.5 if peaked else 1.0) / np.sqrt(np.prod(shape[1:])))


def _normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).standard_normal(shape).astype(np.float32)


def image(kind: str, width: int, height: int, seed: int) -> Image.Image:
    if kind == "noise":
        planes = list(np.random.RandomState(seed).randint(0, 256, size=(3, height, width)))
    else:
        y, x = np.mgrid[:height, :width].astype(np.int64)
        if kind == "gradient":
            planes = [x * 255 // max(width - 1, 1) + seed * 31, y * 255 // max(height - 1, 1) + seed * 17, (x + y) * 3 + seed * 7]
        elif kind == "checker":
            cell = 5 + seed % 11
            on = (x // cell + y // cell) % 2 * 200
            planes = [on + 20, 235 - on, on // 2 + seed * 13]
        else:
            squared = (x - width // 2) ** 2 + (y - height // 2) ** 2
            planes = [squared // (7 + seed), squared // (11 + seed), squared // (13 + seed)]
    return Image.fromarray(np.stack([plane % 256 for plane in planes], axis=-1).astype(np.uint8))


def images() -> list[Image.Image]:
    return [image(*arguments) for arguments in IMAGES]


def save_module(path: Path, tensors: dict[str, Tensor], module_name: str, class_name: str) -> None:
    """As ``torch.save`` of a whole module of these tensors, whose class is in a package that only this function has."""
    package = ModuleType(module_name)
    kinds = {name: type(name, (nn.Module,), {"__module__": module_name}) for name in (class_name, "Part")}
    package.__dict__.update(kinds)
    root = kinds[class_name]()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, kinds["Part"]())
            module = module._modules[parent]
        if name.endswith(("inv_freq", "fn.norm.bias")):
            module.register_buffer(leaf, tensor)
        else:
            module.register_parameter(leaf, nn.Parameter(tensor))
    root.register_buffer("table", torch.zeros(3), persistent=False)
    root.settings = Path("somewhere")
    with pytest.MonkeyPatch.context() as patch:
        parents = module_name.split(".")
        for place in range(1, len(parents)):
            patch.setitem(sys.modules, ".".join(parents[:place]), ModuleType(parents[place - 1]))
        patch.setitem(sys.modules, module_name, package)
        torch.save(root, path)


class RunsCode:
    """Makes a folder when it is unpickled, as a proof that code was run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)
