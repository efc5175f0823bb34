"""`image-reward tune`: tune an image generator with a reward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from image_reward.cli.groups import options_from, options_of, settings_from
from image_reward.cli.options import UsageError, print_notices
from image_reward.cli.recipes import RecipeCommand
from image_reward.tuning import Tuning

if TYPE_CHECKING:
    _Options = Any
else:
    _Options = options_of(Tuning)


@dataclass(frozen=True)
class Tune(RecipeCommand):
    """Tune an image generator with a reward, watched on held-out prompts. The same command again resumes an interrupted run.

    The run's folder gets a page that is rewritten at each evaluation, and a LoRA that diffusers loads.

    Several GPUs: torchrun --nproc-per-node N -m image_reward.cli tune …
    """

    dry_run: bool = False
    """Print the memory that the run needs, part by part, and its number of steps. No weight is loaded."""
    options: Annotated[_Options, tyro.conf.arg(name="")] = field(default_factory=lambda: options_from(Tuning()))
    kind = Tuning

    @property
    def tuning(self) -> Tuning:
        return settings_from(self.options, Tuning)

    def run(self) -> int:
        from image_reward.tuning.pipelines import SHAPES_GENERATOR, check_pipeline

        config = self.tuning
        if not config.model:
            raise UsageError("no generator: use --model FOLDER_OR_ID, or set model = FOLDER_OR_ID in the recipe")
        check_pipeline(config.model)
        if self.dry_run:
            from image_reward.reports.printing import show
            from image_reward.tuning.memory import estimate

            show(estimate(config).report())
            return 0
        from image_reward.tuning import tune

        if config.model != SHAPES_GENERATOR:  # which ImageReward-mini is made for
            print_notices([*config.reward, *config.watch])
        result = tune(config)
        print(f"{result.model}: step {result.kept_step}. {result.verdict}")
        print(f"{result.report}")
        return 0
