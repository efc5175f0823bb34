"""From comparisons to training steps: which are usable, in which order they come, and the tensors they become.

The comparisons of a step follow from the seed alone, whatever the number of processes and wherever a run was interrupted.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from image_reward.addresses import Address
from image_reward.errors import ImageReadError, InputError
from image_reward.images import describe
from image_reward.prompts import long_prompt_warnings_suppressed
from image_reward.scorers.two_tower import TwoTowerBatch, TwoTowerProcessor
from image_reward.training.config import TIE_MODELS, Loss
from image_reward.training.frozen_features import FrozenFeatures
from image_reward.types import Comparison

# --- comparisons ---------------------------------------------------------------------------------------------------------------------


def name_of(comparison: Comparison) -> str:
    """A short name for messages."""
    return comparison.id or repr(comparison.prompt[:60])


def select_usable(comparisons: Sequence[Comparison], loss: Loss, skip_unreadable: bool) -> tuple[list[Comparison], list[str]]:
    """The comparisons a loss can learn from, and notes on what was left out.

    Missing image files are detected here, so that a run does not stop at step 9,000 because of one.

    Raises ``ValueError`` for an invalid comparison, ``FileNotFoundError`` for missing images unless ``skip_unreadable``.
    """
    kept, notes = [], []
    missing: list[str] = []
    num_tied = 0
    for comparison in comparisons:
        if len(comparison.images) < 2 or len(comparison.images) != len(comparison.ranks):
            raise InputError(
                f"comparison {name_of(comparison)} has {len(comparison.images)} images and {len(comparison.ranks)} ranks; "
                "it needs at least two images, and a rank for each"
            )
        exists = [_exists(image) for image in comparison.images]
        missing += [describe(image) for image, present in zip(comparison.images, exists, strict=True) if not present]
        if not all(exists):
            comparison = _without(comparison, exists)
        if len(comparison.images) < 2:
            continue
        if loss not in (*TIE_MODELS, "soft") and len(set(comparison.ranks)) == 1:
            num_tied += 1
            continue
        kept.append(comparison)
    if missing and not skip_unreadable:
        raise FileNotFoundError(
            f"{len(missing)} images are missing, the first is {missing[0]}; restore them, or leave them out with skip_unreadable"
        )
    if missing:
        notes.append(f"{len(missing)} missing images were left out, the first is {missing[0]}")
    if num_tied:
        notes.append(f"{num_tied} comparisons in which all images tie were left out: the loss {loss!r} learns nothing from a tie")
    if not kept:
        raise InputError(
            "there is nothing to learn from: no comparison has two images of different rank" + "".join(f"; {n}" for n in notes)
        )
    return kept, notes


def _exists(image: object) -> bool:
    return not isinstance(image, str | os.PathLike) or _is_file(image)


def _is_file(image: str | os.PathLike[str]) -> bool:
    address = Address.parse(image)
    return address.local.is_file() if address.is_local else address.kind() == "file"


def _without(comparison: Comparison, kept: Sequence[bool]) -> Comparison:
    def choose(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for value, keep in zip(values, kept, strict=True) if keep)

    shares = choose(comparison.shares) if comparison.shares else None
    return replace(comparison, images=choose(comparison.images), ranks=choose(comparison.ranks), shares=shares)


def fingerprint(*sets: Sequence[Comparison]) -> str:
    """A hash of prompts, ranks and the names of images, in order."""
    digest = hashlib.sha256()
    for comparisons in sets:
        digest.update(f"{len(comparisons)}".encode())
        for c in comparisons:
            images = [describe(image) if isinstance(image, str | os.PathLike) else "" for image in c.images]
            digest.update(repr((c.id, c.prompt, c.ranks, c.shares, images)).encode())
    return digest.hexdigest()


# --- steps ---------------------------------------------------------------------------------------------------------------------------


def pack(sizes: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of prompts, filled in ``order``: a bin is closed when the next prompt's images would exceed its ``capacity``.

    >>> pack([4, 9, 5, 4], [0, 1, 2, 3], capacity=10)
    [[0], [1], [2, 3]]
    """
    bins: list[list[int]] = []
    room = 0
    for index in order:
        if not bins or sizes[index] > room:
            bins.append([])
            room = capacity
        bins[-1].append(index)
        room -= sizes[index]
    return bins


