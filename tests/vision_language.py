"""A scorer of another shape than two towers: a small Qwen2-VL that reads image and prompt as one sequence. Worker processes import this.

Images keep their shape, so they have different numbers of tokens; a linear head on the last token gives the reward, as in HPSv3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from image_reward.images import ImageLike, ImageOptions, open_image
from image_reward.scorers import LoadOptions, ModelSpec, Processor, Scorer

NAME = "tiny-vision-language"
PATCH, MERGE = 4, 2
IMAGE, START, END, LAST = 256, 258, 259, 260  # after the 256 bytes that prompts are read as


@dataclass(frozen=True)
class Sequences:
    """Rows as sequences of their own lengths, and the patches of their images."""

    ids: list[Tensor]
    patches: list[Tensor]
    """Of each row [T, 3 * 2 * PATCH * PATCH]"""
    grids: list[Tensor]
    """Of each row: frames, rows and columns of patches"""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Sequences:
        return Sequences(*([tensor.to(device) for tensor in tensors] for tensors in (self.ids, self.patches, self.grids)))

    def select(self, rows: Sequence[int]) -> Sequences:
        return Sequences(*([tensors[row] for row in rows] for tensors in (self.ids, self.patches, self.grids)))


@dataclass
class SequenceProcessor(Processor[Sequences]):
    options: ImageOptions

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> Sequences:
        self.check(prompts)
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts and {len(images)} images")
        rows = [self.row(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
        return Sequences(*(list(tensors) for tensors in zip(*rows, strict=True))) if rows else Sequences([], [], [])

    def row(self, prompt: str, image: ImageLike) -> tuple[Tensor, Tensor, Tensor]:
        opened = open_image(image, self.options).convert("RGB")
        unit = PATCH * MERGE
        scale = (48 * 48 / (opened.width * opened.height)) ** 0.5
        width, height = (unit * min(12, max(1, round(side * scale / unit))) for side in opened.size)
        pixels = torch.from_numpy(np.array(opened.resize((width, height)))).float() / 127.5 - 1
        # Patches that are merged later lie next to each other: rows, columns, MERGE, MERGE of them; a patch is [3, 2, PATCH, PATCH].
        grid = pixels.view(height // unit, MERGE, PATCH, width // unit, MERGE, PATCH, 3).permute(0, 3, 1, 4, 6, 2, 5)
        patches = grid.flatten(0, 3)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)  # a still image is two equal frames
        num_tokens = len(patches) // MERGE**2
        ids = torch.tensor([START, *[IMAGE] * num_tokens, END, *prompt.encode()[:60], LAST])
        return ids, patches, torch.tensor([1, height // PATCH, width // PATCH])


class VisionLanguageScorer(Scorer[Sequences]):
    def __init__(self, options: LoadOptions, seed: int = 0) -> None:
        super().__init__()
        self.name = options.name
        self.prepare = SequenceProcessor(options.images)
        config = Qwen2VLConfig(
            text_config={
                "vocab_size": 262,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "bos_token_id": START,
                "eos_token_id": LAST,
                "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0},
            },
            vision_config={
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
            },
            image_token_id=IMAGE,
            video_token_id=IMAGE + 1,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Qwen2VLModel(config)
            self.head = nn.Linear(32, 1)
        self.seen: list[int] = []

    def forward(self, batch: Sequences) -> Tensor:
        self.seen.append(len(batch))
        if not len(batch):
            return torch.empty(0)
        batch = batch.to(self.device)
        ids = nn.utils.rnn.pad_sequence(batch.ids, batch_first=True)
        lengths = torch.tensor([len(row) for row in batch.ids], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        hidden = self.network(
            input_ids=ids,
            attention_mask=mask.long(),
            pixel_values=torch.cat(batch.patches).to(self.network.dtype),
            image_grid_thw=torch.stack(batch.grids),
            mm_token_type_ids=(ids == IMAGE).int(),
            use_cache=False,
        ).last_hidden_state
        return self.head(hidden[torch.arange(len(ids)), lengths - 1].float())[:, 0]

    def cast(self, dtype: torch.dtype) -> None:
        self.network.to(dtype)


def build(_: Mapping[str, Path], options: LoadOptions) -> VisionLanguageScorer:
    return VisionLanguageScorer(options).eval()


SPEC = ModelSpec(description="random weights", licence="none", range="any", build=build)


def load(device: str | None) -> list[Any]:
    """For jobs, whose workers are other processes, where nothing is registered."""
    return [build({}, replace(LoadOptions(NAME))).to(device or "cpu").requires_grad_(False)]
