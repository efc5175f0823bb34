"""Measuring: scorers against human rankings, image generators against each other. Names load on first use: prompts need no PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_reward.evaluation.rewards import read_rewards, score_comparisons
    from image_reward.evaluation.scorers import Evaluation, Measured, PromptResult, evaluate, write_per_prompt

_HOME_OF = {
    "read_rewards": "rewards",
    "score_comparisons": "rewards",
    "Evaluation": "scorers",
    "Measured": "scorers",
    "PromptResult": "scorers",
    "evaluate": "scorers",
    "write_per_prompt": "scorers",
}
__all__ = [
    "Evaluation",
    "Measured",
    "PromptResult",
    "evaluate",
    "read_rewards",
    "score_comparisons",
    "write_per_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
