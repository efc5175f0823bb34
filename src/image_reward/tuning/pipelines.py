"""Text-to-image pipelines of diffusers, loaded by name: a folder, a hub id, or the generator in the package."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from image_reward.addresses import Address
from image_reward.errors import InputError

PipelineDtype = Literal["float32", "bfloat16", "float16"]

SHAPES_GENERATOR = "shapes-generator"
PACKAGED = {SHAPES_GENERATOR: Path(__file__).parents[1] / "assets" / SHAPES_GENERATOR}
"""Pipelines in the package, by name."""


def check_pipeline(name: str | os.PathLike[str]) -> None:
    """Raise ``InputError`` for what cannot be a pipeline, ``FileNotFoundError`` where nothing has the name; nothing is loaded."""
    if find_spec("diffusers") is None:
        raise InputError("generating images needs diffusers: pip install 'image-reward[tune]', with Python 3.11 or later")
    name = os.fspath(name)
    if name in PACKAGED:
        return
    folder = Address.parse(name)
    if not folder.is_local:
        raise InputError(f"the pipeline {name} is not a folder on this machine or a hub id OWNER/NAME")
    if folder.local.is_dir():
        if not (folder.local / "model_index.json").is_file():
            raise InputError(f"{name} is not a folder of a diffusers pipeline, which has a model_index.json")
    elif folder.local.exists():
        raise InputError(f"{name} is a file; give the folder of a diffusers pipeline, which has a model_index.json")
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, re.ASCII):
        raise FileNotFoundError(f"{name}: no such pipeline; give a folder, a hub id OWNER/NAME, or {' or '.join(PACKAGED)}")


def load_pipeline(name: str | os.PathLike[str], dtype: PipelineDtype = "float32", device: str | None = None, **options: Any) -> Any:
    """A text-to-image pipeline of diffusers.

    Args:
        name: The folder of a pipeline, a hub id OWNER/NAME, or ``shapes-generator``, the small generator in the package
            (docs/tuning.md), which makes images of 64 x 64 px for the prompts of the shapes world.
        dtype: Precision of its weights.
        device: As ``image_reward.load`` chooses it by default.
        options: Of diffusers' ``from_pretrained``, such as ``revision``.

    Raises ``InputError`` for one that cannot be loaded or takes no prompt, ``FileNotFoundError`` where nothing has the name.
    """
    check_pipeline(name)
    import torch

    from image_reward.scorers.loading import choose_device

    name = os.fspath(name)
    place = choose_device(device)
    # It recommends torchvision for each class that diffusers imports. Warnings of weights come from other loggers.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    diffusers = import_diffusers()
    import transformers

    if not sys.stderr.isatty():
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    source = PACKAGED.get(name, name)
    try:
        try:
            pipe = diffusers.AutoPipelineForText2Image.from_pretrained(source, dtype=getattr(torch, dtype), **options)
        except ValueError:  # it knows neither pipelines for videos nor each new one
            pipe = diffusers.DiffusionPipeline.from_pretrained(source, dtype=getattr(torch, dtype), **options)
    except Exception as error:  # diffusers, transformers, the hub and safetensors each have their own for files that are not right
        lines = str(error).strip().splitlines() or [type(error).__name__]
        where = "cannot be loaded" if Path(source).is_dir() else "is not a folder here, and cannot be loaded from the hub"
        raise InputError(f"the pipeline {name} {where}: {lines[0]:.400}") from error
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise InputError(f"{name} is a {type(pipe).__name__}, which takes no prompt; give a text-to-image pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def import_diffusers() -> Any:
    """diffusers, with what its pipelines need, which it imports only when one is named."""
    from image_reward.scorers.precision import without_torchao_notes

    with without_torchao_notes():
        import diffusers

        getattr(diffusers, "DiffusionPipeline")  # noqa: B009
    return diffusers


def call_arguments_of(pipe: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call: the ``settings`` that are not None, and a single frame of a pipeline for videos.

    Raises ``InputError`` for a setting that the pipeline has no argument for.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    arguments: dict[str, Any] = {"num_frames": 1} if "num_frames" in parameters else {}
    for name, value in settings.items():
        if value is not None:
            if name not in parameters:
                raise InputError(f"{type(pipe).__name__} has no {name}; leave it out")
            arguments[name] = value
    return arguments
