"""The import name of image-reward 1.x: ``import ImageReward as reward``. Everything lives in ``image_reward``."""

import sys

import ImageReward._implementation as _implementation
import ImageReward.utils as utils
from ImageReward.ImageReward import ImageReward  # the class takes the place of its module, which was imported first
from ImageReward.models import MLP, AestheticScore, BLIP_Pretrain, BLIPScore, CLIPScore
from ImageReward.utils import ImageReward_download, available_models, available_scores, load, load_score

RM = sys.modules[__name__]  # a name that 1.5 exports by accident, and that programs import

__all__ = [
    "MLP",
    "AestheticScore",
    "BLIPScore",
    "BLIP_Pretrain",
    "CLIPScore",
    "ImageReward",
    "ImageReward_download",
    "available_models",
    "available_scores",
    "load",
    "load_score",
]
