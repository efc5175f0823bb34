"""The functions of image-reward 1.5 (``import ImageReward as reward``), so that programs written for it keep running."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from image_reward.errors import CheckpointError, UnknownModelError
from image_reward.models.blip import BlipConfig
from image_reward.scorers.imagereward import ImageReward
from image_reward.scorers.registry import LoadOptions, build_imagereward, choose_device, find


def available_models() -> list[str]:
    """Names of the models that 1.5 knows; ``load`` takes all that ``image_reward.load`` does."""
    return ["ImageReward-v1.0"]


def load(
    name: str = "ImageReward-v1.0",
    device: str | torch.device | None = None,
    download_root: str | os.PathLike[str] | None = None,
    med_config: str | os.PathLike[str] | None = None,
) -> ImageReward:
    """The ImageReward model with the methods of image-reward 1.5.

    ``name`` is a registered name or a path. ``download_root`` is a folder that may hold ``ImageReward.pt`` already; the hub cache is
    searched too. ``med_config``, the JSON of the text tower, need not be given; one that describes another network is an error.
    """
    found = find(name, download_root)
    if found.build is not build_imagereward:
        raise UnknownModelError(f"{name} is no ImageReward model; load_score() or image_reward.load() may know it")
    model: ImageReward = build_imagereward(found.paths, LoadOptions(found.name, registered=found.config), ImageReward)
    if med_config is not None:
        _check_med_config(Path(med_config), model.config.network)
    return model.to(choose_device(device))


def _check_med_config(path: Path, network: BlipConfig) -> None:
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object with the text tower's sizes; med_config need not be given")
    sizes = {
        "hidden_size": network.text_width,
        "num_hidden_layers": network.text_layers,
        "num_attention_heads": network.text_heads,
        "intermediate_size": network.text_hidden,
        "vocab_size": network.vocab_size,
        "max_position_embeddings": network.max_positions,
    }
    for key, size in sizes.items():
        if values.get(key, size) != size:
            raise CheckpointError(f"{path} says {key} = {values[key]}, but the checkpoint's text tower has {size}")
