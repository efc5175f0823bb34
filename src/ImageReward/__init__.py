"""The import name of image-reward 1.x: ``import ImageReward as reward``. Everything lives in ``image_reward``."""

from image_reward.scorers.compat_v15 import ImageReward, available_models, available_scores, load, load_score

__all__ = ["ImageReward", "available_models", "available_scores", "load", "load_score"]
