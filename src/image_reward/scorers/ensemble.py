"""Several scorers as one: the mean of their rewards, each on the scale of a known set of images, and how much they disagree.

A generator tuned with one reward finds images that fool it. Scorers that were made in different ways are seldom fooled by the same image,
so where they disagree the mean deserves less trust (Coste et al. 2024, arXiv 2310.02743, measure this for language models).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from image_reward.config import LARGEST_SCALE, check_scale, check_version
from image_reward.errors import CheckpointError, InputError, UnknownModelError
from image_reward.files import fill, read_json
from image_reward.images import ImageLike
from image_reward.scorers.base import Scorer
from image_reward.scorers.together import CompositeScorer, score_together

Reward = Literal["mean", "conservative"]
FORMAT = "image-reward-ensemble"
_MOST_MEMBERS = 100


@dataclass(frozen=True)
class Reference:
    """The rewards of a known set of images by one scorer, which its rewards are normalised on: (reward - mean) / std."""

    mean: float
    std: float
    num_images: int
    origin: str
    """Which images, and who scored them."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_images < 2**31:
            raise CheckpointError(f"num_images must be from 1 to 2^31, not {self.num_images}")
        if self.std == 0:
            raise CheckpointError("a reference needs a positive std, not 0: do all images tie?")
        check_scale("a reference's", self.mean, self.std)

    @classmethod
    def from_rewards(cls, rewards: Sequence[float], origin: str) -> Reference:
        """From the rewards of many images, made for many prompts, as the scorer will be asked to judge.

        >>> Reference.from_rewards([1.0, 3.0], "two images")
        Reference(mean=2.0, std=1.0, num_images=2, origin='two images')
        """
        if len(rewards) < 2:
            raise ValueError(f"a reference is computed from the rewards of at least two images, not {len(rewards)}")
        return cls(float(np.mean(rewards)), float(np.std(rewards)), len(rewards), origin)


@cache
def published_reference(name: str) -> Reference | None:
    """The reference that this package holds for a scorer, or None: those of the images of the paper's Table 1."""
    known = json.loads(files("image_reward").joinpath("assets/reference_rewards.json").read_text(encoding="utf-8")).get(name)
    return Reference(*(known[key] for key in ("mean", "std", "num_images", "origin"))) if known else None


class Judgement(NamedTuple):
    """What an ensemble makes of each image, on the members' common scale."""

    mean: Tensor
    """The weighted mean of the members' normalised rewards."""
    disagreement: Tensor
    """Their weighted standard deviation: 0 where all members agree."""
    conservative: Tensor
    """mean - penalty * disagreement"""


