"""Learning from human rankings: losses, and the loop that turns comparisons into a reward model."""

from typing import TYPE_CHECKING, Any

from image_reward.errors import TrainingError
from image_reward.lazy import lazy_names
from image_reward.recipes import read_toml
from image_reward.training.config import MaskedLanguageTraining, RewardTraining

if TYPE_CHECKING:
    from image_reward.training.masked_language_model import PretrainingResult, pretrain
    from image_reward.training.reward import TrainingResult, train

__all__ = ["MaskedLanguageTraining", "PretrainingResult", "RewardTraining", "TrainingResult", "pretrain", "read_toml", "train"]

_name = lazy_names(__name__, {"masked_language_model": ["PretrainingResult", "pretrain"], "reward": ["TrainingResult", "train"]})


def __getattr__(name: str) -> Any:
    try:  # Accelerate is loaded when there is something to train, not to print a command's help
        return _name(name)
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise TrainingError("training needs the package accelerate: pip install 'image-reward[train]'") from None
