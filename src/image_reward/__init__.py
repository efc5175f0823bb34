"""Learn what people prefer in images made from text, and put that to work: score, rank and compare images for a prompt.

Names load on first use, so that ``import image_reward`` itself is immediate and needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_reward.config import ScorerConfig
    from image_reward.errors import (
        CheckpointError,
        ComparisonError,
        ComparisonWarning,
        DownloadError,
        ImageReadError,
        ImageRewardError,
        InputError,
        JobError,
        LongPromptWarning,
        PromptError,
        RewardError,
        UnknownModelError,
    )
    from image_reward.jobs import score_files
    from image_reward.scorers import ImageRewardScorer, Scorer, load
    from image_reward.tuning import best_of
    from image_reward.types import Comparison, Preference, Ranking

_HOMES = {
    "image_reward.config": ["ScorerConfig"],
    "image_reward.errors": [
        "CheckpointError",
        "ComparisonError",
        "ComparisonWarning",
        "DownloadError",
        "ImageReadError",
        "ImageRewardError",
        "InputError",
        "JobError",
        "LongPromptWarning",
        "PromptError",
        "RewardError",
        "UnknownModelError",
    ],
    "image_reward.jobs": ["score_files"],
    "image_reward.scorers": ["ImageRewardScorer", "Scorer", "load"],
    "image_reward.tuning": ["best_of"],
    "image_reward.types": ["Comparison", "Preference", "Ranking"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CheckpointError",
    "Comparison",
    "ComparisonError",
    "ComparisonWarning",
    "DownloadError",
    "ImageReadError",
    "ImageRewardError",
    "ImageRewardScorer",
    "InputError",
    "JobError",
    "LongPromptWarning",
    "Preference",
    "PromptError",
    "Ranking",
    "RewardError",
    "Scorer",
    "ScorerConfig",
    "UnknownModelError",
    "__version__",
    "best_of",
    "load",
    "score_files",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a third of the time before a command's help

        return version("image-reward")
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
