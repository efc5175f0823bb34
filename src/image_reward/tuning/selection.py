"""Choosing among a generator's images by a reward: the cheapest use of a reward, without training and for any scorer and pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from image_reward.errors import InputError
from image_reward.files import written_whole
from image_reward.prompts import check_prompts
from image_reward.scorers.base import Scorer
from image_reward.scorers.loading import load
from image_reward.tuning.sampling import check_call_arguments, check_single_frame, refusals
from image_reward.types import Comparison

Model = str | os.PathLike[str] | Scorer[Any]
"""A loaded scorer, or what ``image_reward.load`` takes."""


@dataclass(frozen=True)
class BestOf:
    """Images of one prompt with their rewards, in the order of their seeds."""

    prompt: str
    rewards: list[float]
    seeds: list[int]
    images: list[Image.Image] = field(repr=False)

    @property
    def index(self) -> int:
        """The place of the best image; the first of several that are equally good."""
        return max(range(len(self.rewards)), key=self.rewards.__getitem__)

    @property
    def image(self) -> Image.Image:
        """The best image."""
        return self.images[self.index]

    @property
    def reward(self) -> float:
        """Of the best image."""
        return self.rewards[self.index]

    @property
    def seed(self) -> int:
        """The seed that makes the best image again."""
        return self.seeds[self.index]


def best_of(
    pipe: Any,
    prompt: str,
    n: int,
    model: Model = "ImageReward-v1.0",
    *,
    seed: int = 0,
    batch_size: int = 4,
    **call_arguments: Any,
) -> BestOf:
    """Generate ``n`` images for a prompt and score them.

    Args:
        pipe: A text-to-image pipeline of diffusers.
        prompt: For generator and scorer.
        n: Number of images.
        model: A loaded scorer, or what ``image_reward.load`` takes. Load it yourself for several prompts.
        seed: Of the first image; the others have the seeds that follow. Image i is the one that the pipeline makes alone with
            ``generator=torch.Generator().manual_seed(seed + i)``, apart from rounding, whatever the batch size.
        batch_size: Images that are generated at once.
        call_arguments: Further arguments of the pipeline, as ``num_inference_steps``.

    Raises ``InputError`` for arguments that make no sense, here or to the pipeline, and what ``load`` and ``Scorer.score`` raise.

    >>> best = BestOf("a cat", rewards=[0.5, 1.5, -1.0], seeds=[7, 8, 9], images=[Image.new("L", (8, 8), grey) for grey in range(3)])
    >>> best
    BestOf(prompt='a cat', rewards=[0.5, 1.5, -1.0], seeds=[7, 8, 9])
    >>> best.reward, best.seed, best.image is best.images[1]
    (1.5, 8, True)
    """
    check_prompts([prompt])
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    check_call_arguments(pipe, "best_of()", call_arguments)
    scorer = loaded(model)
    seeds = list(range(seed, seed + n))
    images: list[Image.Image] = []
    for start in range(0, n, batch_size):
        generators = [torch.Generator().manual_seed(each) for each in seeds[start : start + batch_size]]
        with refusals(pipe):
            made = pipe(prompt=[prompt] * len(generators), generator=generators, output_type="pil", return_dict=False, **call_arguments)[0]
        images += [_image(image, pipe) for image in made]
    return BestOf(prompt, scorer.score(prompt, images), seeds, images)


def preference_pairs(
    pipe: Any,
    prompts: Sequence[str],
    n: int,
    model: Model = "ImageReward-v1.0",
    *,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int = 4,
    **call_arguments: Any,
) -> list[Comparison]:
    """The best and the worst of ``n`` images for each prompt: comparisons (winner, loser) with the ranks (1, 2).

    They are what methods that learn from pairs need (Diffusion-DPO, Wallace et al. 2023, arXiv 2311.12908), made of the generator's own
    images. Prompt i has the id i and the seeds from ``seed + i * n``. A prompt whose images all have one reward gives no pair.

    With a ``folder``, images are written there as PNG, named by id and seed, and the comparisons hold their paths, so that
    ``image_reward.comparisons.write`` can save them; otherwise they hold the images. ``comparisons.write_pick_a_pic`` saves either for
    diffusers' Diffusion-DPO trainer. Other arguments are those of ``best_of``.

    Raises ``InputError`` for arguments that make no sense, and what ``load`` and ``Scorer.score`` raise.
    """
    check_prompts(prompts)
    if n < 2:
        raise InputError(f"a pair needs n of at least 2 images, not {n}")
    scorer = loaded(model)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    pairs = []
    for row, prompt in enumerate(prompts):
        made = best_of(pipe, prompt, n, scorer, seed=seed + row * n, batch_size=batch_size, **call_arguments)
        worst = min(range(n), key=made.rewards.__getitem__)
        if made.rewards[worst] == made.reward:
            continue
        images: list[Any] = [made.image, made.images[worst]]
        if folder is not None:
            images = [save_png(made.images[place], Path(folder) / f"{row}-{made.seeds[place]}.png") for place in (made.index, worst)]
        pairs.append(Comparison(prompt, tuple(images), (1, 2), id=str(row), source=scorer.name))
    return pairs


def loaded(model: Model, device: str | None = None) -> Scorer[Any]:
    """The scorer that ``model`` is, or what ``image_reward.load`` makes of it on the device."""
    return model if isinstance(model, Scorer) else load(model, device)


def _image(made: Any, pipe: Any) -> Image.Image:
    if isinstance(made, list):  # a video
        check_single_frame(pipe, len(made))
        return made[0]
    return made


def save_png(image: Image.Image, path: Path, **text: object) -> str:
    """Write an image whole or not at all, with ``text`` by keys in the file; returns the path."""
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, str(value))
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=chunks)
    return os.fspath(path)
