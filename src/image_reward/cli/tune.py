"""`image-reward tune`: tune an image generator with a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.options import UsageError, print_notices
from image_reward.cli.recipes import from_recipe
from image_reward.tuning import Tuning


@dataclass(frozen=True)
class Tune:
    """Tune an image generator with a reward, watched on held-out prompts. The same command again resumes an interrupted run.

    The run's folder gets a page that is rewritten at each evaluation, and a LoRA that diffusers loads. Several GPUs: torchrun
    --nproc-per-node NUMBER -m image_reward.cli tune …
    """

    recipe: Path | None = None
    """A TOML file with any of the settings below; options on the command line take precedence."""
    dry_run: bool = False
    """Print the memory that the run needs, part by part, and its number of steps. No weight is loaded."""
    tuning: Annotated[Tuning, tyro.conf.arg(name="")] = field(default_factory=Tuning)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Tune:
        recipe, tuning = from_recipe(arguments, Tuning())
        return cls(recipe, tuning=tuning)

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
