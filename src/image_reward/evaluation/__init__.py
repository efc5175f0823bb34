"""Measuring: scorers against people."""

from image_reward.evaluation.people import Evaluation, evaluate, write_per_prompt
from image_reward.evaluation.rewards import read_rewards, score_comparisons

__all__ = ["Evaluation", "evaluate", "read_rewards", "score_comparisons", "write_per_prompt"]
