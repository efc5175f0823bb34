"""Learning an image generator from a reward, and choosing among its images. Names load on first use.

The generator is a pipeline of diffusers, which the caller has loaded: nothing here imports diffusers or peft.
"""

from typing import TYPE_CHECKING

from image_reward.lazy import lazy_names

if TYPE_CHECKING:
    from image_reward.tuning.noise import OptimizedNoise, optimize_noise
    from image_reward.tuning.previews import RewardPreview, reward_preview
    from image_reward.tuning.reward_functions import multi_reward_function, reward_function
    from image_reward.tuning.sampling import DenoiserCall, differentiable, recorded_calls, sample
    from image_reward.tuning.selection import BestOf, best_of, preference_pairs

__all__ = [
    "BestOf",
    "DenoiserCall",
    "OptimizedNoise",
    "RewardPreview",
    "best_of",
    "differentiable",
    "multi_reward_function",
    "optimize_noise",
    "preference_pairs",
    "recorded_calls",
    "reward_function",
    "reward_preview",
    "sample",
]

__getattr__ = lazy_names(
    __name__,
    {
        "noise": ["OptimizedNoise", "optimize_noise"],
        "previews": ["RewardPreview", "reward_preview"],
        "reward_functions": ["multi_reward_function", "reward_function"],
        "sampling": ["DenoiserCall", "differentiable", "recorded_calls", "sample"],
        "selection": ["BestOf", "best_of", "preference_pairs"],
    },
)
