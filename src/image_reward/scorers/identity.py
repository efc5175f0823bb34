"""What tells one scorer from another that would give other rewards, so that saved rewards are not taken for those of another scorer."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from image_reward.scorers.base import Scorer
from image_reward.scorers.precision import is_quantized


def identity_of(scorer: Scorer[Any]) -> dict[str, str]:
    """What rewards depend on: kind, weights, dtype, and what is done to images and prompts. The device is not among it."""
    config = getattr(scorer, "config", None)
    tensors = dict(chain(scorer.named_parameters(), scorer.named_buffers()))  # a state dict is refused where weights are int8
    dtypes = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()}
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        weights = tensors[name].detach()
        tensor = (weights if type(weights) is Tensor else weights.dequantize()).cpu().contiguous().reshape(-1)
        whole.update(f"{name} {tensor.dtype} {tuple(weights.shape)}\n".encode())
        whole.update(tensor.view(torch.uint8).numpy().data)
    return {
        "name": scorer.name,
        "kind": f"{type(scorer).__module__}.{type(scorer).__qualname__}",
        "dtype": ", ".join(sorted(dtypes | ({"int8"} if is_quantized(scorer) else set()))),
        "weights": whole.hexdigest(),
        "config": _hash(repr(config)),
        "preparation": _hash(repr(scorer.prepare)),
    }


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