def plan(sizes: Sequence[int], epochs: int, max_steps: int | None, batch_images: int, seed: int) -> list[list[int]]:
    """The comparisons of every step of a run."""
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(sizes)))
        random.Random(f"{seed} {epoch}").shuffle(order)
        steps += pack(sizes, order, batch_images)
        if max_steps is not None and len(steps) >= max_steps:
            return steps[:max_steps]
    return steps


def shard_across_ranks(sizes: Sequence[int], step: Sequence[int], num_processes: int, micro_images: int) -> list[list[list[int]]]:
    """A step's comparisons by process and by pass through the network. All processes get the same number; an empty pass is padding.

    >>> shard_across_ranks([4, 9, 5, 4], [0, 1, 2, 3], num_processes=2, micro_images=9)
    [[[1], [3]], [[0, 2], []]]
    """
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0] * num_processes
    for index in sorted(step, key=lambda i: -sizes[i]) if num_processes > 1 else step:
        lightest = loads.index(min(loads))
        shares[lightest].append(index)
        loads[lightest] += sizes[index]
    passes = [pack(sizes, sorted(share, key=step.index), micro_images) for share in shares]
    num_passes = max(map(len, passes))
    return [bins + [[] for _ in range(num_passes - len(bins))] for bins in passes]


# --- tensors -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MicroBatch:
    """One pass through the network: prompts with all their images, N in total, and the ranks of these."""

    batch: TwoTowerBatch
    prompt: Tensor
    """[N], int64: which prompt a row belongs to"""
    judged: Tensor
    """[N], bool: False for an image that could not be read and for padding"""
    beats: Tensor
    """[N, N], bool: the row's image is ranked above the column's"""
    first: Tensor
    second: Tensor
    """[P], int64: rows of the pairs that the loss compares"""
    target: Tensor
    """[P], float32: 1 where the first is ranked above the second, 1/2 for a tie, a share in between for soft labels"""
    num_terms: int
    """Terms of the loss: pairs, or choices of Plackett-Luce."""
    num_unreadable: int
    names: tuple[str, ...]
    """The comparisons, for messages."""

    def to(self, device: torch.device) -> MicroBatch:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if hasattr(getattr(self, f.name), "to")})


