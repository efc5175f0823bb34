"""How each kind of scorer is built from its files.

The table of names refers to these functions, and must not load PyTorch: each imports what it builds with when it is called.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_reward.addresses import Address
from image_reward.config import CONFIG_NAME, MPS_NAME, RewardConfig, ScorerConfig
from image_reward.errors import CheckpointError, InputError
from image_reward.files import read_json
from image_reward.scorers.spec import LoadOptions, Paths

if TYPE_CHECKING:
    from image_reward.scorers.aesthetic25 import Aesthetic25Scorer
    from image_reward.scorers.clip import AestheticScorer, ClipFiles, ClipScorer, ClipSettings
    from image_reward.scorers.ensemble import Ensemble
    from image_reward.scorers.hpsv3 import HPSv3Scorer
    from image_reward.scorers.imagereward import ImageRewardScorer
    from image_reward.scorers.mps import MPSScorer
    from image_reward.scorers.unified_reward import UnifiedReward
    from image_reward.scorers.vqascore import AnswerScorer


def checkpoint_of(paths: Paths) -> Path:
    """What ``read_checkpoint`` reads of a model: its folder, or its file of weights. Raises ``CheckpointError`` where it has neither."""
    path = paths.get("folder") or paths.get("weights")
    if path is None:
        raise CheckpointError(f"{', '.join(map(str, paths.values()))}: this is not a model folder, and not a file of weights")
    return path


def build_imagereward(paths: Paths, options: LoadOptions, kind: type[ImageRewardScorer] | None = None) -> Any:
    """A checkpoint of the released layout, or a folder or file of this package's own format; ``kind`` is a subclass to build."""
    from image_reward.checkpoints import blip_pretraining_weights, read_checkpoint
    from image_reward.scorers.imagereward import ImageRewardScorer

    path = checkpoint_of(paths)
    tensors, carried = read_checkpoint(path)
    if blip_pretraining_weights(tensors) is not None:
        raise CheckpointError(f"{path} is one of BLIP's own checkpoints, which have no reward head; load it as BLIP or BLIP-ITM")
    config = options.config
    if config is not None and not isinstance(config, ScorerConfig):
        config = ScorerConfig.from_values(read_json(Address.parse(config).local), os.fspath(config))
    known = config or carried or options.registered
    if known is not None and known.architecture != "ImageReward":
        raise CheckpointError(f"{path} is of architecture {known.architecture!r}, which this release does not know")
    hint = "" if known else ". It carries no config, so it was taken for the released layout; give its config if it is of another size"
    scorer = (kind or ImageRewardScorer).from_tensors(
        tensors,
        known or ScorerConfig(reward=RewardConfig(reference=None)),  # other weights have another scale
        str(path),
        hint,
        name=options.name,
        options=options.images,
        long_prompts=options.long_prompts,
    )
    scorer.set_exact(options.exact)
    return scorer


def build_blip(paths: Paths, options: LoadOptions) -> Any:
    """The cosine of one of BLIP's own checkpoints, of the large network."""
    from image_reward.scorers.blip import BlipScorer

    return _blip(BlipScorer, paths, options)


def build_blip_matching(paths: Paths, options: LoadOptions) -> Any:
    """The matching head of one of BLIP's own checkpoints, of the large network."""
    from image_reward.scorers.blip import BlipMatchingScorer

    return _blip(BlipMatchingScorer, paths, options)


def _blip(kind: Any, paths: Paths, options: LoadOptions) -> Any:
    from image_reward.checkpoints import read_checkpoint

    _refuse_config(options)
    weights = paths["weights"]
    tensors = options.once(("tensors", os.path.realpath(weights)), lambda: read_checkpoint(weights)[0])
    scorer = kind.from_tensors(tensors, str(weights), name=options.name, options=options.images, long_prompts=options.long_prompts)
    scorer.set_exact(options.exact)
    return scorer


def build_onnx(paths: Paths, options: LoadOptions) -> Any:
    """What ``image-reward export`` wrote."""
    from image_reward.scorers.onnx import OnnxScorer

    path = paths["onnx"]
    if options.config is not None:
        raise InputError(f"a config is for checkpoints that carry none, and {path} carries its own; leave it out")
    if options.exact:
        raise InputError(f"exact is an order of operations of PyTorch's, which {path} does not have; load the model it was exported from")
    return OnnxScorer(path, options.name, options.images, options.long_prompts)


def build_ensemble(paths: Paths, options: LoadOptions) -> Ensemble:
    """An ensemble's JSON file. Its members are loaded with the same options and share what they have in common."""
    from image_reward.scorers.ensemble import Ensemble

    if options.config is not None:
        raise InputError("a config is for ImageReward checkpoints; give the members of an ensemble as folders, which carry theirs")
    file = paths.get("config") or paths["folder"] / CONFIG_NAME
    if options.load_member is None:  # a member, which could be the ensemble that it is a member of, again and again
        raise CheckpointError(f"the member {paths.get('folder', file)} is an ensemble itself; give its members in its place")
    return Ensemble.from_json(file, options.load_member, options.name)


def build_clip(paths: Paths, options: LoadOptions) -> Any:
    """A folder of transformers' format that holds a CLIP, as this package wrote it or as any program did."""
    from image_reward.scorers.clip import ClipFiles

    if (paths["folder"] / MPS_NAME).is_file():
        return build_mps(paths, options)
    return _clip(ClipFiles.in_folder(paths["folder"]), options)


