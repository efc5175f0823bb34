"""A handler for Hugging Face Inference Endpoints: put it beside a model's files in a repository, and `image-reward` in requirements.txt.

An endpoint calls it with ``{"inputs": {"prompt": TEXT, "images": [BASE64, ...]}}`` and gets ``{"ranking": [...], "rewards": [...]}``. With
an image as the body (``inputs`` is then a PIL image) the prompt is in ``parameters``. A mistake of the caller is ``{"error": ...}``.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import image_reward


class EndpointHandler:
    def __init__(self, path: str = "") -> None:
        self.scorer = image_reward.load(path or "ImageReward-v1.0")

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        inputs, parameters = data.get("inputs"), data.get("parameters") or {}
        if not isinstance(inputs, dict):
            inputs = {"prompt": parameters.get("prompt"), "images": [inputs]}
        images = inputs.get("images")
        if not isinstance(inputs.get("prompt"), str) or not isinstance(images, list) or not images:
            return {"error": 'inputs: it is not {"prompt": TEXT, "images": [BASE64, ...]}; send both'}
        try:
            return self.scorer.rank(inputs["prompt"], [_image(image, number) for number, image in enumerate(images)]).as_dict()
        except image_reward.ImageRewardError as error:
            return {"error": str(error)}


def _image(image: Any, number: int) -> Any:
    if not isinstance(image, str):
        return image  # a PIL image, from an endpoint whose requests are images
    try:
        return base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
    except binascii.Error:
        raise image_reward.ImageReadError(f"inputs.images[{number}] is not base64; send the bytes of an image file in base64") from None
