"""Learning from people: losses, and the loop that turns comparisons into a reward model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from image_reward.training.config import RewardTraining, WordPretraining, read_toml

if TYPE_CHECKING:
    from image_reward.training.reward import TrainingResult, train
    from image_reward.training.words import PretrainingResult, pretrain

_HOME_OF = {"TrainingResult": "reward", "train": "reward", "PretrainingResult": "words", "pretrain": "words"}
__all__ = ["PretrainingResult", "RewardTraining", "TrainingResult", "WordPretraining", "pretrain", "read_toml", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:  # Accelerate is loaded when there is something to train, not to print a command's help
        return getattr(import_module(f"image_reward.training.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
