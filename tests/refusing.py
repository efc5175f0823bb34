"""A scorer that refuses the rows of some prompts, as a judge does whose answer cannot be read; it rewards bright images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from image_reward.errors import AnswerError
from image_reward.images import ImageLike, ImageOptions, open_image
from image_reward.scorers import Scorer
from image_reward.scorers.outcomes import RefusedRowsError


class Rows(NamedTuple):
    prompts: list[str]
    brightness: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str) -> Rows:
        return self._replace(brightness=self.brightness.to(device))

    def select(self, rows: Sequence[int]) -> Rows:
        return Rows([self.prompts[row] for row in rows], self.brightness[list(rows)])


class Refusing(Scorer[Any]):
    def __init__(self, *refused: str) -> None:
        super().__init__()
        self.name, self.refused = "refusing", refused

    def prepare(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> Rows:  # type: ignore[override]
        pixels = [open_image(image, ImageOptions(min_side=1)).convert("L").resize((1, 1)).getpixel((0, 0)) for image in images]
        return Rows(list(prompts), torch.tensor(pixels, dtype=torch.float32))

    def refuses(self, prompt: str) -> bool:
        return prompt in self.refused

    def forward(self, batch: Rows) -> Tensor:
        error = AnswerError("the answer 'well' states no score")
        reasons = {row: error for row, prompt in enumerate(batch.prompts) if self.refuses(prompt)}
        if reasons:
            rewards = batch.brightness.clone()
            rewards[list(reasons)] = torch.nan
            raise RefusedRowsError([rewards], reasons)
        return batch.brightness
