"""Plain records that pass between the parts. They hold data, depend on no model and load no heavy library."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

LONGEST_PROMPT = 200_000
"""Characters. A text beyond this is not a prompt but a file read by mistake, and splitting it into tokens takes minutes."""

Convention = Literal["openai", "transformers"]
"""Whose program's handling of prompts and images a CLIP score repeats; they differ in details that move scores."""


def check_convention(convention: str) -> None:
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be one of {get_args(Convention)}, not {convention!r}")


@dataclass(frozen=True)
class Ranking:
    """Images of one prompt in the order a scorer prefers them; both lists are in the order of the images passed.

    >>> Ranking.from_rewards([0.1, 1.5, -2.0])
    Ranking(ranking=[2, 1, 3], rewards=[0.1, 1.5, -2.0])
    """

    ranking: list[int]
    """The rank of each image: a permutation of 1..n, 1 for the best. Equal rewards are ranked in the order of the images."""
    rewards: list[float]
    """The reward of each image."""

    @classmethod
    def from_rewards(cls, rewards: list[float]) -> Ranking:
        if any(math.isnan(reward) for reward in rewards):
            raise ValueError(f"rewards that are not numbers have no order: {rewards}")
        order = sorted(range(len(rewards)), key=lambda i: -rewards[i])  # stable: equal rewards keep their order
        ranking = [0] * len(rewards)
        for rank, index in enumerate(order, start=1):
            ranking[index] = rank
        return cls(ranking=ranking, rewards=list(rewards))

    @property
    def order(self) -> list[int]:
        """Indices of the images from best to worst.

        >>> Ranking.from_rewards([0.1, 1.5, -2.0]).order
        [1, 0, 2]
        """
        return sorted(range(len(self.ranking)), key=self.ranking.__getitem__)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """A human ranking of images made for one prompt."""

    prompt: str
    images: tuple[Any, ...]
    """Two or more images: anything ``open_image`` takes, or a function of no arguments that returns it (opened when needed)."""
    ranks: tuple[int, ...]
    """The rank of each image, 1 for the best; equal ranks are ties."""
    id: str = ""
    source: str = ""
    """The data set it comes from."""
    shares: tuple[float, ...] | None = None
    """For data with soft labels: each image's share of the votes; they sum to one."""
    category: str = ""
    """The kind of prompt, in data sets that have categories."""
    annotations: tuple[tuple[int, ...], ...] = ()
    """The ranks that each annotator gave the images, where the data set has them one by one and ``ranks`` is their aggregate."""


@dataclass(frozen=True)
class Preference:
    """How likely human annotators are to prefer one of two images for a prompt. The three probabilities sum to one."""

    a_better: float
    """Probability in [0, 1] that annotators prefer the first image."""
    tie: float
    """Probability in [0, 1] that annotators see no difference; 0 when the model carries no fitted tie parameter."""
    b_better: float
    """Probability in [0, 1] that annotators prefer the second image."""
    rewards: tuple[float, float]
    """The rewards of the two images."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
