"""What every scorer has in common, whatever its network looks like: how questions become batches, and rewards become answers.

A scorer says what it makes of prompts and images (``prepare``) and what reward it gives that (``forward``). Nobody else looks inside a
batch. Scorers with an image tower and a text tower are in ``two_tower``; several scorers at once in ``together``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from image_reward.config import TieConfig
from image_reward.displays import properties_html
from image_reward.errors import ImageReadError, InputError, RewardError
from image_reward.images import ImageLike, describe, unique_images
from image_reward.metrics import win_probability
from image_reward.prompts import check_prompts, long_prompt_warnings_suppressed
from image_reward.scorers.outcomes import not_finite, of_image, outcome_of
from image_reward.types import Preference, Ranking

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

B = TypeVar("B", bound="Batch")


class Batch(Protocol):
    """Rows, each a prompt with an image, as CPU tensors that one kind of scorer understands. Picklable."""

    def __len__(self) -> int:
        """The number of rows."""

    def to(self, device: torch.device | str) -> Any:
        """The same batch with its tensors on a device."""

    def select(self, rows: Sequence[int]) -> Any:
        """The batch of these rows, in this order."""

    # It may also have ``keys()`` and ``join(others)``: see ``keys_of`` and ``joined``.


def keys_of(batch: Any) -> list[Hashable] | None:
    """A key for each row, equal for rows that are the same to the scorer and so get one reward; None from batches without any."""
    return batch.keys() if hasattr(batch, "keys") else None


def joined(batches: Sequence[Any]) -> Any | None:
    """One batch of the rows of several that one processor made, so that they are computed at once; None from batches that cannot."""
    if len(batches) == 1:
        return batches[0]
    return batches[0].join(batches[1:]) if hasattr(batches[0], "join") else None


class Processor(ABC, Generic[B]):
    """Prompts and images -> a batch: CPU work without the network, small and picklable for loader processes.

    One that opens images by other ``ImageOptions`` than the default has them as ``options``.
    """

    @abstractmethod
    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> B:
        """``prompts`` and ``images`` are aligned lists of one length.

        Raises ``ValueError`` for unequal lengths, ``PromptError``, ``FileNotFoundError`` or ``ImageReadError``.
        """

    def check(self, prompts: Sequence[str]) -> None:
        """Report or refuse the prompts that would be cut. It is called with all prompts of a request, before any work is done."""
        check_prompts(prompts)


class Scorer(nn.Module, ABC, Generic[B]):
    """A prompt and an image -> a reward: higher is better."""

    name: str
    prepare: Processor[B] | Callable[[Sequence[str], Sequence[ImageLike]], B]
    """Prompts and images -> a batch: a ``Processor``, or any function that is picklable."""
    tie: TieConfig | None = None
    scale: float = 1.0
    """Units in which the loss was trained per unit of reward: ``compare`` multiplies reward differences by it."""
    reference: str | None = None
    """The published reward distribution that rewards may be compared with, where there is one."""
    reads_prompt: bool = True
    """False if the reward depends on the image alone."""
    whole_images: bool = False
    """Whether ``batch_size`` counts images, each with all of its prompts, because an image is encoded once for all; else it counts rows."""
    kept_as: str = "the files that it was loaded from"
    """Of a scorer without a format of this package: what in a folder is this scorer again, or in other places."""
    default_dtype: torch.dtype = torch.float32
    """What ``load`` computes in where nothing is asked for."""
    default_batch_sizes: tuple[int, int] = (8, 64)
    """Of ``load``: on a CPU, and elsewhere."""
    batch_size_by_trial: bool = True
    """Whether jobs may find the fastest batch size by trial; False where a single batch takes long."""
    is_spread: bool = False
    """Whether its parts are on several devices, where they must stay."""
    has_uncertainty: bool = False
    """Whether ``estimates`` gives the standard deviation of each reward too."""

    @abstractmethod
    def forward(self, batch: B) -> Tensor:
        """Rewards [N] of a batch of N rows on any device, float32, differentiable where the network is.

        Raises ``RefusedRowsError`` where single rows have no reward, with the rewards of the others.
        """

    def estimates(self, batch: B) -> Tensor:
        """The reward of each row [N, 1], or with ``has_uncertainty`` the reward and its standard deviation [N, 2]."""
        return self(batch)[:, None]

    def __setattr__(self, name: str, value: Any) -> None:
        # ``nn.Module`` files a module under its name before it looks for a property of that name, which would go on answering as before.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        """One line, where a module would print all of its parts; those of its networks print as ever."""
        dtype, num_parameters = self._dtype_and_size()
        return f"{type(self).__name__}({self.name!r}, {self.device}, {dtype}, {num_parameters:,} parameters)"

    def _repr_html_(self) -> str:
        """For notebooks: a table of what the scorer is and how its rewards are to be read."""
        dtype, num_parameters = self._dtype_and_size()
        tie = f"{self.tie.model}, {self.tie.parameter:.4g}" if self.tie else "not modelled"
        rows = {
            "kind": type(self).__name__,
            "device": str(self.device),
            "dtype": dtype,
            "parameters": f"{num_parameters:,}",
            "reads the prompt": "yes" if self.reads_prompt else "no",
            "ties": tie,
        }
        return properties_html(self.name, rows.items())

    def _dtype_and_size(self) -> tuple[str, int]:
        """The dtype of the weights, and their number."""
        weights = list(self.parameters())
        return str(weights[0].dtype).removeprefix("torch.") if weights else "no weights", sum(weight.numel() for weight in weights)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @property
    def batch_size(self) -> int:
        """How much passes through the network at once (see ``whole_images``). Rewards do not depend on it, beyond rounding."""
        return self.__dict__.get("_batch_size", 8)

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        self.__dict__["_batch_size"] = batch_size

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in ``dtype``."""
        self.to(dtype)

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:  # noqa: ARG002 - for scorers that can
        """Rewards [B] of images as float tensors [B, 3, H, W] in [0, 1], with gradients to the pixels.

        One prompt serves all images; a list is aligned with them. Raises ``ValueError`` where the scorer has no such way.
        """
        raise ValueError(f"{self.name} gives no gradients to pixels, so it has no rewards(); score() takes any image")

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
        """Rewards of every prompt with every image, [len(prompts), len(images)], float32.

        Raises what ``score`` raises, and ``ValueError`` for several prompts where the scorer reads none.
        """
        self._check_matrix(prompts, images)
        rewards = self._score_pairs([prompt for prompt in prompts for _ in images], list(images) * len(prompts))
        return np.array(rewards, dtype=np.float32).reshape(len(prompts), len(images))

    def _check_matrix(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> None:
        if not isinstance(prompts, list | tuple) or not isinstance(images, list | tuple):
            raise ValueError("matrix() takes a list of prompts and a list of images")
        check_prompts(prompts)
        if not self.reads_prompt and len(prompts) > 1:
            raise InputError(
                f"{self.name} does not read the prompt: all {len(prompts)} rows would be the same; give matrix() one prompt, or use score()"
            )

    def rank(self, prompt: str, images: Sequence[ImageLike]) -> Ranking:
        """The images of one prompt in order of reward. Raises ``ValueError`` for no images: there is nothing to rank."""
        if not isinstance(images, list | tuple) or not images:
            raise ValueError("rank() takes a list of at least one image")
        return Ranking.from_rewards(self._score_pairs([prompt] * len(images), list(images)), images)

    def compare(self, prompt: str, a: ImageLike, b: ImageLike) -> Preference:
        """How likely people are to prefer ``a`` to ``b`` for a prompt, by the model the rewards were learned with.

        Bradley-Terry in the raw units of the head, or with a fitted tie parameter Davidson's or Rao and Kupper's model: the formulas are
        those of ``metrics.win_probability``.
        """
        (first, second), *deviations = self._estimated([prompt, prompt], [a, b]).tolist()
        spreads = (deviations[0][0], deviations[0][1]) if deviations else None
        return replace(self.preference(first, second, spreads), images=(a, b))

    @property
    def compares_rewards(self) -> bool:
        """Whether ``compare`` follows from the rewards of both images; of a scorer that is asked about the pair it does not."""
        return type(self).compare is Scorer.compare

    def preference(self, a: float, b: float, spreads: tuple[float, float] | None = None) -> Preference:  # noqa: ARG002 - see HPSv3
        """What ``compare`` says of two rewards, and of their standard deviations where the scorer gives them."""
        a_better, b_better = self.win_probability([a - b, b - a]).tolist()
        tie = max(0.0, 1.0 - a_better - b_better) if self.tie else 0.0
        return Preference(a_better, tie, b_better, (a, b))

    def win_probability(self, differences: ArrayLike) -> NDArray[Any]:
        """Differences of rewards a - b [N] -> the probabilities that people put a above b [N]."""
        raw = self.scale * np.asarray(differences, dtype=np.float64)
        return win_probability(raw, self.tie.model, self.tie.parameter) if self.tie else win_probability(raw)

    def save_pretrained(self, folder: str | Path) -> None:  # noqa: ARG002 - for scorers that can
        """Write this scorer in the package's own format. Raises ``InputError`` where it has none, as this package does not train it."""
        raise InputError(
            f"{self.name} ({type(self).__name__}) has no format of this package, which does not train it, so it cannot be saved; keep "
            f"{self.kept_as}, and load those again"
        )

    def _score_pairs(self, prompts: list[str], images: list[ImageLike]) -> list[float]:
        rewards: list[float] = self._estimated(prompts, images)[0].tolist()
        return rewards

    def _estimated(self, prompts: list[str], images: Sequence[ImageLike]) -> Tensor:
        """What ``estimates`` gives of aligned prompts and images, [1 or 2, N], on the CPU."""
        num_values = 1 + self.has_uncertainty
        if not prompts:
            return torch.empty(num_values, 0, device="cpu")
        self.check_evaluating()
        getattr(self.prepare, "check", check_prompts)(prompts)
        with long_prompt_warnings_suppressed():
            return score_rows(
                [self.name] * num_values,
                prompts,
                images,
                self.batch_size,
                self.whole_images,
                lambda prompts, images: [self.prepare(prompts, images)],
                lambda batches: [self.estimates(batches[0])],
            )

    def check_evaluating(self) -> None:
        """Raise ``RewardError`` in training mode, in which dropout makes rewards random."""
        if any(module.training for module in self.modules() if isinstance(module, nn.Dropout)):
            raise RewardError("the scorer is in training mode, in which dropout makes rewards random; call its eval() first")


def score_rows(
    names: Sequence[str],
    prompts: Sequence[str],
    images: Sequence[ImageLike],
    batch_size: int,
    whole_images: bool,
    prepare: Callable[[Sequence[str], Sequence[ImageLike]], Sequence[Any]],
    forward: Callable[[Sequence[Any]], Sequence[Tensor]],
    reasons: dict[int, RewardError] | None = None,
) -> Tensor:
    """The values [M, N] of aligned prompts and images, on the CPU: the one loop from rows to rewards.

    ``prepare`` makes batches of some of the rows, and ``forward`` gives their values, [N] or [N, K] each and M in all: rewards of each
    scorer, or the estimates of one. ``names`` are the scorers' that the values are of [M]. Rounding depends on what shares a batch, so
    equal rows are computed once: copies of an image get one reward, and keep their order.

    Rows without a reward are NaN, and ``reasons`` gets why, by their numbers. Raises what these raise, and without ``reasons``
    ``RewardError`` that names the image for such a row.
    """
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts and {len(images)} images: aligned lists must have the same length")
    rewards = torch.empty(len(names), len(prompts), dtype=torch.float32, device="cpu")
    # A row is equal to an earlier one if prompt and image are the same, which shows now, or if the scorers see the same in it (a copy of
    # the image under another name), which shows when it has been prepared.
    first_asked: dict[Hashable, int] = {}
    first_seen: dict[Hashable, int] = {}
    equal_to = list(range(len(prompts)))
    rows_of: dict[int, list[int]] = {}  # image -> its rows
    for row, (prompt, image) in enumerate(zip(prompts, unique_images(images)[1], strict=True)):
        equal_to[row] = first_asked.setdefault((prompt, image), row)
        if equal_to[row] == row:
            rows_of.setdefault(image, []).append(row)
    groups = list(rows_of.values()) if whole_images else [[row] for rows in rows_of.values() for row in rows]
    with inference():
        start = 0
        while start < len(groups):
            rows = [row for group in groups[start : start + batch_size] for row in group]
            start += batch_size
            batches = prepare([prompts[row] for row in rows], [images[row] for row in rows])
            keys = [known for batch in batches if (known := keys_of(batch)) is not None]
            if len(keys) == len(batches):
                for row, key in zip(rows, zip(*keys, strict=True), strict=True):
                    equal_to[row] = first_seen.setdefault(key, row)
                new = [place for place, row in enumerate(rows) if equal_to[row] == row]
                if len(new) < len(rows):
                    rows, batches = [rows[place] for place in new], [batch.select(new) for batch in batches]
            if not rows:
                continue
            outcome = outcome_of(names, forward, batches)
            for place, reason in sorted(outcome.reasons.items()):
                if reasons is None:
                    raise of_image(reason, describe(images[rows[place]]))
                reasons[rows[place]] = reason
            rewards[:, rows] = outcome.rewards
            batch_size = min(batch_size, outcome.num_at_once or batch_size)
    computed = [equal_to[row] for row in equal_to]
    if reasons:
        reasons |= {row: reasons[equal] for row, equal in enumerate(computed) if equal in reasons}
    return rewards[:, computed]


def check_finite(rewards: Tensor, name: str) -> None:
    """Raise ``RewardError`` rather than return a reward that is NaN or infinite."""
    if not bool(rewards.isfinite().all()):
        raise not_finite(name)


def prompts_for(pixels: Tensor, prompts: str | Sequence[str]) -> list[str]:
    """The prompts of ``rewards(prompts, pixels)``, one for each image. Raises ``ImageReadError`` or ``ValueError``."""
    if not isinstance(pixels, Tensor):
        raise ImageReadError(f"rewards() takes a float tensor [B, 3, H, W], not {type(pixels).__name__}; score() takes any image")
    aligned = [prompts] * len(pixels) if isinstance(prompts, str) else list(prompts)
    if len(aligned) != len(pixels):
        raise ValueError(f"{len(aligned)} prompts and {len(pixels)} images: aligned lists must have the same length")
    return aligned


@contextmanager
def inference() -> Iterator[None]:
    """``torch.inference_mode``, after which gradients can be computed in the same autocast region.

    Autocast keeps the weights that it has converted. In PyTorch 2.6 it would hand those of inference, which nothing can differentiate, to
    the computation that follows.
    """
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.clear_autocast_cache()
