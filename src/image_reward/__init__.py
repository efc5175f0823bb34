"""Learn what people prefer in images made from text, and put that to work: score, rank and compare images for a prompt.

Names load on first use, so that ``import image_reward`` itself is immediate and needs no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from image_reward.lazy import lazy_names

if TYPE_CHECKING:
    from image_reward.client import AsyncClient, Client
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
        ServiceError,
        UnknownModelError,
    )
    from image_reward.jobs import score_files
    from image_reward.scorers import ImageRewardScorer, Scorer, load
    from image_reward.tuning import best_of
    from image_reward.types import Comparison, Preference, Ranking

__all__ = [
    "AsyncClient",
    "CheckpointError",
    "Client",
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
    "ServiceError",
    "UnknownModelError",
    "__version__",
    "best_of",
    "load",
    "score_files",
]

_name = lazy_names(
    __name__,
    {
        "client": ["AsyncClient", "Client"],
        "config": ["ScorerConfig"],
        "errors": [
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
            "ServiceError",
            "UnknownModelError",
        ],
        "jobs": ["score_files"],
        "scorers": ["ImageRewardScorer", "Scorer", "load"],
        "tuning": ["best_of"],
        "types": ["Comparison", "Preference", "Ranking"],
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a third of the time before a command's help

        return version("image-reward")
    return _name(name)


def __dir__() -> list[str]:
    return sorted(__all__)
