"""What a checkpoint says of itself: everything besides the weights that a score depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from image_reward.errors import CheckpointError
from image_reward.files import parse_json
from image_reward.images import ImageTransform
from image_reward.models.blip import BlipConfig
from image_reward.prompts import check_vocabulary

Config = TypeVar("Config")

LARGEST_SCALE = 1e6


def check_scale(whose: str, mean: float, std: float) -> None:
    """Whether (x - mean) / std can be computed in float32 and leaves something of x. Raises ``CheckpointError``."""
    if not (abs(mean) <= LARGEST_SCALE and 1 / LARGEST_SCALE <= std <= LARGEST_SCALE):
        raise CheckpointError(
            f"{whose} mean and std must be finite and std positive, not {mean} and {std} (and mean at most {LARGEST_SCALE:g} in size, "
            f"std from {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g})"
        )


@dataclass(frozen=True)
class TieConfig:
    """How a fitted tie parameter turns two rewards into three probabilities (see ``Scorer.compare``)."""

    model: str
    """``davidson`` (Davidson 1970) or ``rao-kupper`` (Rao & Kupper 1967)."""
    parameter: float
    """nu >= 0 for Davidson, theta >= 1 for Rao-Kupper."""

    def __post_init__(self) -> None:
        lowest = {"davidson": 0.0, "rao-kupper": 1.0}.get(self.model)
        if lowest is None:
            raise CheckpointError(f"unknown tie model {self.model!r}; known are 'davidson' and 'rao-kupper'")
        if not lowest <= self.parameter <= LARGEST_SCALE:
            raise CheckpointError(
                f"the tie parameter of {self.model} must be at least {lowest} and at most {LARGEST_SCALE:g}, not {self.parameter}"
            )


@dataclass(frozen=True)
class RewardConfig:
    """The scale of the rewards: (head - mean) / std. The defaults are ImageReward-v1.0's."""

    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072
    tie: TieConfig | None = None
    reference: str | None = "ImageReward-v1.0"
    """The published reward distribution that this scale may be compared with; None if there is none."""

    def __post_init__(self) -> None:
        check_scale("the reward's", self.mean, self.std)


@dataclass(frozen=True)
class TransformConfig:
    """What becomes of an image before the network sees it."""

    size: int = 224
    mean: tuple[float, float, float] = ImageTransform.mean
    std: tuple[float, float, float] = ImageTransform.std

    def __post_init__(self) -> None:
        for mean, std in zip(self.mean, self.std, strict=True):
            check_scale("the pixels'", mean, std)


@dataclass(frozen=True)
class ScorerConfig:
    """Everything besides the weights that a score depends on. The defaults are ImageReward-v1.0's."""

    architecture: str = "ImageReward"
    network: BlipConfig = field(default_factory=BlipConfig)
    image: TransformConfig = field(default_factory=TransformConfig)
    max_tokens: int = 35
    vocabulary: tuple[str, ...] | None = None
    """The tokens that the model knows, in the order of its embeddings; None for BERT's and BLIP's 30,524."""
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        if self.image.size != self.network.image_size:
            raise CheckpointError(f"images are made {self.image.size} px large, but the network reads {self.network.image_size} px")
        num_tokens = BlipConfig.vocab_size if self.vocabulary is None else len(self.vocabulary)
        if num_tokens != self.network.vocab_size:
            whose = "BLIP's vocabulary, which null stands for," if self.vocabulary is None else "the vocabulary"
            raise CheckpointError(f"{whose} has {num_tokens} tokens and the network {self.network.vocab_size} embeddings")
        if self.vocabulary is not None:
            check_vocabulary(self.vocabulary)
        if not 3 <= self.max_tokens <= self.network.max_positions:
            raise CheckpointError(f"max_tokens must be from 3 to the network's {self.network.max_positions}, not {self.max_tokens}")

    def to_json(self) -> str:
        return json.dumps({"format": "image-reward", "version": 1} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ScorerConfig:
        return cls.from_values(parse_json(text, source), source)

    @classmethod
    def from_values(cls, values: object, source: str) -> ScorerConfig:
        """From what a JSON file holds. Raises ``CheckpointError``."""
        if not isinstance(values, dict) or values.get("format") != "image-reward":
            raise CheckpointError(f'{source} is not a config of this package ("format": "image-reward" is missing)')
        check_version(values.get("version"), f"{source} has format")
        return fill(cls, {key: value for key, value in values.items() if key not in ("format", "version")}, source)


def check_version(version: object, what: str) -> None:
    """Raises ``CheckpointError`` unless it is the number 1."""
    if type(version) is not int or version != 1:
        raise CheckpointError(f"{what} version {version!r:.60}; this release of image-reward reads version 1")


def fill(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """A dataclass from plain values, strictly: an unknown or missing key, or a value of another type, is an error that names it.

    Every whole number of a config is a size or a count: from 1 to 2^31 - 1.
    """
    types = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise CheckpointError(f"{source}: unknown key {unknown[0]!r:.60} for {cls.__name__}; known are {', '.join(known)}")
    if missing := [name for name in known if name not in values]:
        raise CheckpointError(f"{source}: {cls.__name__} lacks {missing[0]!r}")
    checked = {name: _checked(types[name], values[name], f"{source}: {name} of {cls.__name__}", source) for name in known}
    try:
        return cls(**checked)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _checked(kind: Any, value: Any, name: str, source: str) -> Any:
    """A value of the annotated type ``kind``: a dataclass, a tuple, ``X | None``, or a plain type."""
    kinds = get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return fill(cast(type, kind), value, source)
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        if len(kinds) == len(value):
            return tuple(_checked(k, v, name, source) for k, v in zip(kinds, value, strict=True))
    elif get_origin(kind) is Literal:
        if value in kinds:
            return value
        raise CheckpointError(f"{name} must be one of {', '.join(map(repr, kinds))}, not {value!r:.60}")
    elif type(None) in kinds:
        return None if value is None else _checked(kinds[0], value, name, source)
    elif type(value) is kind or (kind is float and type(value) is int):
        if kind is not int or 1 <= value < 1 << 31:
            return kind(value)
        raise CheckpointError(f"{name} must be {'at least 1' if value < 1 else 'less than 2^31'}, not {value!r:.60}")
    shown = "an object" if is_dataclass(kind) else f"a list of {len(kinds)} numbers" if kinds and ... not in kinds else ""
    many = "objects" if kinds and is_dataclass(kinds[0]) else "whole numbers"
    shown = shown or (f"a list of {many}" if kinds else f"of type {kind.__name__}")
    raise CheckpointError(f"{name} must be {shown}, not {value!r:.60}")
