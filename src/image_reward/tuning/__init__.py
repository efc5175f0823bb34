"""Learning an image generator from a reward, and choosing among its images. Names load on first use.

The generator is a pipeline of diffusers that the caller has loaded, or that ``load_pipeline`` loads. Only what makes or loads one imports
diffusers, and only ``lora`` imports peft.
"""

from typing import TYPE_CHECKING, Any

from image_reward.errors import TrainingError
from image_reward.lazy import lazy_names
from image_reward.tuning.config import Tuning

if TYPE_CHECKING:
    from image_reward.tuning.loop import tune
    from image_reward.tuning.noise import OptimizedNoise, optimize_noise
    from image_reward.tuning.pipelines import load_pipeline
    from image_reward.tuning.result import TuningResult
    from image_reward.tuning.reward_functions import reward_function
    from image_reward.tuning.sampling import DenoiserCall, differentiable, recorded_calls, sample
    from image_reward.tuning.selection import BestOf, best_of, preference_pairs

__all__ = [
    "BestOf",
    "DenoiserCall",
    "OptimizedNoise",
    "Tuning",
    "TuningResult",
    "best_of",
    "differentiable",
    "load_pipeline",
    "optimize_noise",
    "preference_pairs",
    "recorded_calls",
    "reward_function",
    "sample",
    "tune",
]

_name = lazy_names(
    __name__,
    {
        "noise": ["OptimizedNoise", "optimize_noise"],
        "pipelines": ["load_pipeline"],
        "reward_functions": ["reward_function"],
        "sampling": ["DenoiserCall", "differentiable", "recorded_calls", "sample"],
        "selection": ["BestOf", "best_of", "preference_pairs"],
        "loop": ["tune"],
        "result": ["TuningResult"],
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _name(name)
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise TrainingError("tuning needs the package accelerate: pip install 'image-reward[tune]'") from None
