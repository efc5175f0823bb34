"""Scorers: a prompt and an image -> a reward. One class per way of scoring, one table of names.

Names load on first use: the table of names, and what a name stands for, need no PyTorch.
"""

from typing import TYPE_CHECKING

from image_reward.lazy import lazy_names

if TYPE_CHECKING:
    from image_reward.scorers.base import Batch, Processor, Scorer
    from image_reward.scorers.blip import BlipMatchingScorer, BlipScorer
    from image_reward.scorers.compat_v15 import ImageReward
    from image_reward.scorers.ensemble import Ensemble, Reference
    from image_reward.scorers.hpsv3 import HPSv3Scorer
    from image_reward.scorers.imagereward import ImageRewardScorer
    from image_reward.scorers.loading import load, load_all
    from image_reward.scorers.registry import MODELS
    from image_reward.scorers.spec import LoadOptions, ModelSpec
    from image_reward.scorers.together import score_together
    from image_reward.scorers.two_tower import TwoTowerBatch, TwoTowerProcessor, TwoTowerScorer
    from image_reward.scorers.unified_reward import UnifiedReward
    from image_reward.scorers.vision_language import VisionLanguageBatch, VisionLanguageProcessor, VisionLanguageScorer

__all__ = [
    "MODELS",
    "Batch",
    "BlipMatchingScorer",
    "BlipScorer",
    "Ensemble",
    "HPSv3Scorer",
    "ImageReward",
    "ImageRewardScorer",
    "LoadOptions",
    "ModelSpec",
    "Processor",
    "Reference",
    "Scorer",
    "TwoTowerBatch",
    "TwoTowerProcessor",
    "TwoTowerScorer",
    "UnifiedReward",
    "VisionLanguageBatch",
    "VisionLanguageProcessor",
    "VisionLanguageScorer",
    "load",
    "load_all",
    "score_together",
]

__getattr__ = lazy_names(
    __name__,
    {
        "base": ["Batch", "Processor", "Scorer"],
        "blip": ["BlipMatchingScorer", "BlipScorer"],
        "compat_v15": ["ImageReward"],
        "ensemble": ["Ensemble", "Reference"],
        "hpsv3": ["HPSv3Scorer"],
        "imagereward": ["ImageRewardScorer"],
        "loading": ["load", "load_all"],
        "registry": ["MODELS"],
        "spec": ["LoadOptions", "ModelSpec"],
        "together": ["score_together"],
        "two_tower": ["TwoTowerBatch", "TwoTowerProcessor", "TwoTowerScorer"],
        "unified_reward": ["UnifiedReward"],
        "vision_language": ["VisionLanguageBatch", "VisionLanguageProcessor", "VisionLanguageScorer"],
    },
)
