"""Several scorers over the same rows: each image is opened once, and encoded once by each distinct image tower.

All of it is explicit: processors with equal transforms or tokenizers share what these make, and features are kept in a dictionary by
tower and transform. Rewards are those that the scorers give one by one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from image_reward.errors import RewardError
from image_reward.images import ImageLike, ImageOptions, ImageTransform, open_image, unique_images
from image_reward.prompts import check_prompts, long_prompt_warnings_suppressed
from image_reward.scorers.base import Processor, Scorer, keys_of, prompts_for, score_rows
from image_reward.scorers.outcomes import RefusedRowsError
from image_reward.scorers.two_tower import TwoTowerBatch, TwoTowerProcessor, TwoTowerScorer, distinct, process_together

Prepare = Processor[Any] | Callable[[Sequence[str], Sequence[ImageLike]], Any]


def score_together(
    scorers: Sequence[Scorer[Any]],
    prompts: Sequence[str],
    images: Sequence[ImageLike],
    reasons: dict[int, RewardError] | None = None,
) -> list[list[float]]:
    """The rewards of aligned prompts and images by several scorers: one list for each scorer, in their order.

    With ``reasons``, an image that a scorer gives no reward is NaN, and they get why, by its place. Raises what ``Scorer.score`` raises.
    """
    check_prompts(prompts)
    for scorer in scorers:
        scorer.check_evaluating()
    if not scorers or not prompts:
        return [[] for _ in scorers]
    processors = processors_of(scorers)
    with long_prompts_reported_once(scorers, prompts):
        rewards = score_rows(
            [scorer.name for scorer in scorers],
            prompts,
            images,
            min(scorer.batch_size for scorer in scorers),
            any(scorer.whole_images for scorer in scorers),
            lambda prompts, images: prepare_together(processors, prompts, images),
            lambda batches: rewards_together(scorers, batches),
            reasons,
        )
    return rewards.tolist()


@contextmanager
def long_prompts_reported_once(scorers: Sequence[Scorer[Any]], prompts: Sequence[str]) -> Iterator[None]:
    """Report the long prompts among all that the block will score, before any work is done, and not once more with each batch."""
    CompositeProcessor(processors_of(scorers)).check(prompts)
    with long_prompt_warnings_suppressed():
        yield


# --- batches -------------------------------------------------------------------------------------------------------------------------


def single_scorers(scorers: Sequence[Scorer[Any]]) -> list[Scorer[Any]]:
    """Each scorer, or the members of which it is made."""
    return [
        single for scorer in scorers for single in (single_scorers(scorer.scorers) if isinstance(scorer, CompositeScorer) else [scorer])
    ]


def processors_of(scorers: Sequence[Scorer[Any]]) -> list[Prepare]:
    """What makes the batches that ``rewards_together`` takes: one for each of the ``single_scorers``."""
    return [scorer.prepare for scorer in single_scorers(scorers)]


def prepare_together(processors: Sequence[Prepare], prompts: Sequence[str], images: Sequence[ImageLike]) -> list[Any]:
    """One batch for each processor, all of the same rows: aligned prompts and images. Raises what ``Processor`` raises.

    An image is opened once for all processors that open images alike. Those of two towers crop one image after the other; where other
    kinds take part, which see the images themselves, the opened images of the batch are in memory together.
    """
    batches: dict[int, Any] = {}  # by the number of the processor
    for options in distinct(map(options_of, processors)):
        alike = [number for number, processor in enumerate(processors) if options_of(processor) == options]
        two_tower = {number: processor for number in alike if isinstance(processor := processors[number], TwoTowerProcessor)}
        shared = list(images)
        if len(two_tower) < len(alike) and len(alike) > 1:
            unique, index = unique_images(images)
            opened: list[ImageLike] = [open_image(image, options) for image in unique]
            shared = [opened[image] for image in index]
        batches |= zip(two_tower, process_together(list(two_tower.values()), prompts, shared), strict=True)
        batches |= {number: processors[number](prompts, shared) for number in alike if number not in two_tower}
    return [batches[number] for number in range(len(processors))]


def options_of(processor: Prepare) -> ImageOptions:
    """How a processor opens images."""
    return getattr(processor, "options", ImageOptions())


# --- rewards -------------------------------------------------------------------------------------------------------------------------


Features = dict[tuple[Hashable, ImageTransform], Any]
"""What each image tower made of the images of one batch, by tower and transform."""


def rewards_together(scorers: Sequence[Scorer[Any]], batches: Sequence[Any]) -> list[Tensor]:
    """Rewards [N] of each scorer, for batches of ``prepare_together(processors_of(scorers), ...)``. Differentiable.

    A tower that several scorers share encodes each image once: batches of the same rows that were cropped by equal transforms hold the
    same pixels, so tower and transform say what the features are.

    Raises ``RefusedRowsError`` where a scorer refuses rows, with the rewards of all scorers, and what else ``forward`` raises.
    """
    try:
        every = estimates_together(scorers, batches)
    except RefusedRowsError as refused:
        raise RefusedRowsError([estimates[:, 0] for estimates in refused.rewards], refused.reasons) from None
    return [estimates[:, 0] for estimates in every]


def estimates_together(scorers: Sequence[Scorer[Any]], batches: Sequence[Any]) -> list[Tensor]:
    """As ``rewards_together``, what each scorer's ``estimates`` gives: rewards, and standard deviations from those that have them."""
    features: Features = {}
    reasons: dict[int, RewardError] = {}
    singles = [
        _of_two_towers(scorer, batch, features)[:, None] if isinstance(scorer, TwoTowerScorer) else _in_parts(scorer, batch, reasons)
        for scorer, batch in zip(single_scorers(scorers), batches, strict=True)
    ]
    estimates = _combined(scorers, iter(singles))
    if reasons:
        raise RefusedRowsError(estimates, reasons)
    return estimates


