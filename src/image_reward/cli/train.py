"""`image-reward train`: train a reward model on comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.recipes import from_recipe, read_sources, read_training_data
from image_reward.training import RewardTraining


@dataclass(frozen=True)
class Train:
    """Train a reward model on human rankings. The same command again resumes an interrupted run.

    Several GPUs: torchrun --nproc-per-node NUMBER -m image_reward.cli train …
    """

    recipe: Path | None = None
    """A TOML file with any of the settings below; options on the command line take precedence."""
    training: Annotated[RewardTraining, tyro.conf.arg(name="")] = field(default_factory=RewardTraining)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Train:
        return cls(*from_recipe(arguments, RewardTraining()))

    def run(self) -> int:
        from image_reward.training import train

        config = self.training
        from image_reward.reports.numbers import counted

        result = train(config, read_training_data(config.data), read_sources(config.validation, "test"))
        start = " (the initial weights: nothing was learnt)" if result.is_start else ""
        pairs = f"{counted(result.num_validation_pairs, 'pair')} of {counted(result.num_validation, 'comparison')}"
        accuracy = "" if result.accuracy is None else f", pairwise accuracy {result.accuracy:.4f} on validation ({pairs})"
        print(f"{result.model}: step {result.best_step}{start}{accuracy}")
        return 0
