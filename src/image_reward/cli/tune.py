"""`image-reward tune`: tune an image generator with a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.options import print_notices
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
    tuning: Annotated[Tuning, tyro.conf.arg(name="")] = field(default_factory=Tuning)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Tune:
        return cls(*from_recipe(arguments, Tuning()))

    def run(self) -> int:
        from image_reward.tuning import tune
        from image_reward.tuning.pipelines import check_pipeline

        config = self.tuning
        if config.model:
            check_pipeline(config.model)
        print_notices([*config.reward, *config.watch])
        result = tune(config)
        print(f"{result.model}: step {result.kept_step}. {result.verdict}")
        print(f"{result.report}")
        return 0