def rewards_of_tensors(scorers: Sequence[Scorer[Any]], prompts: str | Sequence[str], pixels: Tensor) -> list[Tensor]:
    """What each scorer's ``rewards(prompts, pixels)`` gives; equal transforms crop once, and towers are shared."""
    aligned = prompts_for(pixels, prompts)
    features: Features = {}
    crops: dict[ImageTransform, Tensor] = {}
    singles = []
    for scorer in single_scorers(scorers):
        if isinstance(scorer, TwoTowerScorer):
            transform = scorer.prepare.transform
            if transform not in crops:
                crops[transform] = transform.crop_tensor(pixels.to(scorer.device))
            singles.append(_of_two_towers(scorer, scorer.prepare.of_crops(aligned, crops[transform]), features)[:, None])
        else:
            singles.append(scorer.rewards(aligned, pixels)[:, None])
    return [estimates[:, 0] for estimates in _combined(scorers, iter(singles))]


def _of_two_towers(scorer: TwoTowerScorer[Any], batch: TwoTowerBatch, features: Features) -> Tensor:
    key = (scorer.image_tower, scorer.prepare.transform)
    if key not in features:
        features[key] = scorer.encode(batch.pixels)
    return scorer(batch, features[key])


def _in_parts(scorer: Scorer[Any], batch: Any, reasons: dict[int, RewardError]) -> Tensor:
    """The estimates of a scorer that bounds how many rows it takes at once: a batch that was made for others too may have more.

    Rows that it refuses are NaN, and added to ``reasons``.
    """
    num_rows, step = len(batch), scorer.batch_size
    parts = [batch] if num_rows <= step else [batch.select(range(at, min(at + step, num_rows))) for at in range(0, num_rows, step)]
    estimates: list[Tensor] = []
    for number, part in enumerate(parts):
        try:
            estimates.append(scorer.estimates(part))
        except RefusedRowsError as refused:
            estimates.append(refused.rewards[0].reshape(len(part), -1))
            for row, reason in refused.reasons.items():
                reasons.setdefault(number * step + row, reason)
    return estimates[0] if len(estimates) == 1 else torch.cat(estimates)


def _combined(scorers: Sequence[Scorer[Any]], singles: Iterator[Tensor]) -> list[Tensor]:
    """The estimates of all ``single_scorers`` -> those of the scorers."""
    return [
        scorer.combine(torch.stack([member[:, 0].float() for member in _combined(scorer.scorers, singles)]))[:, None]
        if isinstance(scorer, CompositeScorer)
        else next(singles)
        for scorer in scorers
    ]


# --- a scorer that is made of scorers ------------------------------------------------------------------------------------------------


@dataclass
class CompositeBatch:
    """The same rows as a batch of each member."""

    parts: list[Any]

    def __len__(self) -> int:
        return len(self.parts[0])

    def to(self, device: torch.device | str) -> CompositeBatch:
        return CompositeBatch([part.to(device) for part in self.parts])

    def select(self, rows: Sequence[int]) -> CompositeBatch:
        return CompositeBatch([part.select(rows) for part in self.parts])

    def keys(self) -> list[Hashable] | None:
        parts = [keys_of(part) for part in self.parts]
        known = [keys for keys in parts if keys is not None]
        return list(zip(*known, strict=True)) if len(known) == len(parts) else None


@dataclass
class CompositeProcessor(Processor[CompositeBatch]):
    """Prompts and images -> ``CompositeBatch``; an image is opened once for all members."""

    parts: list[Prepare]

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> CompositeBatch:
        return CompositeBatch(prepare_together(self.parts, prompts, images))

    def check(self, prompts: Sequence[str]) -> None:
        tokenizers = [part.tokenizer for part in self.parts if isinstance(part, TwoTowerProcessor)]
        for tokenizer in distinct(tokenizers):  # one report where members read prompts alike
            tokenizer(prompts)
        for part in self.parts:
            if not isinstance(part, TwoTowerProcessor):
                getattr(part, "check", check_prompts)(prompts)


class CompositeScorer(Scorer[CompositeBatch]):
    """A scorer whose rewards are made of those of other scorers, its members."""

    members: nn.ModuleList

    @property
    def scorers(self) -> list[Scorer[Any]]:
        """The members, in their order."""
        return [member for member in self.members if isinstance(member, Scorer)]

    @abstractmethod
    def combine(self, rewards: Tensor) -> Tensor:
        """The members' rewards [M, N], in their order -> its own [N]. Differentiable."""

    @property
    def prepare(self) -> Prepare:
        return CompositeProcessor(processors_of([self]))

    @prepare.setter
    def prepare(self, prepare: Prepare) -> None:
        if not isinstance(prepare, CompositeProcessor):
            raise ValueError(f"{self.name} is made of several scorers: assign the processor of each member")
        for scorer, part in zip(single_scorers([self]), prepare.parts, strict=True):
            scorer.prepare = part

    @property
    def batch_size(self) -> int:
        return min(member.batch_size for member in single_scorers([self]))

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        for member in single_scorers([self]):
            member.batch_size = batch_size

    def cast(self, dtype: torch.dtype) -> None:
        for member in single_scorers([self]):
            member.cast(dtype)

    def forward(self, batch: CompositeBatch) -> Tensor:
        """Rewards [N] of a batch of ``prepare``, differentiable; image towers that members share encode each image once."""
        return rewards_together([self], batch.parts)[0]

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        return rewards_of_tensors([self], prompts, pixels)[0]
