"""Scorers whose image tower works without the prompt: an image is encoded once, however many prompts meet it."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from image_reward.images import ImageLike, ImageOptions, ImageTransform, open_image, unique_images
from image_reward.prompts import Tokens, long_prompt_warnings_suppressed
from image_reward.scorers.base import Processor, Scorer, check_finite, inference, prompts_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

Features = TypeVar("Features")
"""What an image tower makes of I images: a tensor [I, ...], or lists and tuples of such tensors."""
Thing = TypeVar("Thing")

# Prompt tokens read at once, over all images: bounds the memory that a matrix of many prompts takes.
_MAX_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class TwoTowerBatch:
    """Prompts and images as tensors. Row ``n`` is prompt ``n`` with image ``image_index[n]``."""

    pixels: Tensor
    """[I, 3, S, S], each distinct image once: uint8, or floats in [0, 1] for gradients"""
    ids: Tensor
    """[N, L], int64: token ids"""
    mask: Tensor
    """[N, L], bool: False for padding"""
    image_index: Tensor
    """[N], int64"""
    digests: tuple[bytes, ...] = ()
    """Of the pixels of each image; none for a batch of tensors that were never files."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TwoTowerBatch:
        """The same batch with its tensors on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "ids", "mask", "image_index")}
        return replace(self, **moved)

    def select(self, rows: Sequence[int]) -> TwoTowerBatch:
        """These rows, in this order, and the images that they need."""
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.ids.device)
        images, index = self.image_index[chosen].unique(return_inverse=True)
        digests = tuple(self.digests[image] for image in images.tolist()) if self.digests else ()
        return TwoTowerBatch(self.pixels[images], self.ids[chosen], self.mask[chosen], index, digests)

    def join(self, others: Sequence[TwoTowerBatch]) -> TwoTowerBatch:
        """The rows of this batch and then those of others from the same processor; images of equal digests become one."""
        parts = [self, *others]
        length = max(part.ids.shape[1] for part in parts)
        ids, mask = (torch.cat([F.pad(getattr(part, name), (0, length - part.ids.shape[1])) for part in parts]) for name in ("ids", "mask"))
        place: dict[Hashable, int] = {}
        kept, index = [], []
        for number, part in enumerate(parts):
            images: Sequence[Hashable] = part.digests or [(number, image) for image in range(len(part.pixels))]
            new = [image for image, key in enumerate(images) if key not in place]
            place |= {images[image]: len(place) + i for i, image in enumerate(new)}
            kept.append(part.pixels if len(new) == len(images) else part.pixels[new])
            moved = torch.tensor([place[key] for key in images], dtype=torch.int64, device=part.image_index.device)
            index.append(moved[part.image_index])
        digests = tuple(key for key in place if isinstance(key, bytes))
        return TwoTowerBatch(torch.cat(kept), ids, mask, torch.cat(index), digests if len(digests) == len(place) else ())

    def keys(self) -> list[Hashable]:
        """Of each row: equal for rows of equal tokens and equal pixels."""
        images: Sequence[Hashable] = self.digests or range(len(self.pixels))
        tokens = self.ids.masked_fill(~self.mask, -1).cpu().numpy()
        return [(images[image], row[row >= 0].tobytes()) for image, row in zip(self.image_index.tolist(), tokens, strict=True)]


@dataclass
class TwoTowerProcessor(Processor[TwoTowerBatch]):
    """Prompts and images -> ``TwoTowerBatch``. The same path, bytes or object is opened once, and equal pixels are one image."""

    transform: ImageTransform
    tokenizer: Callable[[Sequence[str]], Tokens]

    @property
    def options(self) -> ImageOptions:
        """How strictly images are opened."""
        return self.transform.options

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> TwoTowerBatch:
        return process_together([self], prompts, images)[0]

    def check(self, prompts: Sequence[str]) -> None:
        self.tokenizer(prompts)

    def pixels(self, images: Sequence[ImageLike]) -> Tensor:
        """Images -> [I, 3, S, S], uint8."""
        return _crops([self.transform], images)[0]

    def of_tensors(self, prompts: Sequence[str], pixels: Tensor) -> TwoTowerBatch:
        """Prompts and floats in [0, 1] [B, 3, H, W] -> a batch that carries gradients to them; see ``ImageTransform.crop_tensor``."""
        return self.of_crops(prompts, self.transform.crop_tensor(pixels))

    def of_crops(self, prompts: Sequence[str], crops: Tensor) -> TwoTowerBatch:
        """Prompts and as many crops [B, 3, S, S], uint8 or floats in [0, 1] -> a batch."""
        tokens = self.tokenizer(prompts)
        return TwoTowerBatch(crops, tokens.ids, tokens.mask, torch.arange(len(crops), dtype=torch.int64, device="cpu"))


def process_together(processors: Sequence[TwoTowerProcessor], prompts: Sequence[str], images: Sequence[ImageLike]) -> list[TwoTowerBatch]:
    """One batch for each processor, all of the same rows. An image is opened once, and cropped once for each distinct transform."""
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts and {len(images)} images: aligned lists must have the same length")
    tokenizers = distinct(processor.tokenizer for processor in processors)
    tokens = [tokenizer(prompts) for tokenizer in tokenizers]
    opened, index = unique_images(images)
    transforms = distinct(processor.transform for processor in processors)
    parts = [_unique_crops(crops, index) for crops in _crops(transforms, opened)]
    batches = []
    for processor in processors:
        pixels, image_index, digests = parts[transforms.index(processor.transform)]
        text = tokens[tokenizers.index(processor.tokenizer)]
        batches.append(TwoTowerBatch(pixels, text.ids, text.mask, image_index, digests))
    return batches


def _crops(transforms: Sequence[ImageTransform], images: Sequence[ImageLike]) -> list[Tensor]:
    """Images -> [I, 3, S, S], uint8, for each transform. One image is in memory at a time."""
    crops: list[list[Tensor]] = [[] for _ in transforms]
    for image in images:
        opened = {options: open_image(image, options) for options in {transform.options for transform in transforms}}
        for crop, transform in zip(crops, transforms, strict=True):
            crop.append(transform.crop_opened(opened[transform.options]))
    return [
        torch.stack(crop) if crop else torch.empty(0, 3, transform.size, transform.size, dtype=torch.uint8, device="cpu")
        for crop, transform in zip(crops, transforms, strict=True)
    ]


def _unique_crops(crops: Tensor, index: Sequence[int]) -> tuple[Tensor, Tensor, tuple[bytes, ...]]:
    """Crops [I, ...] and which of them each row has -> the distinct ones, which of those each row has, and their digests."""
    place: dict[bytes, int] = {}
    kept = []
    moved = []
    for number, crop in enumerate(crops):
        digest = hashlib.blake2b(crop.numpy().data, digest_size=16).digest()
        if digest not in place:
            place[digest] = len(place)
            kept.append(number)
        moved.append(place[digest])
    if len(kept) < len(crops):
        crops = crops[kept]
    return crops, torch.tensor([moved[image] for image in index], dtype=torch.int64, device="cpu"), tuple(place)


def distinct(things: Iterable[Thing]) -> list[Thing]:
    """Those that are equal once, in order; they need not be hashable."""
    kept: list[Thing] = []
    for thing in things:
        if thing not in kept:
            kept.append(thing)
    return kept


class TwoTowerScorer(Scorer[TwoTowerBatch], Generic[Features]):
    """A kind of scorer says how images are encoded (``encode_images``) and what rewards prompts get with them (``score_pairs``)."""

    prepare: TwoTowerProcessor
    whole_images = True
    compiled: Callable[[Tensor], Features] | None = None
    """What computes ``encode_images``, where that is compiled: see ``precision.compile_scorer``."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Features:
        """uint8 in [0, 255] or floats in [0, 1], [I, 3, S, S] -> what prompts need to know of the images."""

    @abstractmethod
    def score_pairs(self, features: Features, ids: Tensor, mask: Tensor) -> Tensor:
        """Encoded images (I of them), token ids and mask [I, P, L] -> rewards [I, P], float32.

        [1, P, L] are the same prompts for every image.
        """

    @property
    def image_tower(self) -> Hashable:
        """What encodes images: two scorers with the same one make the same features of the same pixels."""
        return self

    def encode(self, pixels: Tensor) -> Features:
        """As ``encode_images``, by the compiled image tower where there is one."""
        pixels = pixels.to(self.device)
        return self.encode_images(pixels) if self.compiled is None else self.compiled(pixels)

    def forward(self, batch: TwoTowerBatch, features: Features | None = None) -> Tensor:
        """Rewards [N] of a batch, float32, differentiable. ``features``: what ``encode`` makes of it, where that is there already."""
        if not len(batch):
            return torch.empty(0, dtype=torch.float32, device=self.device)
        if features is None:
            features = self.encode(batch.pixels)
        ids, mask, index = (tensor.to(self.device) for tensor in (batch.ids, batch.mask, batch.image_index))
        rewards = torch.empty(len(batch), dtype=torch.float32, device=self.device)
        # score_pairs takes a rectangle: some images, each with P prompts. Images that meet equally many prompts make one rectangle, so that
        # no row is padding; mostly all images do, and it is all in one.
        counts = torch.bincount(index, minlength=len(batch.pixels))
        rows_by_image = torch.argsort(index, stable=True)
        first_row = counts.cumsum(0) - counts
        for count in counts.unique().tolist():
            if not count:
                continue
            images = (counts == count).nonzero()[:, 0]
            rows = rows_by_image[first_row[images, None] + torch.arange(count, device=self.device)]  # [I, count]
            chosen = features if len(images) == len(counts) else take(features, images)
            rewards = rewards.index_put((rows,), self._score_in_parts(chosen, len(images), ids[rows], mask[rows]))
        return rewards

    def _score_in_parts(self, features: Features, num_images: int, ids: Tensor, mask: Tensor) -> Tensor:
        step = max(1, _MAX_TOKENS_AT_ONCE // (max(num_images, self.batch_size) * ids.shape[-1]))
        parts = [self.score_pairs(features, ids[:, i : i + step], mask[:, i : i + step]) for i in range(0, ids.shape[1], step)]
        return torch.cat(parts, dim=1)

    def for_prompts(self, ids: Tensor, mask: Tensor) -> Callable[[Features, int], Tensor]:
        """What gives the rewards [I, P] of features, of I images, with the prompts [1, P, L]: for ``matrix``, which asks it many times."""
        return lambda features, num_images: self._score_in_parts(features, num_images, ids, mask)

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        """Rewards [B] of images as float tensors [B, 3, H, W] in [0, 1], with gradients to the pixels.

        One prompt serves all images; a list is aligned with them. See ``ImageTransform.crop_tensor`` for how this relates to files.
        """
        aligned = prompts_for(pixels, prompts)
        return self(self.prepare.of_tensors(aligned, pixels.to(self.device)))

    def matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> NDArray[Any]:
        """As ``Scorer.matrix``; each image is encoded once, and so is each prompt where it does not look at images."""
        self._check_matrix(prompts, images)
        self.check_evaluating()
        rewards = torch.empty(len(prompts), len(images), dtype=torch.float32, device="cpu")
        if not rewards.numel():
            return rewards.numpy()
        each = list(dict.fromkeys(prompts))
        tokens = self.prepare.tokenizer(each)
        ids, mask = tokens.ids[None].to(self.device), tokens.mask[None].to(self.device)
        unique, index = unique_images(images)
        columns: dict[bytes, Tensor] = {}  # pixels -> rewards of every prompt: copies under other names get one reward too
        keys: list[bytes] = []
        with inference(), long_prompt_warnings_suppressed():
            score = self.for_prompts(ids, mask)
            for start in range(0, len(unique), self.batch_size):
                part = unique[start : start + self.batch_size]
                batch = self.prepare([each[0]] * len(part), part)
                keys += [batch.digests[image] for image in batch.image_index.tolist()]
                if new := [image for image, digest in enumerate(batch.digests) if digest not in columns]:
                    pixels = batch.pixels if len(new) == len(batch.pixels) else batch.pixels[new]
                    scored = score(self.encode(pixels), len(new)).cpu()
                    columns |= zip([batch.digests[image] for image in new], scored, strict=True)
        whole = torch.stack([columns[key] for key in keys], dim=1)[[each.index(prompt) for prompt in prompts]][:, index]
        check_finite(whole, self.name)
        return whole.numpy()


class ContrastiveScorer(TwoTowerScorer[Tensor]):
    """The product of features of length 1 of image [I, D] and prompt, neither of which is encoded with a look at the other."""

    @abstractmethod
    def encode_prompts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask [N, L] -> features of length 1 [N, D]."""

    def of_cosines(self, cosine: Tensor) -> Tensor:
        """Cosines of any shape -> rewards."""
        return cosine

    def score_pairs(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.of_cosines(cosines(features, ids, mask, self.encode_prompts))

    def for_prompts(self, ids: Tensor, mask: Tensor) -> Callable[[Tensor, int], Tensor]:
        ids, mask, place = distinct_prompts(ids[0], mask[0])
        step = max(1, _MAX_TOKENS_AT_ONCE // ids.shape[-1])
        prompts = torch.cat([self.encode_prompts(*part) for part in zip(ids.split(step), mask.split(step), strict=True)])[place]

        def score(features: Tensor, num_images: int) -> Tensor:
            parts = prompts[None].split(max(1, _MAX_TOKENS_AT_ONCE // num_images), dim=1)
            return self.of_cosines(torch.cat([_products(features, part) for part in parts], dim=1))

        return score


def take(features: Features, images: Tensor | slice) -> Features:
    """The features of some images."""
    if isinstance(features, Tensor):
        return features[images]  # type: ignore[return-value]
    return type(features)(take(part, images) for part in features)  # type: ignore[attr-defined, call-arg]


def cosines(features: Tensor, ids: Tensor, mask: Tensor, encode_prompts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What ``score_pairs`` returns where prompts do not look at images: the products [I, P] of features of length 1, float32.

    ``features``: those of images [I, D]. Each distinct prompt is encoded once, however many images it meets.
    """
    each, its_mask, place = distinct_prompts(ids.flatten(0, 1), mask.flatten(0, 1))
    return _products(features, encode_prompts(each, its_mask)[place].view(*ids.shape[:2], -1))


def distinct_prompts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask [N, L] -> those of the distinct prompts [D, L], and which of them each of the N is."""
    rows, place = torch.cat([ids.masked_fill(~mask, 0), mask.long()], dim=-1).unique(dim=0, return_inverse=True)
    return rows[:, : ids.shape[1]], rows[:, ids.shape[1] :].bool(), place


def _products(features: Tensor, prompts: Tensor) -> Tensor:
    """[I, D] and [I or 1, P, D] -> [I, P], float32. Not a matrix product, which autocast would round."""
    return (prompts.float() * features[:, None].float()).sum(dim=-1)
