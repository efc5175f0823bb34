"""Learning from human rankings: losses, and the loop that turns comparisons into a reward model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from image_reward.errors import TrainingError
from image_reward.recipes import read_toml
from image_reward.training.config import MaskedLanguageTraining, RewardTraining

if TYPE_CHECKING:
    from image_reward.training.masked_language_model import PretrainingResult, pretrain
    from image_reward.training.reward import TrainingResult, train

_HOME_OF = {
    "TrainingResult": "reward",
    "train": "reward",
    "PretrainingResult": "masked_language_model",
    "pretrain": "masked_language_model",
}
__all__ = ["MaskedLanguageTraining", "PretrainingResult", "RewardTraining", "TrainingResult", "pretrain", "read_toml", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:  # Accelerate is loaded when there is something to train, not to print a command's help
        return getattr(import_module(f"image_reward.training.{_HOME_OF[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise TrainingError("training needs the package accelerate: pip install 'image-reward[train]'") from None
