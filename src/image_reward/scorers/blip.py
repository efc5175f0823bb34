"""BLIP's own two scores (Li et al. 2022, arXiv 2201.12086): how near image and prompt are, and whether the prompt describes the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from image_reward.checkpoints import blip_pretraining_weights, load_strictly
from image_reward.errors import CheckpointError
from image_reward.images import ImageOptions, ImageTransform
from image_reward.models.blip import Blip, BlipConfig, KeysValues, MatchingNetwork
from image_reward.prompts import LongPrompts, PromptTokenizer
from image_reward.scorers.imagereward import CrossEncoderScorer
from image_reward.scorers.two_tower import ContrastiveScorer, TwoTowerProcessor

MAX_TOKENS = 35
"""As BLIP's retrieval and the ImageReward paper's comparison read prompts."""


ENC = 30523
"""The id of [ENC] in BLIP's vocabulary."""


class BlipScorer(ContrastiveScorer):
    """The cosine of BLIP's contrastive features of image and prompt, in [-1, 1]. Neither sees the other before."""

    def __init__(
        self,
        blip: Blip,
        config: BlipConfig,
        name: str = "BLIP",
        options: ImageOptions | None = None,
        long_prompts: LongPrompts = "truncate",
    ) -> None:
        super().__init__()
        self.blip = blip
        self.config = config
        self.name = name
        transform = ImageTransform(config.image_size, options=options or ImageOptions())
        self.prepare = TwoTowerProcessor(transform, PromptTokenizer(MAX_TOKENS, long_prompts))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: str, config: BlipConfig | None = None, **options: Any) -> BlipScorer:
        """From the tensors of a BLIP pretraining or retrieval checkpoint, or of an ImageReward checkpoint, whose projections are BLIP's.

        ``config``: the sizes of the network; by default BLIP-large's.
        """
        config = config or BlipConfig()
        towers = blip_pretraining_weights(tensors)
        if towers is None:
            towers = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] != "mlp"}
        with torch.device("meta"):
            whole = nn.ModuleDict({"blip": Blip(config)})
        load_strictly(whole, towers, source)
        return cls(whole["blip"], config, **options).eval()  # type: ignore[arg-type]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """-> L2-normalised features [I, projection]"""
        tokens = self.blip.visual_encoder(self.prepare.transform.normalize(pixels, self.blip.vision_proj.weight.dtype))
        return self.blip.project_images(tokens)

    def encode_prompts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.blip.project_prompts(ids, mask)

    def set_exact(self, exact: bool) -> None:
        """Round as the original does: see ``load``."""
        self.blip.set_original_order(exact)


class BlipMatchingScorer(CrossEncoderScorer):
    """The log odds of BLIP's image-text matching head that the prompt describes the image: any number; its sigmoid is the probability.

    The probability itself is not the reward because it comes so near 0 and 1 that images tie.

    The prompt begins with [ENC] in place of [CLS], as when BLIP was trained (Salesforce BLIP, ``models/blip_pretrain.py`` and
    ``models/blip_retrieval.py``); its demo (``models/blip_itm.py``) leaves [CLS] there.
    """

    network: MatchingNetwork

    def __init__(
        self,
        network: MatchingNetwork,
        name: str = "BLIP-ITM",
        options: ImageOptions | None = None,
        long_prompts: LongPrompts = "truncate",
    ) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        self.name = name
        transform = ImageTransform(network.config.image_size, options=options or ImageOptions(), fit="stretch")
        self.prepare = TwoTowerProcessor(transform, PromptTokenizer(MAX_TOKENS, long_prompts))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: str, config: BlipConfig | None = None, **options: Any) -> BlipMatchingScorer:
        """From the tensors of a BLIP retrieval or pretraining checkpoint.

        ``config``: the sizes of the network; by default those of BLIP-large's retrieval checkpoints, which read 384 px.
        """
        weights = blip_pretraining_weights(tensors, matching_head=True)
        if weights is None:
            raise CheckpointError(f"{source} is none of BLIP's pretraining or retrieval checkpoints, which alone have a matching head")
        with torch.device("meta"):
            network = MatchingNetwork(config or replace(BlipConfig(), image_size=384))
        load_strictly(network, weights, source)
        return cls(network, **options).eval()

    @property
    def blip(self) -> Blip:
        """The towers."""
        return self.network.blip

    @blip.setter
    def blip(self, blip: Blip) -> None:
        self.network.blip = blip

    def score_pairs(self, features: list[KeysValues], ids: Tensor, mask: Tensor) -> Tensor:
        begin = torch.full_like(ids[..., :1], ENC)
        return super().score_pairs(features, torch.cat([begin, ids[..., 1:]], dim=-1), mask)
