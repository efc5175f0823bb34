"""Learning an image generator from a reward, and choosing among its images. Names load on first use.

The generator is a pipeline of diffusers, which the caller has loaded: nothing here imports diffusers or peft.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_reward.tuning.noise import OptimizedNoise, optimize_noise
    from image_reward.tuning.reward_functions import reward_function
    from image_reward.tuning.sampling import DenoiserCall, differentiable, recorded_calls, sample
    from image_reward.tuning.selection import BestOf, best_of, preference_pairs

_HOME_OF = {
    "OptimizedNoise": "noise",
    "optimize_noise": "noise",
    "DenoiserCall": "sampling",
    "differentiable": "sampling",
    "recorded_calls": "sampling",
    "sample": "sampling",
    "BestOf": "selection",
    "best_of": "selection",
    "preference_pairs": "selection",
    "reward_function": "reward_functions",
}
__all__ = [
    "BestOf",
    "DenoiserCall",
    "OptimizedNoise",
    "best_of",
    "differentiable",
    "optimize_noise",
    "preference_pairs",
    "recorded_calls",
    "reward_function",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
