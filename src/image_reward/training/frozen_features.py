"""The output of the frozen part of the image tower, computed once per image and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from image_reward.files import written_whole
from image_reward.models.blip import ImageRewardNetwork, KeysValues
from image_reward.scorers.imagereward import ImageRewardScorer


class FrozenFeatureScorer(ImageRewardScorer):
    """A scorer whose batches have the output of the image tower's first ``depth`` blocks, [I, T, W], in place of pixels."""

    depth = 0

    def encode_images(self, pixels: Tensor) -> list[KeysValues]:
        return self.network.finish_images(pixels, self.depth)


class FrozenFeatures:
    """A file of [images, T, W], float32: what autocast passes between blocks too, so that the loss stays the same.

    Memory-mapped, so that loader processes share it. An image that could not be read is a row of NaN.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: np.ndarray | None = None

    def get(self, number: int) -> Tensor | None:
        row = torch.from_numpy(np.array(self._open()[number]))
        return None if row[0, 0].isnan() else row

    def blank(self) -> Tensor:
        return torch.zeros(self._open().shape[1:])

    def _open(self) -> np.ndarray:
        if self._rows is None:
            self._rows = np.load(self.path, mmap_mode="r")
        return self._rows

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_rows": None}  # a loader process maps the file itself


def file_name(network: ImageRewardNetwork, depth: int, data: str) -> str:
    """A name that changes with the frozen weights, their depth and the data."""
    digest = hashlib.sha256(f"{depth} {data}".encode())
    for tensor in network.image_weights_to(depth).values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"features-{digest.hexdigest()[:16]}.npy"


@torch.no_grad()
def compute(path: Path, scorer: ImageRewardScorer, depth: int, crops: Iterable[tuple[Tensor, Tensor]], num_images: int) -> None:
    """``crops`` gives, in order, uint8 images [I, 3, S, S] and which of them are readable [I]. The file appears whole or not at all."""
    shape = (num_images, *scorer.network.image_tokens_shape)
    with written_whole(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for images, readable in crops:
            pixels = scorer.prepare.transform.normalize(images.to(scorer.device))
            tokens = scorer.network.begin_images(pixels, depth).float().cpu()
            rows[start : start + len(images)] = torch.where(readable[:, None, None], tokens, torch.nan).numpy()
            start += len(images)
        rows.flush()
        del rows
