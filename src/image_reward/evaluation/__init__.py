"""Measuring: scorers against people."""

from image_reward.evaluation.people import Estimate, Evaluation, PromptResult, evaluate, read_rewards, score_comparisons, write_per_prompt

__all__ = ["Estimate", "Evaluation", "PromptResult", "evaluate", "read_rewards", "score_comparisons", "write_per_prompt"]
