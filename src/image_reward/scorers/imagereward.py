"""ImageReward: the BLIP reward model (Xu et al. 2023, arXiv 2304.05977)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_reward.checkpoints import load_strictly, save_checkpoint
from image_reward.config import ScorerConfig, TieConfig
from image_reward.images import ImageOptions, ImageTransform
from image_reward.models.blip import CrossEncoder, ImageRewardNetwork, KeysValues
from image_reward.prompts import LongPrompts, PromptTokenizer
from image_reward.scorers.two_tower import TwoTowerProcessor, TwoTowerScorer


class CrossEncoderScorer(TwoTowerScorer[list[KeysValues]]):
    """A scorer whose text tower reads the image while it reads the prompt."""

    network: CrossEncoder

    def encode_images(self, pixels: Tensor) -> list[KeysValues]:
        return self.network.encode_images(self.prepare.transform.normalize(pixels, self.network.dtype))

    def score_pairs(self, features: list[KeysValues], ids: Tensor, mask: Tensor) -> Tensor:
        num_images = len(features[0][0])
        ids, mask = (x.expand(num_images, -1, -1) for x in (ids, mask))
        return self.network.score_pairs(features, ids.flatten(0, 1), mask.flatten(0, 1)).view(ids.shape[:2])

    def set_exact(self, exact: bool) -> None:
        """Round as the original does: see ``load``."""
        self.network.set_original_order(exact)

    def cast(self, dtype: torch.dtype) -> None:
        """Let the towers compute in ``dtype``; the head stays in float32."""
        self.network.cast(dtype)


class ImageRewardScorer(CrossEncoderScorer):
    """Rewards of the BLIP network on the published scale: (raw - mean) / std."""

    network: ImageRewardNetwork

    def __init__(
        self,
        network: ImageRewardNetwork,
        config: ScorerConfig,
        name: str = "ImageReward",
        options: ImageOptions | None = None,
        long_prompts: LongPrompts = "truncate",
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.name = name
        transform = ImageTransform(config.image.size, config.image.mean, config.image.std, options or ImageOptions())
        self.prepare = TwoTowerProcessor(transform, PromptTokenizer(config.max_tokens, long_prompts, config.vocabulary))

    # What of the config may be assigned is kept in the config alone, so that it is saved too.

    @property
    def config(self) -> ScorerConfig:
        """Everything a score depends on besides the weights."""
        return self._config

    @config.setter
    def config(self, config: ScorerConfig) -> None:
        """The sizes of network, images and prompts are those of a scorer that is built; the scale of the rewards may change."""
        before: ScorerConfig = getattr(self, "_config", config)
        if replace(config, reward=before.reward) != before:
            raise ValueError("a config of other sizes makes another scorer: build it with ImageRewardScorer(network, config)")
        self._config = config
        self.scale = config.reward.std

    @property
    def tie(self) -> TieConfig | None:
        """The fitted model of ties, if the checkpoint has one."""
        return self.config.reward.tie

    @tie.setter
    def tie(self, tie: TieConfig | None) -> None:
        self._config = replace(self.config, reward=replace(self.config.reward, tie=tie))

    @property
    def reference(self) -> str | None:
        """The published reward distribution that rewards may be compared with, if there is one."""
        return self.config.reward.reference

    @reference.setter
    def reference(self, reference: str | None) -> None:
        self._config = replace(self.config, reward=replace(self.config.reward, reference=reference))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: ScorerConfig, source: str, hint: str = "", **options: Any) -> Any:
        """Build the network without storage and let the tensors be its weights; strict about names, shapes and values."""
        with torch.device("meta"):
            network = cls.new_network(config, options.get("name", source))
        load_strictly(network, tensors, source, hint)
        return cls.of(network, config, **options).eval()

    @classmethod
    def of(cls, network: ImageRewardNetwork, config: ScorerConfig, **options: Any) -> Any:
        """A scorer around a network, for subclasses whose constructor takes something else."""
        return cls(network, config, **options)

    @classmethod
    def new_network(cls, config: ScorerConfig, name: str) -> ImageRewardNetwork:  # noqa: ARG003 - for a subclass
        """A network of the sizes of a config, without weights."""
        return ImageRewardNetwork(config.network)

    def score_pairs(self, features: list[KeysValues], ids: Tensor, mask: Tensor) -> Tensor:
        return (super().score_pairs(features, ids, mask) - self.config.reward.mean) / self.config.reward.std

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and a model card; ``load(folder)`` gives this scorer again."""
        save_checkpoint(Path(folder), self.network.state_dict(), self.config, self.model_card())

    def model_card(self) -> str:
        """Markdown for a README beside the weights: sizes, scale and use."""
        reward, network = self.config.reward, self.config.network
        num_parameters = sum(p.numel() for p in self.network.parameters())
        dtype = str(self.network.dtype).removeprefix("torch.")
        tie = f"{reward.tie.model}, parameter {reward.tie.parameter:.4g}" if reward.tie else "none"
        return f"""---
library_name: image-reward
license: apache-2.0
pipeline_tag: image-to-text
tags: [text-to-image, reward-model, human-preference]
---
# {self.name}

A reward model for text-to-image generation: it reads a prompt and an image and says how much people would like the image.
Architecture: ImageReward (Xu et al. 2023, arXiv 2304.05977), {num_parameters:,} parameters, {dtype}.

| | |
|---|---|
| image tower | {network.vision_layers} x {network.vision_width}, {network.image_size} px, patches of {network.patch_size} px |
| text tower | {network.text_layers} x {network.text_width}, reads {self.config.max_tokens} tokens |
| reward | (head - {reward.mean!r}) / {reward.std!r} |
| tie model | {tie} |

```python
import image_reward as ir

scorer = ir.load("path/of/this/folder")
scorer.rank("a prompt", ["one.png", "two.png"])
```
"""
