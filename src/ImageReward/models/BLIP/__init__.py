"""``ImageReward.models.BLIP`` of image-reward 1.5."""

from importlib import import_module
from typing import Any

import ImageReward._implementation as _implementation
from image_reward.scorers.compat_v15_parts import BertModel, BLIP_Pretrain, VisionTransformer, create_vit, init_tokenizer, load_checkpoint
from ImageReward.models.BLIP import blip, blip_pretrain, vit


def __getattr__(name: str) -> Any:
    if name == "med":  # which loads transformers
        return import_module("ImageReward.models.BLIP.med")
    if name == "BertConfig":
        return import_module("ImageReward.models.BLIP.med").BertConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
