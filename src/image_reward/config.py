"""The config of a checkpoint: everything besides the weights that a score depends on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from image_reward.errors import CheckpointError
from image_reward.files import fill, parse_json
from image_reward.models.blip_config import BlipConfig
from image_reward.types import CLIP_MEAN, CLIP_STD

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
PREPROCESSOR_NAME = "preprocessor_config.json"
TOKENIZER_NAME = "tokenizer.json"
HEAD_NAME = "head.safetensors"
"""The files of a model folder; the last three are in CLIP's."""
PICKLE_NAME = "pytorch_model.bin"
GENERATION_NAME = "generation_config.json"
CHAT_NAMES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Of transformers' format; the last are where it looks for a chat template, in this order."""
HPSV3_NAME = "HPSv3.safetensors"
"""What HPSv3 calls its weights."""
MPS_NAME = "MPS_overall_checkpoint.pth"
"""What MPS calls its weights."""
AESTHETIC_25_NAME = "aesthetic_predictor_v2_5.pth"
"""What Aesthetic Predictor V2.5 calls its head."""

LARGEST_SCALE = 1e6


def check_scale(whose: str, mean: float, std: float) -> None:
    """Raises ``CheckpointError`` unless (x - mean) / std can be computed in float32 without losing x."""
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
    """How an image is prepared for the network."""

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

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
            from image_reward.prompts import check_vocabulary  # loads PyTorch and the tokenizers, which released sizes need not

            check_vocabulary(self.vocabulary)
        if not 3 <= self.max_tokens <= self.network.max_positions:
            raise CheckpointError(f"max_tokens must be from 3 to the network's {self.network.max_positions}, not {self.max_tokens}")

    def to_json(self) -> str:
        """The text of a ``config.json``."""
        return json.dumps({"format": "image-reward", "version": 1} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ScorerConfig:
        """From the text of a ``config.json``; ``source`` names it in errors. Raises ``CheckpointError``."""
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
