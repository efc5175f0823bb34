"""Measuring: scorers against human rankings, image generators against each other. Names load on first use: prompts need no PyTorch."""

from typing import TYPE_CHECKING

from image_reward.lazy import lazy_names

if TYPE_CHECKING:
    from image_reward.evaluation.judging import Judged, judge_pairs
    from image_reward.evaluation.rewards import read_rewards, score_comparisons
    from image_reward.evaluation.scorers import Evaluation, Measured, PromptResult, evaluate, write_per_prompt
    from image_reward.evaluation.verdicts import Verdicts, read_verdicts, without_verdict

__all__ = [
    "Evaluation",
    "Judged",
    "Measured",
    "PromptResult",
    "Verdicts",
    "evaluate",
    "judge_pairs",
    "read_rewards",
    "read_verdicts",
    "score_comparisons",
    "without_verdict",
    "write_per_prompt",
]

__getattr__ = lazy_names(
    __name__,
    {
        "judging": ["Judged", "judge_pairs"],
        "rewards": ["read_rewards", "score_comparisons"],
        "scorers": ["Evaluation", "Measured", "PromptResult", "evaluate", "write_per_prompt"],
        "verdicts": ["Verdicts", "read_verdicts", "without_verdict"],
    },
)