def build_openai_clip(paths: Paths, options: LoadOptions) -> ClipScorer:
    """OpenAI's CLIP in transformers' format, prompts and images handled as by OpenAI's program."""
    from image_reward.scorers.clip import ClipFiles, ClipSettings

    return _clip(ClipFiles(**paths), options, ClipSettings(convention="openai"))


def build_aesthetic(paths: Paths, options: LoadOptions) -> AestheticScorer:
    """A head, and the files of the CLIP that it is on."""
    from image_reward.checkpoints import read_checkpoint
    from image_reward.scorers.clip import AestheticScorer

    _refuse_config(options)
    clip = {name: path for name, path in paths.items() if name != "head"}
    base = build_openai_clip(clip, replace(options, name="CLIP"))  # the one that CLIP is, if both are loaded
    return AestheticScorer.on(base, read_checkpoint(paths["head"])[0], str(paths["head"]), options.name)


def build_aesthetic25(paths: Paths, options: LoadOptions) -> Aesthetic25Scorer:
    """The head of Aesthetic Predictor V2.5 and the files of the SigLIP that it is on; or a folder that holds them."""
    from image_reward.scorers.aesthetic25 import Aesthetic25Files, aesthetic25_from_files

    _refuse_config(options)
    own = Aesthetic25Files.in_folder(paths["folder"]) if "folder" in paths else Aesthetic25Files(**paths)
    return aesthetic25_from_files(own, name=options.name, options=options.images)


def build_pickscore(paths: Paths, options: LoadOptions) -> ClipScorer:
    """A CLIP's config and weights, and the preprocessor and tokenizer of the CLIP that it was tuned from."""
    from image_reward.scorers.clip import ClipFiles, ClipSettings

    return _clip(ClipFiles(**paths), options, ClipSettings(scaled=True))


def build_hpsv2(paths: Paths, options: LoadOptions) -> ClipScorer:
    """A file of OpenCLIP's names, and a tokenizer.json."""
    from image_reward.checkpoints import read_checkpoint
    from image_reward.scorers.clip import ClipSettings, clip_from_state_dict

    _refuse_config(options)
    settings = ClipSettings(convention="openai", fit="pad")
    return clip_from_state_dict(
        read_checkpoint(paths["weights"])[0],
        paths["tokenizer"].parent,
        settings,
        str(paths["weights"]),
        activation="gelu",
        name=options.name,
        options=options.images,
        long_prompts=options.long_prompts,
    )


def build_mps(paths: Paths, options: LoadOptions) -> MPSScorer:
    """The weights of MPS, and the config, preprocessor and tokenizer of the CLIP that it was tuned from; or a folder that holds them."""
    from image_reward.scorers.mps import MPSFiles, mps_from_files

    _refuse_config(options)
    own = MPSFiles.in_folder(paths["folder"]) if "folder" in paths else MPSFiles(**paths)
    return mps_from_files(own, name=options.name, options=options.images, long_prompts=options.long_prompts)


def build_hpsv3(paths: Paths, options: LoadOptions) -> HPSv3Scorer:
    """The weights of HPSv3, and the config and tokenizer of the Qwen2-VL that it was trained from; or a folder that holds the three."""
    from image_reward.scorers.hpsv3 import HPSv3Files, hpsv3_from_files

    _refuse_config(options)
    own = HPSv3Files.in_folder(paths["folder"]) if "folder" in paths else HPSv3Files(**paths)
    return hpsv3_from_files(own, name=options.name, options=options.images, dtype=options.dtype, devices=options.devices)


def build_vqascore(paths: Paths, options: LoadOptions) -> AnswerScorer:
    """A folder of transformers' format that holds a Qwen2.5-VL, a Qwen3-VL or a CLIP-FlanT5; or the files of one, by name."""
    from image_reward.scorers.qwen_chat import ChatFiles
    from image_reward.scorers.vqascore import vqascore_from_files

    _refuse_config(options)
    files = ChatFiles.of(paths)
    return vqascore_from_files(files, name=options.name, options=options.images, dtype=options.dtype, devices=options.devices)


def build_unified_reward(paths: Paths, options: LoadOptions) -> UnifiedReward:
    """A folder of transformers' format that holds a UnifiedReward 2.0; or the files of one, by name."""
    from image_reward.scorers.qwen_chat import ChatFiles
    from image_reward.scorers.unified_reward import unified_reward_from_files

    _refuse_config(options)
    files = ChatFiles.of(paths)
    return unified_reward_from_files(files, name=options.name, options=options.images, dtype=options.dtype, devices=options.devices)


def _clip(files: ClipFiles, options: LoadOptions, settings: ClipSettings | None = None) -> Any:
    from image_reward.scorers.clip import clip_from_files

    _refuse_config(options)
    return options.once(
        ("CLIP", *(os.path.realpath(file) for file in files if file), settings),
        lambda: clip_from_files(files, settings, name=options.name, options=options.images, long_prompts=options.long_prompts),
    )


def _refuse_config(options: LoadOptions) -> None:
    if options.config is not None:
        raise InputError(f"a config is for ImageReward checkpoints; {options.name} has its own sizes")
