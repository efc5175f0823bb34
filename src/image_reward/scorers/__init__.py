"""Scorers: a prompt and an image -> a reward. One class per way of scoring, one table of names."""

from image_reward.scorers.base import Batch, Preparation, Scorer
from image_reward.scorers.blip import BlipMatchingScorer, BlipScorer
from image_reward.scorers.compat_v15 import ImageReward
from image_reward.scorers.ensemble import Ensemble, Reference
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.registry import MODELS, LoadOptions, ModelSpec, load, load_all

__all__ = [
    "MODELS",
    "Batch",
    "BlipMatchingScorer",
    "BlipScorer",
    "Ensemble",
    "ImageReward",
    "ImageRewardScorer",
    "LoadOptions",
    "ModelSpec",
    "Preparation",
    "Reference",
    "Scorer",
    "load",
    "load_all",
]
