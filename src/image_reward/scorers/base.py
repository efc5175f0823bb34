"""What every scorer has in common: how prompts and images become a batch, and how rewards become what was asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from image_reward.config import TieConfig
from image_reward.errors import ImageReadError, RewardError
from image_reward.images import ImageLike, ImageTransform, open_image, unique_images
from image_reward.metrics import win_probability
from image_reward.prompts import Tokens, check_prompts, long_prompt_warnings_suppressed
from image_reward.types import Preference, Ranking

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Features = TypeVar("Features")
Thing = TypeVar("Thing")

# Prompt tokens read at once, over all images: bounds the memory that a matrix of many prompts takes.
_MAX_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Batch:
    """Prompts and images as CPU tensors, ready for a scorer. Row ``n`` is prompt ``n`` with image ``image_index[n]``."""

    pixels: Tensor
    """[I, 3, S, S], uint8: each distinct image once"""
    ids: Tensor
    """[N, L], int64: token ids"""
    mask: Tensor
    """[N, L], bool: False for padding"""
    image_index: Tensor
    """[N], int64"""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        return replace(self, **{name: getattr(self, name).to(device) for name in ("pixels", "ids", "mask", "image_index")})


@dataclass
class Preparation:
    """Prompts and images -> ``Batch``: pure CPU work without the network, small and picklable for loader processes."""

    transform: ImageTransform
    tokenizer: Callable[[Sequence[str]], Tokens]

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> Batch:
        """``prompts`` and ``images`` are aligned lists of one length. The same path, bytes or object is opened once.

        Raises ``ValueError`` for unequal lengths, ``PromptError``, ``FileNotFoundError`` or ``ImageReadError``.
        """
        return prepare_together([self], prompts, images)[0]

    def pixels(self, images: Sequence[ImageLike]) -> Tensor:
        """Images -> [I, 3, S, S], uint8."""
        return _pixels([self.transform], images)[0]


def prepare_together(preparations: Sequence[Preparation], prompts: Sequence[str], images: Sequence[ImageLike]) -> list[Batch]:
    """One ``Batch`` for each preparation, all of the same rows: aligned prompts and images.

    An image is opened once however many preparations there are. Equal transforms share one tensor of pixels (the same object), and equal
    tokenizers one of token ids. Raises what ``Preparation`` raises.
    """
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts and {len(images)} images: aligned lists must have the same length")
    unique, index = unique_images(images)
    image_index = torch.tensor(index, dtype=torch.int64, device="cpu")
    tokenizers = _distinct(preparation.tokenizer for preparation in preparations)
    tokens = [tokenizer(prompts) for tokenizer in tokenizers]
    transforms = _distinct(preparation.transform for preparation in preparations)
    pixels = _pixels(transforms, unique)
    batches = []
    for preparation in preparations:
        found = tokens[tokenizers.index(preparation.tokenizer)]
        batches.append(Batch(pixels[transforms.index(preparation.transform)], found.ids, found.mask, image_index))
    return batches


def _pixels(transforms: Sequence[ImageTransform], images: Sequence[ImageLike]) -> list[Tensor]:
    """Images -> [I, 3, S, S], uint8, for each transform."""
    crops: list[list[Tensor]] = [[] for _ in transforms]
    for image in images:
        opened = {options: open_image(image, options) for options in {transform.options for transform in transforms}}
        for crop, transform in zip(crops, transforms, strict=True):
            crop.append(transform.crop_opened(opened[transform.options]))
    return [
        torch.stack(crop) if crop else torch.empty(0, 3, transform.size, transform.size, dtype=torch.uint8, device="cpu")
        for crop, transform in zip(crops, transforms, strict=True)
    ]


def _distinct(things: Iterable[Thing]) -> list[Thing]:
    found: list[Thing] = []
    for thing in things:
        if thing not in found:
            found.append(thing)
    return found


class Scorer(nn.Module, ABC, Generic[Features]):
    """A prompt and an image -> a reward: higher is better.

    A kind of scorer says how images are encoded (``encode_images``) and how prompts read them (``read``); all else is here.
    """

    name: str
    prepare: Preparation
    tie: TieConfig | None = None
    scale: float = 1.0
    """Units in which the loss was trained per unit of reward: ``compare`` multiplies reward differences by it."""
    reference: str | None = None
    """The published reward distribution that rewards may be compared with, where there is one."""
    batch_size: int = 8
    """How many images pass through the network at once. Rewards do not depend on it."""
    reads_prompt: bool = True
    """False if the reward depends on the image alone."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Features:
        """uint8 in [0, 255] or floats in [0, 1], [I, 3, S, S] -> what prompts read of the images."""

    @abstractmethod
    def read(self, images: Features, ids: Tensor, mask: Tensor) -> Tensor:
        """Encoded images (I of them), token ids and mask [I, P, L] -> rewards [I, P], float32.

        [1, P, L] are the same prompts for every image.
        """

    def __setattr__(self, name: str, value: Any) -> None:
        # ``nn.Module`` files a module under its name before it looks for a property of that name, which would go on answering as before.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @property
    def parts(self) -> list[Scorer[Any]]:
        """The scorers whose rewards its own are made of: the members of an ensemble, else itself."""
        return [self]

    def combined(self, rewards: Tensor) -> Tensor:
        """The rewards of its ``parts`` [len(parts), N] -> its own [N]."""
        return rewards[0]

    @property
    def image_tower(self) -> object:
        """What encodes images: scorers with the same one (the same object) get the same features of the same pixels, made once."""
        return self

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype``."""
        self.to(dtype)

    # --- tensors in, tensors out ---

    def forward(self, batch: Batch, encode_images: Callable[[Tensor], Features] | None = None) -> Tensor:
        """Rewards [N] of a batch, float32, differentiable. Each image is encoded once, however many rows it is in.

        ``encode_images`` stands in for the scorer's own, for features that are there already.
        """
        encode_images = encode_images or self.encode_images
        batch = batch.to(self.device)
        rewards = torch.empty(len(batch), dtype=torch.float32, device=self.device)
        if not len(batch):
            return rewards
        counts = torch.bincount(batch.image_index, minlength=len(batch.pixels))
        rows_by_image = torch.argsort(batch.image_index, stable=True)
        first_row = counts.cumsum(0) - counts
        for count in counts.unique().tolist():  # images that meet equally many prompts go through together
            images = (counts == count).nonzero()[:, 0]
            if not count:
                continue
            rows = rows_by_image[first_row[images, None] + torch.arange(count, device=self.device)]  # [I, count]
            found = self._read_in_parts(encode_images(batch.pixels[images]), batch.ids[rows], batch.mask[rows])
            rewards = rewards.index_put((rows,), found)
        return rewards

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        """Rewards [B] of images as float tensors [B, 3, H, W] in [0, 1], with gradients to the pixels.

        One prompt serves all images; a list is aligned with them. See ``ImageTransform.crop_tensor`` for how this relates to files.
        """
        if not isinstance(pixels, Tensor):
            raise ImageReadError(f"rewards() takes a float tensor [B, 3, H, W], not {type(pixels).__name__}; score() takes any image")
        prompts = [prompts] * len(pixels) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(pixels):
            raise ValueError(f"{len(prompts)} prompts and {len(pixels)} images: aligned lists must have the same length")
        if not prompts:
            return torch.empty(0, dtype=torch.float32, device=self.device)
        tokens = self.prepare.tokenizer(prompts)
        images = self.encode_images(self.prepare.transform.crop_tensor(pixels.to(self.device)))
        return self.read(images, tokens.ids[:, None].to(self.device), tokens.mask[:, None].to(self.device))[:, 0]

    def _read_in_parts(self, images: Features, ids: Tensor, mask: Tensor) -> Tensor:
        num_images = max(len(ids), self.batch_size)
        step = max(1, _MAX_TOKENS_AT_ONCE // (num_images * ids.shape[-1]))
        parts = [self.read(images, ids[:, i : i + step], mask[:, i : i + step]) for i in range(0, ids.shape[1], step)]
        return torch.cat(parts, dim=1)

    # --- what people ask ---

    @overload
    def score(self, prompt: str, image: ImageLike) -> float: ...
    @overload
    def score(self, prompt: str, image: list[Any] | tuple[Any, ...]) -> list[float]: ...
    @overload
    def score(self, prompt: list[str] | tuple[str, ...], image: list[Any] | tuple[Any, ...]) -> list[float]: ...

    def score(self, prompt: Any, image: Any) -> float | list[float]:
        """How much people would like an image made for a prompt; higher is better.

        ``score(prompt, image)`` gives a float. ``score(prompt, [image, ...])`` gives a list, of length one for one image and empty for
        none. ``score([prompt, ...], [image, ...])`` takes aligned pairs. Rewards do not depend on what else is in the list.

        Raises what ``open_image`` and the tokenizer raise, and ``RewardError`` rather than return NaN, or noise in training mode.
        """
        if not isinstance(image, list | tuple):
            if isinstance(prompt, list | tuple):
                raise ValueError("a list of prompts needs a list of images; use matrix() for all prompts against all images")
            return self._score_pairs([prompt], [image])[0]
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt] * len(image)
        if len(prompts) != len(image):
            raise ValueError(
                f"{len(prompts)} prompts and {len(image)} images: aligned lists must have the same length; "
                "use matrix() for all prompts against all images"
            )
        return self._score_pairs(prompts, list(image))

    def matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> NDArray[Any]:
        """Rewards of every prompt with every image, [len(prompts), len(images)], float32. Each image is encoded once.

        Raises what ``score`` raises, and ``ValueError`` for several prompts where the scorer reads none.
        """
        self._check_matrix(prompts, images)
        self._check_evaluating()
        rewards = torch.empty(len(prompts), len(images), dtype=torch.float32, device="cpu")
        if not rewards.numel():
            return rewards.numpy()
        distinct = list(dict.fromkeys(prompts))
        tokens = self.prepare.tokenizer(distinct)
        ids, mask = tokens.ids[None].to(self.device), tokens.mask[None].to(self.device)
        unique, index = unique_images(images)
        columns = []
        with torch.inference_mode():
            for start in range(0, len(unique), self.batch_size):
                pixels = self.prepare.pixels(unique[start : start + self.batch_size]).to(self.device)
                columns.append(self._read_in_parts(self.encode_images(pixels), ids, mask).T.cpu())
        rewards = torch.cat(columns, dim=1)[[distinct.index(prompt) for prompt in prompts]][:, index]
        _check_finite(rewards, self.name)
        return rewards.numpy()

    def _check_matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> None:
        if not isinstance(prompts, list | tuple) or not isinstance(images, list | tuple):
            raise ValueError("matrix() takes a list of prompts and a list of images")
        check_prompts(prompts)
        if not self.reads_prompt and len(prompts) > 1:
            raise ValueError(
                f"{self.name} does not read the prompt: all {len(prompts)} rows would be the same; give matrix() one prompt, or use score()"
            )

    def rank(self, prompt: str, images: Sequence[ImageLike]) -> Ranking:
        """The images of one prompt in order of reward. Raises ``ValueError`` for no images: there is nothing to rank."""
        if not isinstance(images, list | tuple) or not images:
            raise ValueError("rank() takes a list of at least one image")
        return Ranking.from_rewards(self._score_pairs([prompt] * len(images), list(images)))

    def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Preference:
        """How likely people are to prefer ``a`` to ``b`` for a prompt, by the model the rewards were learned with.

        Bradley-Terry in the raw units of the head, or with a fitted tie parameter Davidson's or Rao and Kupper's model: the formulas are
        those of ``metrics.win_probability``.
        """
        rewards = self._score_pairs([prompt, prompt], [a, b])
        difference = rewards[0] - rewards[1]
        a_better, b_better = self.win_probability([difference, -difference]).tolist()
        tie = max(0.0, 1.0 - a_better - b_better) if self.tie else 0.0
        return Preference(a_better, tie, b_better, (rewards[0], rewards[1]))

    def win_probability(self, differences: ArrayLike) -> NDArray[Any]:
        """Differences of rewards a - b [N] -> the probabilities that people put a above b [N]."""
        raw = self.scale * np.asarray(differences, dtype=np.float64)
        return win_probability(raw, self.tie.model, self.tie.parameter) if self.tie else win_probability(raw)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write this scorer in the package's own format, where it has one."""
        raise NotImplementedError(f"{type(self).__name__} has no format of this package")

    def _score_pairs(self, prompts: list[str], images: list[ImageLike]) -> list[float]:
        return score_together([self], prompts, images)[0]

    def _check_evaluating(self) -> None:
        if any(module.training for module in self.modules() if isinstance(module, nn.Dropout)):
            raise RewardError("the scorer is in training mode, in which dropout makes rewards random; call its eval() first")


