"""Measuring: scorers against human rankings, image generators against each other."""

from image_reward.evaluation.rewards import read_rewards, score_comparisons
from image_reward.evaluation.scorers import Evaluation, Measured, PromptResult, evaluate, write_per_prompt

__all__ = [
    "Evaluation",
    "Measured",
    "PromptResult",
    "evaluate",
    "read_rewards",
    "score_comparisons",
    "write_per_prompt",
]
