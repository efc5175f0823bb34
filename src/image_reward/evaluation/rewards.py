"""Rewards for comparisons: computed now by scorers, or read from a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np

from image_reward.addresses import Address, PathLike
from image_reward.comparisons import normalized_prompt
from image_reward.errors import ComparisonError, RewardError
from image_reward.images import describe, unique_images
from image_reward.prompt_sets import first_few, repeated
from image_reward.scorers import Scorer
from image_reward.scorers.outcomes import of_image
from image_reward.scorers.together import long_prompts_reported_once, score_together
from image_reward.types import Comparison

_LARGEST_FILE = 1 << 30  # bytes; the rewards of a million images take a tenth of it, digits and ids included

Rewards = Union[Sequence[Sequence[float]], Mapping[str, Sequence[float]]]


def score_comparisons(
    scorers: Sequence[Scorer[Any]],
    comparisons: Sequence[Comparison],
    on_image: Callable[[int, int], None] | None = None,
    reasons: dict[int, RewardError] | None = None,
) -> list[list[list[float]]]:
    """For each scorer, the reward of each image of each comparison.

    An image is opened once, and encoded once by each image tower, however many comparisons it is in and however many scorers there are.
    Long prompts are warned of once for all comparisons. With ``reasons``, an image that a scorer gives no reward is NaN, and they get why,
    by the place of its comparison; otherwise it is an error.
    """
    places = [(c, i) for c, comparison in enumerate(comparisons) for i in range(len(comparison.images))]
    unique, index = unique_images([comparisons[c].images[i] for c, i in places])
    rows_of: list[list[int]] = [[] for _ in unique]
    for row, image in enumerate(index):
        rows_of[image].append(row)
    rewards = [[[math.nan] * len(comparison.images) for comparison in comparisons] for _ in scorers]
    step = 4 * min(scorer.batch_size for scorer in scorers)
    with long_prompts_reported_once(scorers, [comparison.prompt for comparison in comparisons]):
        for start in range(0, len(unique), step):
            chosen = [places[row] for rows in rows_of[start : start + step] for row in rows]
            prompts, images = [comparisons[c].prompt for c, _ in chosen], [comparisons[c].images[i] for c, i in chosen]
            refused: dict[int, RewardError] | None = None if reasons is None else {}
            together = score_together(scorers, prompts, images, refused)
            if reasons is not None:
                for row, reason in (refused or {}).items():
                    reasons.setdefault(chosen[row][0], of_image(reason, describe(images[row])))
            for of_scorer, scored in zip(rewards, together, strict=True):
                for (c, i), reward in zip(chosen, scored, strict=True):
                    of_scorer[c][i] = reward
            if on_image:
                on_image(min(start + step, len(unique)), len(unique))
    return rewards


def read_rewards(path: PathLike | Address, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """Rewards that were saved earlier, aligned with ``comparisons``.

    The file is JSON: [[reward, ..], ..] aligned with them, {id: [reward, ..]}, or a list of objects with ``id``, ``rewards`` and optionally
    ``prompt``. Rewards of other ids are ignored.

    Raises ``FileNotFoundError``, and ``ComparisonError`` that names the file and an id that appears twice, prompts that are missing or
    differ from those of the comparisons, images without a reward, or a reward that is not a finite number.
    """
    name = Address.parse(path)
    if name.kind() != "file":
        raise FileNotFoundError(f"no such file of rewards: {name}")
    content = name.read_json(_LARGEST_FILE, ComparisonError)
    try:
        return aligned(_rewards_in(content, comparisons), comparisons)
    except ComparisonError as error:
        raise ComparisonError(f"{name}: {error}") from None


def aligned(rewards: Rewards, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """One list for each comparison, checked: missing rewards are an error. Rewards of other ids are ignored."""
    if isinstance(rewards, Mapping):
        missing = [f"{c.id} ({c.prompt[:40]!r})" for c in comparisons if c.id not in rewards]
        if missing:
            raise ComparisonError(
                f"there are no rewards for {len(missing)} of {len(comparisons)} prompts: {first_few(missing)}; "
                "score them too, or evaluate on the others"
            )
        rewards = [rewards[c.id] for c in comparisons]
    elif len(rewards) != len(comparisons):
        raise ComparisonError(
            f"there are rewards for {len(rewards)} prompts, but {len(comparisons)} comparisons: "
            "a list must be aligned with them; use {id: rewards} for others"
        )
    wrong = [f"{c.id} ({len(row)} for {len(c.images)})" for c, row in zip(comparisons, rewards, strict=True) if len(row) != len(c.images)]
    if wrong:
        raise ComparisonError(f"{len(wrong)} prompts do not have one reward for each image: {first_few(wrong)}")
    checked = []
    for comparison, row in zip(comparisons, rewards, strict=True):
        for number, reward in enumerate(row, start=1):
            if isinstance(reward, bool) or not isinstance(reward, int | float | np.floating) or not math.isfinite(reward):
                raise ComparisonError(f"the reward of image {number} of {comparison.id} is {reward!r}; rewards must be finite numbers")
        checked.append([float(reward) for reward in row])
    return checked


def _rewards_in(content: Any, comparisons: Sequence[Comparison]) -> Rewards:
    """The content of a file, in the form that ``aligned`` takes."""
    if isinstance(content, list) and content and all(isinstance(row, dict) and {"id", "rewards"} <= set(row) for row in content):
        if twice := repeated([str(row["id"]) for row in content]):
            raise ComparisonError(
                f"{len(twice)} ids appear twice: {first_few(twice)}; keep the rewards of one scorer and one run in a file"
            )
        prompts = {str(row["id"]): row["prompt"] for row in content if row.get("prompt")}
        differing = [
            f"{c.id} ({str(prompts[c.id])[:40]!r}, not {c.prompt[:40]!r})"
            for c in comparisons
            if c.id in prompts and normalized_prompt(str(prompts[c.id])) != normalized_prompt(c.prompt)
        ]
        if differing:
            raise ComparisonError(
                f"the rewards of {len(differing)} ids are for other prompts than those that were ranked: {first_few(differing)}; "
                "score this data, or evaluate on the comparisons that these rewards are for"
            )
        content = {str(row["id"]): row["rewards"] for row in content}
    if isinstance(content, dict | list) and all(
        isinstance(row, list) for row in (content.values() if isinstance(content, dict) else content)
    ):
        return content
    raise ComparisonError(
        "it has no rewards. They are a list of lists aligned with the comparisons, {id: [rewards]}, "
        "or a list of objects with id and rewards"
    )
