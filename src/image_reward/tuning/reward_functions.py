"""A scorer as the reward function that other programs' trainers call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from image_reward.errors import ImageReadError
from image_reward.tuning.selection import Model, loaded

if TYPE_CHECKING:
    from numpy.typing import NDArray

RewardFunction = Callable[..., tuple[list[float], dict[str, Any]]]


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