class Ensemble(CompositeScorer):
    """Named scorers whose normalised rewards are averaged. The reward is in standard deviations of the reference images."""

    def __init__(
        self,
        members: Mapping[str, Scorer[Any]],
        weights: Mapping[str, float] | None = None,
        references: Mapping[str, Reference] | None = None,
        reward: Reward = "mean",
        penalty: float = 1.0,
        name: str = "ensemble",
    ) -> None:
        """
        Args:
            members: scorers on one device, by name. ``load_all`` lets them share files and towers.
            weights: positive, by name; 1 by default.
            references: by name; by default the one that this package has for the scorer.
            reward: what ``score`` and all else return: the mean, or the mean less ``penalty`` times the disagreement.

        Raises ``InputError`` for what makes no sense, and for a member without a reference.
        """
        super().__init__()
        if not members or any(isinstance(member, Ensemble) for member in members.values()):
            raise InputError("an ensemble needs members, and an ensemble cannot be one")
        for unknown in {*(weights or {}), *(references or {})} - set(members):
            raise InputError(f"{unknown!r} is not a member; those are {', '.join(members)}")
        self.reward = reward
        self.penalty = penalty
        self.name = name
        self.member_names = tuple(members)
        self.weights = [(weights or {}).get(member, 1.0) for member in members]
        self.members = nn.ModuleList(members.values())
        self.references = tuple(
            (references or {}).get(name) or published_reference(member.reference or member.name) or _no_reference(name)
            for name, member in members.items()
        )
        self.reads_prompt = any(member.reads_prompt for member in members.values())
        self.whole_images = any(member.whole_images for member in members.values())

    @classmethod
    def from_json(cls, file: Path, load_member: Callable[[str], Scorer[Any]], name: str) -> Ensemble:
        """As described in a JSON file (docs/scorers.md). Members that are paths are relative to it. Raises ``CheckpointError``."""
        config = _EnsembleConfig.read(file)
        models = config.models(file)
        names = [member.model for member in config.members]
        if len(set(names)) < len(names):
            raise CheckpointError(f"{file}: a member is there twice; give it the sum of the weights")
        try:
            return cls(
                dict(zip(names, map(load_member, models), strict=True)),
                {member.model: member.weight for member in config.members},
                {member.model: member.reference for member in config.members if member.reference},
                cast(Reward, config.reward),
                config.penalty,
                name,
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{file}: {error}") from None
        except (CheckpointError, InputError, UnknownModelError) as error:
            raise CheckpointError(f"{file}: {error}") from error

    def combine(self, rewards: Tensor) -> Tensor:
        judgement = self.judgement(rewards)
        return judgement.conservative if self.reward == "conservative" else judgement.mean

    @property
    def config(self) -> dict[str, object]:
        """What its rewards depend on besides its members."""
        return {"weights": self.weights, "references": self.references, "reward": self.reward, "penalty": self.penalty}

    @property
    def reward(self) -> Reward:
        """ "mean" or "conservative": the mean less ``penalty`` times the disagreement."""
        return self._reward

    @reward.setter
    def reward(self, reward: Reward) -> None:
        if reward not in get_args(Reward):
            raise InputError(f"reward must be one of {get_args(Reward)}, not {reward!r}")
        self._reward: Reward = reward

    @property
    def penalty(self) -> float:
        """What a conservative reward loses for each unit of disagreement."""
        return self._penalty

    @penalty.setter
    def penalty(self, penalty: float) -> None:
        if not 0 <= penalty <= LARGEST_SCALE:
            raise InputError(f"penalty must be at least 0 and at most {LARGEST_SCALE:g}, not {penalty}")
        self._penalty = penalty

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the members, in their order; they sum to one."""
        return self._weights

    @weights.setter
    def weights(self, weights: Sequence[float]) -> None:
        values = [float(weight) for weight in weights]
        if len(values) != len(self.member_names) or not all(1 / LARGEST_SCALE <= weight <= LARGEST_SCALE for weight in values):
            limits = f"from {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g}"
            raise InputError(f"weights must be positive, {limits}, one for each of {', '.join(self.member_names)}, not {values}")
        self._weights = tuple(weight / sum(values) for weight in values)

    def judge(self, prompts: str | Sequence[str], images: Sequence[ImageLike]) -> Judgement:
        """Mean, disagreement and conservative reward [N] of the images of one prompt, or of aligned prompts and images."""
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts and {len(images)} images: aligned lists must have the same length")
        rewards = torch.tensor(score_together(self.scorers, prompts, images), dtype=torch.float32, device="cpu")
        return self.judgement(rewards.view(len(self.scorers), len(prompts)))

    def judgement(self, rewards: Tensor) -> Judgement:
        """The members' own rewards [M, N], in their order -> what the ensemble makes of them. Differentiable."""
        scale = [(reference.mean, reference.std) for reference in self.references]
        means, stds = torch.tensor(scale, dtype=torch.float32, device=rewards.device).T[:, :, None]
        weights = torch.tensor(self.weights, dtype=torch.float32, device=rewards.device)[:, None]
        normalised = (rewards - means) / stds
        mean = (weights * normalised).sum(dim=0)
        variance = (weights * (normalised - mean).square()).sum(dim=0)
        # The square root has no gradient at 0, where members agree: there the disagreement is a constant.
        agree = variance == 0
        disagreement = torch.where(agree, torch.zeros_like(variance), torch.where(agree, torch.ones_like(variance), variance).sqrt())
        return Judgement(mean, disagreement, mean - self.penalty * disagreement)


def _no_reference(name: str) -> Reference:
    example = f"references={{{name!r}: ...}}"
    raise InputError(
        f"{name} has no reference to normalise its rewards on. Score many images as you will ask it to judge, make one with "
        f"Reference.from_rewards(rewards, origin), and give it as {example}, or as 'reference' in the ensemble's JSON file"
    )


# --- the file ------------------------------------------------------------------------------------------------------------------------


def models_of(file: Path) -> list[str]:
    """What the members of an ensemble's JSON file are loaded from."""
    return _EnsembleConfig.read(file).models(file)


@dataclass(frozen=True)
class _MemberConfig:
    model: str
    weight: float
    reference: Reference | None


@dataclass(frozen=True)
class _EnsembleConfig:
    members: tuple[_MemberConfig, ...]
    reward: str
    penalty: float

    def models(self, file: Path) -> list[str]:
        """What to load each member from: paths are relative to the file."""
        here = [str(file.parent / member.model) for member in self.members]
        return [path if os.path.exists(path) else member.model for path, member in zip(here, self.members, strict=True)]  # noqa: PTH110

    @classmethod
    def read(cls, file: Path) -> _EnsembleConfig:
        values = read_json(file)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise CheckpointError(f'{file} describes no ensemble ("format": "{FORMAT}" is missing)')
        check_version(values.pop("version", None), f"{file} has format")
        members = values.get("members")
        if isinstance(members, list):
            if len(members) > _MOST_MEMBERS:
                raise CheckpointError(f"{file} has {len(members):,} members; an ensemble has at most {_MOST_MEMBERS}")
            defaults = {"weight": 1.0, "reference": None}
            values["members"] = [defaults | member if isinstance(member, dict) else member for member in members]
        return fill(cls, {"reward": "mean", "penalty": 1.0} | values, str(file))
