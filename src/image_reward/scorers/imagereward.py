"""ImageReward: the BLIP reward model, and the same model under the names that programs written for image-reward 1.5 use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_reward.checkpoints import ScorerConfig, load_strictly, save_checkpoint
from image_reward.errors import PromptError
from image_reward.images import ImageLike, ImageOptions, ImageTransform
from image_reward.models.blip import Blip, CrossEncoder, ImageRewardNetwork, KeysValues
from image_reward.prompts import LongPrompts, PromptTokenizer, transformers_tokenizer
from image_reward.scorers.base import Preparation, Scorer
from image_reward.types import Ranking


class CrossEncoderScorer(Scorer[list[KeysValues]]):
    """A scorer whose text tower reads the image while it reads the prompt."""

    network: CrossEncoder

    def encode_images(self, pixels: Tensor) -> list[KeysValues]:
        dtype = self.network.blip.vision_proj.weight.dtype
        return self.network.encode_images(self.prepare.transform.normalize(pixels, dtype))

    def read(self, images: list[KeysValues], ids: Tensor, mask: Tensor) -> Tensor:
        num_images = len(images[0][0])
        ids, mask = (x.expand(num_images, -1, -1) for x in (ids, mask))
        return self.network.read(images, ids.flatten(0, 1), mask.flatten(0, 1)).view(ids.shape[:2])

    def cast(self, dtype: torch.dtype) -> None:
        """Let the towers compute in ``dtype``; the head stays in float32."""
        self.network.blip.to(dtype)


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
        self.tie = config.reward.tie
        self.scale = config.reward.std
        self.reference = config.reward.reference
        transform = ImageTransform(config.image.size, config.image.mean, config.image.std, options or ImageOptions())
        self.prepare = Preparation(transform, PromptTokenizer(config.max_tokens, long_prompts, config.vocabulary))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: ScorerConfig, source: str, hint: str = "", **options: Any) -> Any:
        """Build the network without storage and let the tensors be its weights; strict about names, shapes and values."""
        with torch.device("meta"):
            network = ImageRewardNetwork(config.network)
        load_strictly(network, tensors, source, hint)
        return cls(network, config, **options).eval()

    def read(self, images: list[KeysValues], ids: Tensor, mask: Tensor) -> Tensor:
        return (super().read(images, ids, mask) - self.config.reward.mean) / self.config.reward.std

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, ``config.json`` and a model card; ``load(folder)`` gives this scorer again."""
        save_checkpoint(Path(folder), self.network.state_dict(), self.config, self.model_card())

    def model_card(self) -> str:
        reward, network = self.config.reward, self.config.network
        num_parameters = sum(p.numel() for p in self.network.parameters())
        dtype = str(self.network.blip.vision_proj.weight.dtype).removeprefix("torch.")
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


class ImageReward(ImageRewardScorer):
    """``ImageRewardScorer`` with the methods and attributes of image-reward 1.5, which programs call and reach into."""

    def score(self, prompt: Any, image: Any) -> Any:
        """As ``Scorer.score``, except that a list of one image gives a bare float, as 1.5 does."""
        rewards = super().score(prompt, image)
        return rewards[0] if isinstance(rewards, list) and len(rewards) == 1 else rewards

    def inference_rank(self, prompt: str | list[str], generations_list: list[ImageLike]) -> tuple[Any, Any]:
        """Ranks and rewards of images as two flat lists, or two bare numbers for one image.

        N prompts with M images give N * M ranks and rewards, image by image: all prompts with the first image come first.
        """
        if not isinstance(generations_list, list | tuple) or not generations_list:
            raise ValueError("inference_rank() takes a list of at least one image")
        rewards = self.matrix([prompt] if isinstance(prompt, str) else list(prompt), generations_list).T.flatten().tolist()
        if not rewards:
            raise ValueError("inference_rank() takes at least one prompt")
        ranking = Ranking.from_rewards(rewards).ranking
        return (ranking[0], rewards[0]) if len(rewards) == 1 else (ranking, rewards)

    def score_gard(self, prompt_ids: Tensor, prompt_attention_mask: Tensor, image: Tensor) -> Tensor:
        """Token ids and mask [B, L] and normalised pixels [B, 3, S, S] -> rewards [B, 1] with gradients (the name is 1.5's)."""
        if not prompt_attention_mask.any(dim=1).all():
            raise ValueError("prompt_attention_mask hides every token of a prompt; even an empty prompt has [CLS] and [SEP]")
        length = int(prompt_attention_mask.sum(dim=1).max())
        if not prompt_attention_mask[:, :length].any(dim=0).all() or prompt_attention_mask[:, length:].any():
            length = prompt_ids.shape[1]  # padded on the left or in the middle: keep every column
        images = self.network.encode_images(image.to(self.network.blip.vision_proj.weight.dtype))
        raw = self.network.read(images, prompt_ids[:, :length], prompt_attention_mask[:, :length])
        return ((raw - self.mean) / self.std)[:, None]

    @property
    def blip(self) -> Blip:
        """Both towers, with a ``tokenizer`` beside them."""
        blip = self.network.blip
        if self.config.vocabulary is not None:
            raise PromptError(
                f"{self.name} has a vocabulary of its own, which has no tokenizer of image-reward 1.5; use score() or rewards()"
            )
        if not hasattr(blip, "tokenizer"):
            blip.tokenizer = transformers_tokenizer()
        return blip

    @property
    def mean(self) -> float:
        return self.config.reward.mean

    @property
    def std(self) -> float:
        return self.config.reward.std

    @property
    def mlp(self) -> nn.Module:
        return self.network.mlp

    @property
    def preprocess(self) -> ImageTransform:
        """An image -> normalised pixels [3, S, S]."""
        return self.prepare.transform

    # State dicts have the released checkpoint's names here, so that `torch.save(model.state_dict(), …)` is such a checkpoint and
    # `model.load_state_dict(torch.load(…), strict=False)` does not pass over every tensor of one without a word.

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for name in [name for name in state if name.startswith(f"{prefix}network.")]:
            state[prefix + name.removeprefix(f"{prefix}network.")] = state.pop(name)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith((f"{prefix}blip.", f"{prefix}mlp."))]:
            tensor = state_dict.pop(name)
            if not name.endswith(".position_ids"):  # a buffer of the original that holds 0..511
                state_dict[f"{prefix}network.{name.removeprefix(prefix)}"] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args)
