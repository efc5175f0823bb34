"""Learning from people: losses, and the loop that turns comparisons into a reward model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from image_reward.training.config import RewardTraining, read_toml

if TYPE_CHECKING:
    from image_reward.training.reward import TrainingResult, train

__all__ = ["RewardTraining", "TrainingResult", "read_toml", "train"]


def __getattr__(name: str) -> Any:
    if name in ("TrainingResult", "train"):  # Accelerate is loaded when there is something to train, not to print a command's help
        return getattr(import_module("image_reward.training.reward"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
