"""Plain records that pass between the parts. They hold data, depend on no model and load no heavy library."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args, overload

LONGEST_PROMPT = 200_000
"""Characters. A text beyond this is not a prompt but a file read by mistake, and splitting it into tokens takes minutes."""

Convention = Literal["openai", "transformers"]
"""Whose program's handling of prompts and images a CLIP score repeats; they differ in details that move scores."""


LongPrompts = Literal["truncate", "error"]
"""What becomes of a prompt that is longer than the model reads."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""By which CLIP, BLIP and ImageReward normalise red, green and blue in [0, 1]."""


def check_convention(convention: str) -> None:
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be one of {get_args(Convention)}, not {convention!r}")


@dataclass(frozen=True)
class ImageOptions:
    """How strictly images are opened."""

    orient: bool = False
    """Apply the EXIF orientation. The original ignores it, and so do published scores."""
    allow_truncated: bool = False
    """Accept a file whose end is missing; the missing part is grey or black. Pillow can do this for PNG, JPEG, GIF, BMP, TIFF, PPM, TGA
    and JPEG 2000, and not for WebP and AVIF, which need the whole file."""
    max_pixels: int | None = 178_956_970
    """Refuse images with more pixels (a decompression bomb fills the memory); None accepts any size."""
    min_side: int = 2
    """Refuse images with a shorter side, such as 1 x 1 tracking pixels: they show nothing to judge."""

    def __post_init__(self) -> None:
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, not {self.max_pixels}")
        if self.min_side < 0:
            raise ValueError(f"min_side must be at least 0, not {self.min_side}")


@dataclass(frozen=True)
class RankedImage:
    """One image of a ``Ranking``."""

    rank: int
    """1 for the best."""
    reward: float
    image: Any
    """The image as it was passed: a path, a PIL image, …"""
    index: int
    """Its place among the images passed, from 0."""


@dataclass(frozen=True)
class Ranking(Sequence[RankedImage]):
    """Images of one prompt in the order a scorer prefers them.

    The lists are in the order of the images passed; as a sequence it goes from best to worst.

    >>> ranking = Ranking.from_rewards([0.1, 1.5, -2.0], ["a.png", "b.png", "c.png"])
    >>> ranking
    Ranking(ranking=[2, 1, 3], rewards=[0.1, 1.5, -2.0])
    >>> ranking[0]
    RankedImage(rank=1, reward=1.5, image='b.png', index=1)
    >>> [best.image for best in ranking.top_k(2)], ranking.paths
    (['b.png', 'a.png'], ['b.png', 'a.png', 'c.png'])
    """

    ranking: list[int]
    """The rank of each image: a permutation of 1..n, 1 for the best. Equal rewards are ranked in the order of the images."""
    rewards: list[float]
    """The reward of each image."""
    images: list[Any] = field(default_factory=list, repr=False, compare=False)
    """The images as they were passed; empty if they are not known."""

    @classmethod
    def from_rewards(cls, rewards: Sequence[float], images: Sequence[Any] = ()) -> Ranking:
        """Raises ``ValueError`` for NaN, and for images that are not one for each reward."""
        if any(math.isnan(reward) for reward in rewards):
            raise ValueError(f"rewards that are not numbers have no order: {rewards}")
        if images and len(images) != len(rewards):
            raise ValueError(f"{len(images)} images and {len(rewards)} rewards: there must be one reward for each image")
        order = sorted(range(len(rewards)), key=lambda i: -rewards[i])  # stable: equal rewards keep their order
        ranking = [0] * len(rewards)
        for rank, index in enumerate(order, start=1):
            ranking[index] = rank
        return cls(ranking=ranking, rewards=list(rewards), images=list(images))

    @property
    def order(self) -> list[int]:
        """Indices of the images from best to worst.

        >>> Ranking.from_rewards([0.1, 1.5, -2.0]).order
        [1, 0, 2]
        """
        return sorted(range(len(self.ranking)), key=self.ranking.__getitem__)

    @property
    def paths(self) -> list[str | None]:
        """The paths of the images from best to worst; None for an image that was not passed as a path."""
        return [os.fspath(item.image) if isinstance(item.image, str | os.PathLike) else None for item in self]

    def top_k(self, k: int) -> list[RankedImage]:
        """The k best, or all if there are fewer. Raises ``ValueError`` for k below 1."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        return self[:k]

    def as_dict(self) -> dict[str, Any]:
        """Ranks and rewards for JSON, without the images."""
        return {"ranking": self.ranking, "rewards": self.rewards}

    def __len__(self) -> int:
        return len(self.ranking)

    @overload
    def __getitem__(self, place: int) -> RankedImage: ...
    @overload
    def __getitem__(self, place: slice) -> list[RankedImage]: ...

    def __getitem__(self, place: int | slice) -> RankedImage | list[RankedImage]:
        """The image at a place of the order, 0 for the best; a slice gives a list."""
        indices = self.order[place]
        return [self._ranked(i) for i in indices] if isinstance(indices, list) else self._ranked(indices)

    def __iter__(self) -> Iterator[RankedImage]:
        return iter(self[:])

    def _ranked(self, index: int) -> RankedImage:
        return RankedImage(self.ranking[index], self.rewards[index], self.images[index] if self.images else None, index)

    def _repr_html_(self) -> str:
        """For notebooks: the images with their rewards, best first."""
        return _displays().ranking_html(self)


def _displays() -> Any:
    return import_module("image_reward.displays")  # it opens images, of which records know nothing, and is above this module


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
    ratings: tuple[float, ...] = ()
    """The ratings that the ranks come from, higher is better, on one scale for all prompts."""
    both_bad: bool = False
    """The annotators found neither of two tied images good."""


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
    images: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """The two images as they were passed; empty if they are not known."""
    spreads: tuple[float, float] | None = None
    """The standard deviations of the two rewards, from a model that gives them."""

    def as_dict(self) -> dict[str, Any]:
        """Probabilities and rewards for JSON, without the images."""
        known = {"a_better": self.a_better, "tie": self.tie, "b_better": self.b_better, "rewards": self.rewards}
        return known | ({"spreads": self.spreads} if self.spreads else {})

    def _repr_html_(self) -> str:
        """For notebooks: the two images with the probabilities of each outcome."""
        return _displays().preference_html(self)
