"""The outcome of a tuning run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TuningResult:
    """The outcome of a run."""

    model: str
    """A folder: the LoRA that ``pipe.load_lora_weights`` takes, or the denoiser's weights where all were trained."""
    steps: int
    kept_step: int
    """The step whose weights were kept: the last evaluation without signs of over-optimisation. 0 is the untuned generator."""
    stopped: bool
    """Whether the monitors ended the run."""
    verdict: str
    """In a sentence."""
    untuned_reward: float
    """On the held-out prompts, as all that follow."""
    reward: float
    """Of the weights that were kept."""
    target: float | None
    watched: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of each scorer that was watched: its mean for the untuned generator, and for the weights that were kept."""
    report: str = ""
    """The page."""
