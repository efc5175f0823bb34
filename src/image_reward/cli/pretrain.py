"""`image-reward pretrain`: masked language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.recipes import from_recipe, read_training_data
from image_reward.training import MaskedLanguageTraining


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a network from random weights by masked language modelling on the best-ranked images of human rankings.

    To train from the result: image-reward train --start OUTPUT.

    Several processes: torchrun --nproc-per-node NUMBER -m image_reward.cli pretrain …
    """

    recipe: Path | None = None
    """A TOML file with any of the settings below; options on the command line take precedence."""
    training: Annotated[MaskedLanguageTraining, tyro.conf.arg(name="")] = field(default_factory=MaskedLanguageTraining)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Pretrain:
        return cls(*from_recipe(arguments, MaskedLanguageTraining()))

    def run(self) -> int:
        from image_reward.training import pretrain

        result = pretrain(self.training, read_training_data(self.training.data))
        print(f"{result.model}: {result.steps} steps, {result.accuracy:.3f} of masked tokens predicted correctly")
        return 0
