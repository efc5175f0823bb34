"""Measuring: scorers against people."""

from image_reward.evaluation.people import Estimate, Evaluation, Measured, PromptResult, evaluate, usable_ks, write_per_prompt
from image_reward.evaluation.rewards import read_rewards, score_comparisons

__all__ = [
    "Estimate",
    "Evaluation",
    "Measured",
    "PromptResult",
    "evaluate",
    "read_rewards",
    "score_comparisons",
    "usable_ks",
    "write_per_prompt",
]
