"""What the original implementation computes on ``seeded.weights``, and the ways to ask a scorer for the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import seeded
from image_reward.scorers import Scorer

DATA = Path(__file__).parent / "data"
TOLERANCE = 2e-5
"""Of rewards of order one in float32, whatever the processor, the number of threads, and the order in which sums are taken.

The original's own float32 and float64 differ by 1.2e-6 on these weights; the least of the usual mistakes, a tanh GELU, by 1.5e-4.
"""


@dataclass(frozen=True)
class Original:
    prompts: list[str]
    images: list[Path | Image.Image]
    rewards: NDArray[Any]
    """[prompts, images]"""
    rankings: list[list[int]]
    """For each prompt the ranks of the images, 1 for the best."""
    blip_itc: NDArray[Any]
    """[prompts, images], BLIP's contrastive score"""
    pixels: list[dict[str, Any]]
    """What is recorded of each image after the transform: see ``assert_pixels``."""
    token_ids: list[list[int]]

    @classmethod
    def read(cls, file: Path, seed: int, photos: Path) -> Original:
        """``file``: recorded values; ``photos``: the folder with the images that it calls 1 to 4."""
        values = json.loads(file.read_text(encoding="utf-8"))
        images = [next(photos.glob(f"{image[0]}.*")) if isinstance(image, str) else seeded.image(*image) for image in values["images"]]
        by_seed = values[str(seed)]
        rewards, blip_itc = (np.array(by_seed[name]) for name in ("rewards", "blip_itc"))
        return cls(values["prompts"], images, rewards, by_seed["rankings"], blip_itc, values["pixels"], values["token_ids"])


def tiny(seed: int) -> Original:
    """Of ``seeded.TINY``: 8 prompts with 8 images, four photos of the original's and the first four of ``seeded.IMAGES``."""
    return Original.read(DATA / "scores_tiny_conditioned.json", seed, DATA / "photos_64")


def one_by_one(scorer: Scorer[Any], prompts: Sequence[str], images: Sequence[Any]) -> NDArray[Any]:
    return np.array([[scorer.score(prompt, image) for image in images] for prompt in prompts])


def in_batches(size: int) -> Callable[[Scorer[Any], Sequence[str], Sequence[Any]], NDArray[Any]]:
    """As aligned pairs, in an order in which neighbours differ in image and in length of prompt."""

    def ask(scorer: Scorer[Any], prompts: Sequence[str], images: Sequence[Any]) -> NDArray[Any]:
        scorer.batch_size = size
        pairs = np.random.default_rng(size).permutation([(p, i) for p in range(len(prompts)) for i in range(len(images))])
        rewards = np.empty((len(prompts), len(images)))
        rewards[tuple(pairs.T)] = scorer.score([prompts[p] for p, _ in pairs], [images[i] for _, i in pairs])
        return rewards

    return ask


def in_matrices(size: int) -> Callable[[Scorer[Any], Sequence[str], Sequence[Any]], NDArray[Any]]:
    def ask(scorer: Scorer[Any], prompts: Sequence[str], images: Sequence[Any]) -> NDArray[Any]:
        scorer.batch_size = size
        return scorer.matrix(prompts, images)

    return ask


def by_prompt(scorer: Scorer[Any], prompts: Sequence[str], images: Sequence[Any]) -> NDArray[Any]:
    return np.array([scorer.rank(prompt, images).rewards for prompt in prompts])


WAYS = {
    "one by one": one_by_one,
    "prompt by prompt": by_prompt,
    **{f"pairs in batches of {size}": in_batches(size) for size in (1, 3, 8, 64)},
    **{f"matrix in batches of {size}": in_matrices(size) for size in (1, 3, 8)},
}
"""Each way to ask for the reward of every prompt with every image, [prompts, images]."""


def assert_pixels(transform: Callable[[Any], Tensor], images: Sequence[Any], recorded: Iterable[dict[str, Any]]) -> None:
    """Normalised pixels [3, S, S]: their sums, and single ones at the top left and in the centre. A grey level is about 0.015."""
    for image, values in zip(images, recorded, strict=True):
        pixels = transform(image)
        half = pixels.shape[-1] // 2
        assert list(pixels.shape) == values["shape"]
        assert pixels.double().abs().sum().item() == pytest.approx(values["abs_sum"], rel=1e-6)
        assert pixels.double().sum().item() == pytest.approx(values["sum"], abs=1e-6 * values["abs_sum"])
        assert pixels[:, 0, :3].flatten().tolist() == pytest.approx(values["first_row"], abs=1e-5)
        assert pixels[:, half, half].tolist() == pytest.approx(values["centre"], abs=1e-5)
