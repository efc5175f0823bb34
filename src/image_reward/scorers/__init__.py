"""Scorers: a prompt and an image -> a reward. One class per way of scoring, one table of names."""

from image_reward.scorers.base import Batch, Preparation, Scorer
from image_reward.scorers.imagereward import ImageReward, ImageRewardScorer
from image_reward.scorers.registry import MODELS, LoadOptions, ModelSpec, load, load_all

__all__ = [
    "MODELS",
    "Batch",
    "ImageReward",
    "ImageRewardScorer",
    "LoadOptions",
    "ModelSpec",
    "Preparation",
    "Scorer",
    "load",
    "load_all",
]
