"""How each kind of scorer is built from its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from image_reward.checkpoints import CONFIG_NAME, WEIGHTS_NAME, blip_pretraining_weights, read_checkpoint
from image_reward.config import ScorerConfig
from image_reward.errors import CheckpointError
from image_reward.files import read_json
from image_reward.scorers.blip import BlipMatchingScorer, BlipScorer
from image_reward.scorers.clip import (
    HEAD_NAME,
    PREPROCESSOR_NAME,
    TOKENIZER_NAME,
    AestheticScorer,
    ClipScorer,
    ClipSettings,
    clip_from_folder,
    clip_from_state_dict,
)
from image_reward.scorers.ensemble import FORMAT as ENSEMBLE_FORMAT
from image_reward.scorers.ensemble import Ensemble
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.spec import Build, LoadOptions


def build_imagereward(paths: tuple[Path, ...], options: LoadOptions, kind: type[ImageRewardScorer] = ImageRewardScorer) -> Any:
    """A checkpoint of the released layout, or a folder or file of this package's own format."""
    tensors, carried = read_checkpoint(paths[0])
    if blip_pretraining_weights(tensors) is not None:
        raise CheckpointError(f"{paths[0]} is one of BLIP's own checkpoints, which have no reward head; load it as BLIP or BLIP-ITM")
    given = options.config
    if given is not None and not isinstance(given, ScorerConfig):
        given = ScorerConfig.from_values(read_json(Path(given)), os.fspath(given))
    known = given or carried or options.registered
    if known is not None and known.architecture != "ImageReward":
        raise CheckpointError(f"{paths[0]} is of architecture {known.architecture!r}, which this release does not know")
    hint = "" if known else ". It carries no config, so it was taken for the released layout; give its config if it is of another size"
    scorer = kind.from_tensors(
        tensors,
        known or ScorerConfig(),
        str(paths[0]),
        hint,
        name=options.name,
        options=options.images,
        long_prompts=options.long_prompts,
    )
    scorer.set_exact(options.exact)
    return scorer


def build_blip(paths: tuple[Path, ...], options: LoadOptions, kind: Any = BlipScorer) -> Any:
    """One of BLIP's own checkpoints, of the large network."""
    _refuse_config(options)
    tensors = options.once(("tensors", paths[0].resolve()), lambda: read_checkpoint(paths[0])[0])
    scorer = kind.from_tensors(tensors, str(paths[0]), name=options.name, options=options.images, long_prompts=options.long_prompts)
    scorer.set_exact(options.exact)
    return scorer


def build_blip_matching(paths: tuple[Path, ...], options: LoadOptions) -> Any:
    return build_blip(paths, options, BlipMatchingScorer)


def build_ensemble(paths: tuple[Path, ...], options: LoadOptions) -> Ensemble:
    """An ensemble's JSON file. Its members are loaded with the same options and share what they have in common."""
    if options.config is not None:
        raise ValueError("a config is for ImageReward checkpoints; give the members of an ensemble as folders, which carry theirs")
    file = paths[0] / CONFIG_NAME if paths[0].is_dir() else paths[0]
    if options.load_member is None:  # a member, which could be the ensemble that it is a member of, again and again
        raise CheckpointError(f"the member {paths[0]} is an ensemble itself; give its members in its place")
    return Ensemble.from_json(file, options.load_member, options.name)


def build_clip(paths: tuple[Path, ...], options: LoadOptions) -> Any:
    """A folder of transformers' format that holds a CLIP, as this package wrote it or as any program did."""
    return _clip(paths[0], paths[0], options, None)


def build_openai_clip(paths: tuple[Path, ...], options: LoadOptions) -> ClipScorer:
    """OpenAI's CLIP in transformers' format, prompts and images handled as by OpenAI's program."""
    return _clip(_together(paths), _together(paths), options, ClipSettings(convention="openai"))


def build_aesthetic(paths: tuple[Path, ...], options: LoadOptions) -> AestheticScorer:
    """A head, and the files of the CLIP that it is on."""
    head, *clip = paths
    _refuse_config(options)
    base = build_openai_clip(tuple(clip), replace(options, name="CLIP"))  # the one that CLIP is, if both are loaded
    return AestheticScorer.on(base, read_checkpoint(head)[0], str(head), options.name)


def build_pickscore(paths: tuple[Path, ...], options: LoadOptions) -> ClipScorer:
    """A CLIP's config and weights, and the preprocessor and tokenizer of the CLIP that it was tuned from."""
    return _clip(_together(paths[:2]), _together(paths[2:]), options, ClipSettings(scaled=True))


def build_hpsv2(paths: tuple[Path, ...], options: LoadOptions) -> ClipScorer:
    """A file of OpenCLIP's names, and a tokenizer.json."""
    _refuse_config(options)
    settings = ClipSettings(convention="openai", fit="pad")
    return clip_from_state_dict(
        read_checkpoint(paths[0])[0],
        paths[1].parent,
        settings,
        str(paths[0]),
        activation="gelu",
        name=options.name,
        options=options.images,
        long_prompts=options.long_prompts,
    )


def _clip(folder: Path, processor: Path, options: LoadOptions, settings: ClipSettings | None) -> Any:
    _refuse_config(options)
    return options.once(
        ("CLIP", folder.resolve(), settings),
        lambda: clip_from_folder(
            folder, settings, processor=processor, name=options.name, options=options.images, long_prompts=options.long_prompts
        ),
    )


def _together(paths: Sequence[Path]) -> Path:
    """The one folder of some files."""
    folder = paths[0].parent
    for path in paths:
        if path.parent != folder:
            raise CheckpointError(f"{path} and {paths[0]} are of one model, but not in one folder; move them, or delete both")
    return folder


def _refuse_config(options: LoadOptions) -> None:
    if options.config is not None:
        raise ValueError(f"a config is for ImageReward checkpoints; {options.name} has its own sizes")


class Kind(NamedTuple):
    """A kind of model folder."""

    files: tuple[tuple[str, ...], ...]
    """What is fetched of a hub repository besides config.json: of each group the first that is there, if any."""
    build: Build


KINDS: dict[str, Kind] = {
    "image-reward": Kind(((WEIGHTS_NAME,),), build_imagereward),
    "clip": Kind(
        (
            (WEIGHTS_NAME, "pytorch_model.bin"),
            (PREPROCESSOR_NAME,),
            (TOKENIZER_NAME, "vocab.json"),
            ("merges.txt",),
            (HEAD_NAME,),
        ),
        build_clip,
    ),
    ENSEMBLE_FORMAT: Kind((), build_ensemble),
}
"""What the config.json of a folder or a hub repository says it is, as ``format`` or ``model_type``."""
