"""`image-reward train`: train a reward model on comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from image_reward.cli.groups import options_from, options_of, settings_from
from image_reward.cli.recipes import RecipeCommand, read_sources, read_training_data
from image_reward.training import RewardTraining

if TYPE_CHECKING:
    _Options = Any
else:
    _Options = options_of(RewardTraining)


@dataclass(frozen=True)
class Train(RecipeCommand):
    """Train a reward model on human rankings. The same command again resumes an interrupted run.

    Several GPUs: torchrun --nproc-per-node N -m image_reward.cli train …
    """

    options: Annotated[_Options, tyro.conf.arg(name="")] = field(default_factory=lambda: options_from(RewardTraining()))
    kind = RewardTraining

    @property
    def training(self) -> RewardTraining:
        return settings_from(self.options, RewardTraining)

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