def score_together(scorers: Sequence[Scorer[Any]], prompts: Sequence[str], images: Sequence[ImageLike]) -> list[list[float]]:
    """The rewards of aligned prompts and images by several scorers: one list for each scorer, in their order.

    Each image is opened once, cropped once by each distinct transform, and encoded once by each distinct image tower. Rewards are those
    that the scorers give one by one. Raises what ``Scorer.score`` raises.
    """
    check_prompts(prompts)
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts and {len(images)} images: aligned lists must have the same length")
    for scorer in scorers:
        scorer._check_evaluating()
    rewards = torch.empty(len(scorers), len(prompts), dtype=torch.float32, device="cpu")
    # Rounding differs from place to place in a batch, so what is equal is computed once: copies of an image tie, and keep their order.
    first_of: dict[tuple[str, int], int] = {}
    rows_of: dict[int, list[int]] = {}
    same_as = []
    for row, (prompt, image) in enumerate(zip(prompts, unique_images(images)[1], strict=True)):
        same_as.append(first_of.setdefault((prompt, image), row))
        if same_as[-1] == row:
            rows_of.setdefault(image, []).append(row)
    groups = list(rows_of.values())
    preparations = preparations_of(scorers)
    step = min((scorer.batch_size for scorer in scorers), default=1)
    with torch.inference_mode(), long_prompts_reported_once(scorers, prompts):
        for start in range(0, len(groups), step):
            rows = [row for group in groups[start : start + step] for row in group]
            batches = prepare_together(preparations, [prompts[r] for r in rows], [images[r] for r in rows])
            for number, found in enumerate(rewards_together(scorers, batches)):
                rewards[number, rows] = found.cpu()
    rewards = rewards[:, same_as]
    for scorer, found in zip(scorers, rewards, strict=True):
        _check_finite(found, scorer.name)
    return rewards.tolist()