class TrainingSteps(Dataset[list[MicroBatch]]):
    """One process's micro-batches of each step. Picklable, for loader processes; the scorer's own processor does the work."""

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        prepare: TwoTowerProcessor,
        loss: Loss,
        micro_images: int,
        process: tuple[int, int] = (0, 1),
        skip_unreadable: bool = False,
        cache_mib: int = 0,
        features: FrozenFeatures | None = None,
    ) -> None:
        """The comparisons once, in order; ``over`` gives other steps of them.

        ``process`` is this process's number and how many there are. ``features`` are used in place of pixels.
        """
        self.comparisons, self.prepare, self.loss = comparisons, prepare, loss
        self.micro_images, self.process, self.skip_unreadable, self.features = micro_images, process, skip_unreadable, features
        self.sizes = [len(c.images) for c in comparisons]
        self.steps: Sequence[Sequence[int]] = pack(self.sizes, range(len(comparisons)), micro_images * process[1])
        self.first_image = [0]
        for size in self.sizes:
            self.first_image.append(self.first_image[-1] + size)
        prepare.check([c.prompt for c in comparisons])  # all at once: one warning about long prompts, not thousands
        shape = (self.first_image[-1], 3, prepare.transform.size, prepare.transform.size)
        fits = features is None and shape[0] * shape[1] * shape[2] * shape[3] <= cache_mib << 20
        # In shared memory, so that what one loader process has decoded serves all.
        self.crops = torch.empty(shape if fits else (0,), dtype=torch.uint8).share_memory_()
        self.cropped = torch.zeros(shape[0] if fits else 0, dtype=torch.bool).share_memory_()

    def over(self, steps: Sequence[Sequence[int]]) -> TrainingSteps:
        """Other steps of the same comparisons, sharing the cache of decoded images."""
        other = copy.copy(self)
        other.steps = steps
        return other

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[MicroBatch]:
        number, num_processes = self.process
        step = self.steps[index]
        passes = shard_across_ranks(self.sizes, step, num_processes, self.micro_images)[number]
        return [self.micro_batch(indices) if indices else self.micro_batch(step[:1], padding=True) for indices in passes]

    def loader(self, workers: int, start: int = 0) -> Iterator[list[MicroBatch]]:
        return iter(DataLoader(self, batch_size=None, sampler=range(start, len(self)), num_workers=workers, collate_fn=_unchanged))

    def micro_batch(self, indices: Sequence[int], padding: bool = False) -> MicroBatch:
        """The comparisons at ``indices`` as tensors. ``padding`` keeps the processes in step and adds nothing to the loss."""
        chosen = [self.comparisons[i] for i in indices]
        images = [self._image(self.first_image[i] + k, self.comparisons[i], k) for i in indices for k in range(self.sizes[i])]
        prompt = torch.tensor([row for row, c in enumerate(chosen) for _ in c.images])
        ranks = torch.tensor([rank for c in chosen for rank in c.ranks])
        judged = torch.tensor([image is not None and not padding for image in images])
        blank = torch.zeros_like(next((image for image in images if image is not None), self._blank()))
        crops = torch.stack([blank if image is None else image for image in images])
        with long_prompt_warnings_suppressed():
            batch = self.prepare.of_crops([c.prompt for c in chosen for _ in c.images], crops)

        same_prompt = (prompt[:, None] == prompt) & judged[:, None] & judged
        beats = same_prompt & (ranks[:, None] < ranks)
        ties = same_prompt.triu(1) & (ranks[:, None] == ranks) if self.loss in (*TIE_MODELS, "soft") else torch.zeros_like(beats)
        first, second = (beats | ties).nonzero().unbind(dim=1)
        target = torch.where(ranks[first] == ranks[second], 0.5, 1.0)
        if self.loss == "soft":  # vote shares carry more information than the ranks made of them
            votes = torch.tensor([vote for c in chosen for vote in (c.shares or [-1.0] * len(c.images))])
            counted = (votes[first] >= 0) & (votes[first] + votes[second] > 0)
            target = torch.where(counted, votes[first] / (votes[first] + votes[second]), target)
        num_terms = int(beats.any(dim=1).sum()) if self.loss == "plackett-luce" else len(first)
        num_unreadable = sum(image is None for image in images)
        names = tuple(map(name_of, chosen))
        return MicroBatch(batch, prompt, judged, beats, first, second, target, num_terms, 0 if padding else num_unreadable, names)

    def _image(self, number: int, comparison: Comparison, k: int) -> Tensor | None:
        """An image's crop [3, S, S], uint8, or its features [T, W]; None if it cannot be read and that is allowed."""
        if self.features is not None:
            return self.features.get(number)
        if len(self.cropped) and self.cropped[number]:
            return self.crops[number]
        try:
            crop = self.prepare.pixels([comparison.images[k]])[0]
        except (ImageReadError, OSError) as error:
            if self.skip_unreadable:
                return None
            raise ImageReadError(
                f"image {k + 1} of comparison {name_of(comparison)}: {error}; to leave such images out: skip_unreadable"
            ) from error
        if len(self.cropped):
            self.crops[number] = crop
            self.cropped[number] = True
        return crop

    def _blank(self) -> Tensor:
        if self.features is not None:
            return self.features.blank()
        return torch.zeros(3, self.prepare.transform.size, self.prepare.transform.size, dtype=torch.uint8)


def _unchanged(item: list[MicroBatch]) -> list[MicroBatch]:  # picklable, unlike a lambda
    return item
