"""Learning from people: losses, and the loop that turns comparisons into a reward model."""

from image_reward.training.config import RewardTraining, read_toml
from image_reward.training.reward import TrainingResult, train

__all__ = ["RewardTraining", "TrainingResult", "read_toml", "train"]
