"""Published reward distributions: what a reward means among images that people's models really made."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_reward.scorers.base import Scorer


@dataclass(frozen=True)
class Distribution:
    """The rewards of a published set of images, as 101 quantiles (0 %, 1 %, …, 100 %)."""

    origin: str
    num_images: int
    quantiles: tuple[float, ...]

    def percentile(self, reward: float) -> float:
        """The share of the published images, in percent, whose reward is below this one; linear between quantiles.

        >>> Distribution("", 3, (0.0, 1.0, 3.0)).percentile(2.0)
        75.0
        """
        steps = len(self.quantiles) - 1
        i = bisect_left(self.quantiles, reward)
        if i == 0:
            return 0.0
        if i > steps:
            return 100.0
        low, high = self.quantiles[i - 1], self.quantiles[i]
        return 100 * (i - 1 + (reward - low) / (high - low)) / steps

    def in_words(self, reward: float) -> str:
        """Where the reward falls, in plain words.

        >>> Distribution("", 3, (0.0, 1.0, 3.0)).in_words(2.0)
        'better than 75 %'
        """
        if reward < self.quantiles[0]:
            return "better than none"
        if reward > self.quantiles[-1]:
            return "better than all"
        return f"better than {self.percentile(reward):.0f} %"


@cache
def published_distribution(name: str | None) -> Distribution | None:
    """The distribution published for a model, or None where there is none."""
    known = json.loads(files("image_reward").joinpath("assets/reference_rewards.json").read_text(encoding="utf-8"))
    if name not in known:
        return None
    return Distribution(known[name]["origin"], known[name]["num_images"], tuple(known[name]["quantiles"]))


@dataclass(frozen=True)
class RewardRow:
    """One image with its reward, and where that falls among the published images."""

    image: str
    reward: float
    rank: int | None
    distribution: Distribution | None

    @classmethod
    def of(cls, scorer: Scorer[Any], image: str, reward: float, rank: int | None = None) -> RewardRow:
        return cls(image, reward, rank, published_distribution(scorer.reference))

    def as_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {} if self.rank is None else {"rank": self.rank}
        row |= {"image": self.image, "reward": self.reward}
        return row | ({"percentile": round(self.distribution.percentile(self.reward), 2)} if self.distribution else {})