@contextmanager
def long_prompts_reported_once(scorers: Sequence[Scorer[Any]], prompts: Sequence[str]) -> Iterator[None]:
    """Report the long prompts among all that the block will score, before any work is done, and not once more with each batch."""
    for tokenizer in _distinct(preparation.tokenizer for preparation in preparations_of(scorers)):
        tokenizer(prompts)
    with long_prompt_warnings_suppressed():
        yield


def preparations_of(scorers: Sequence[Scorer[Any]]) -> list[Preparation]:
    """What makes the batches that ``rewards_together`` takes: one preparation for each part of each scorer."""
    return [part.prepare for scorer in scorers for part in scorer.parts]


def rewards_together(scorers: Sequence[Scorer[Any]], batches: Sequence[Batch]) -> list[Tensor]:
    """Rewards [N] of each scorer, for batches of ``prepare_together(preparations_of(scorers), …)``.

    An image tower that several parts share encodes each image once.
    """
    known: dict[tuple[int, int], list[Any]] = {}  # (tower, pixels) -> what it made of them, in the order in which it was asked
    of_parts = []
    for part, batch in zip([part for scorer in scorers for part in scorer.parts], batches, strict=True):
        shared = known.get((id(part.image_tower), id(batch.pixels)))
        if shared is None:
            shared = known[id(part.image_tower), id(batch.pixels)] = []
            of_parts.append(part(batch, _remembering(part.encode_images, shared)))
        else:
            remembered = iter(shared)
            of_parts.append(part(batch, lambda _, remembered=remembered: next(remembered)))  # the same rows: the same images, in order
    rest = iter(of_parts)
    return [scorer.combined(torch.stack([next(rest) for _ in scorer.parts])) for scorer in scorers]


def cosines(images: Tensor, ids: Tensor, mask: Tensor, encode_prompts: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What ``Scorer.read`` returns where prompts do not look at images: the products [I, P] of features of length 1, float32.

    ``images``: their features [I, D]. Each distinct prompt is encoded once, however many images it meets.
    """
    length = ids.shape[-1]
    rows = torch.cat([ids.masked_fill(~mask, 0), mask.long()], dim=-1).flatten(0, 1)
    distinct, place = rows.unique(dim=0, return_inverse=True)
    prompts = encode_prompts(distinct[:, :length], distinct[:, length:].bool())
    # Not a matrix product, which autocast would round.
    return (prompts[place].view(*ids.shape[:2], -1).float() * images[:, None].float()).sum(dim=-1)


def _remembering(encode: Callable[[Tensor], Features], memory: list[Features]) -> Callable[[Tensor], Features]:
    def encode_and_remember(pixels: Tensor) -> Features:
        memory.append(encode(pixels))
        return memory[-1]

    return encode_and_remember


def _check_finite(rewards: Tensor, name: str) -> None:
    if not bool(rewards.isfinite().all()):
        raise RewardError(
            f"{name} gave a reward that is not a finite number; float16 overflows on some weights: use dtype float32 or bfloat16"
        )
