"""A scorer as the reward function that other programs' trainers call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from image_reward.errors import ImageReadError, InputError
from image_reward.scorers.loading import load_all
from image_reward.scorers.together import score_together
from image_reward.tuning.selection import Model, loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

RewardFunction = Callable[..., tuple[list[float], dict[str, Any]]]
MultiRewardFunction = Callable[..., tuple[dict[str, list[float]], dict[str, Any]]]


def reward_function(model: Model = "ImageReward-v1.0", device: str | None = None) -> RewardFunction:
    """``f(images, prompts, metadata) -> (scores, info)``, which is how flow_grpo, DDPO and their kin call a reward.

    ``images`` are floats in [0, 1], [N, 3, H, W], or uint8 [N, H, W, 3]; tensors or arrays. ``prompts`` are N texts. ``metadata`` is not
    read. ``scores`` are N floats: those of the images rounded to 8 bits, as they would be saved, and so without gradients. ``info`` is
    empty.

    ``device`` is for a model that is loaded here. Raises what ``image_reward.load`` raises; the function raises ``ImageReadError`` for
    other shapes and ranges, ``ValueError`` for prompts that are not one for each image, and what ``Scorer.score`` raises.
    """
    scorer = loaded(model, device)

    def rewards(images: Tensor | NDArray[Any], prompts: Sequence[str], metadata: Any = None) -> tuple[list[float], dict[str, Any]]:  # noqa: ARG001
        return scorer.score(list(prompts), _single_images(images)), {}

    return rewards


def multi_reward_function(weights: Mapping[str, float], device: str | None = None) -> MultiRewardFunction:
    """``f(images, prompts, metadata) -> (scores, info)`` of several scorers, which is what flow_grpo's ``multi_score`` returns.

    ``weights`` are by what ``image_reward.load`` takes, as in ``{"ImageReward-v1.0": 1.0, "CLIP": 5.0}``; scorers open and encode images
    together. ``scores`` has the N rewards of each scorer by the same names, and as "avg" their weighted sum, as flow_grpo calls it.
    Rewards of different scorers are on different scales; ``scorers.Ensemble`` normalises them. Further arguments of the function, such as
    ``only_strict``, are not read.

    Raises ``InputError`` for no weights, or a scorer called "avg"; otherwise as ``reward_function``.
    """
    if not weights or "avg" in weights:
        raise InputError("weights must name at least one scorer, and none may be called 'avg'")
    scorers = load_all(list(weights), device)

    def rewards(
        images: Tensor | NDArray[Any],
        prompts: Sequence[str],
        metadata: Any = None,  # noqa: ARG001
        *_: Any,
        **__: Any,
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        scores = dict(zip(weights, score_together(scorers, list(prompts), _single_images(images)), strict=True))
        total = [
            sum(weights[name] * reward for name, reward in zip(weights, row, strict=True)) for row in zip(*scores.values(), strict=True)
        ]
        return {**scores, "avg": total}, {}

    return rewards


def _single_images(images: Tensor | NDArray[Any]) -> list[Any]:
    """Each image in a form that ``open_image`` takes: a float tensor [3, H, W], or a uint8 array [H, W, 3]."""
    array = images.detach().cpu() if isinstance(images, Tensor) else np.asarray(images)
    name = f"{type(images).__name__} {array.dtype} {list(array.shape)}"
    is_float = array.is_floating_point() if isinstance(array, Tensor) else np.issubdtype(array.dtype, np.floating)
    if array.ndim == 4 and is_float and array.shape[1] == 3:
        return list(array) if isinstance(array, Tensor) else [image.transpose(1, 2, 0) for image in array]
    if array.ndim == 4 and not is_float and array.shape[3] == 3:
        return list(np.asarray(array))  # open_image refuses integers other than uint8
    raise ImageReadError(f"images must be floats [N, 3, H, W] in [0, 1] or uint8 [N, H, W, 3], not {name}")
