"""`image-reward pretrain`: masked language modelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from image_reward.cli.groups import options_from, options_of, settings_from
from image_reward.cli.recipes import RecipeCommand, read_training_data
from image_reward.training import MaskedLanguageTraining

if TYPE_CHECKING:
    _Options = Any
else:
    _Options = options_of(MaskedLanguageTraining)


@dataclass(frozen=True)
class Pretrain(RecipeCommand):
    """Pretrain a network from random weights by masked language modelling on the best-ranked images of human rankings.

    To train from the result: image-reward train --start OUTPUT.

    Several processes: torchrun --nproc-per-node N -m image_reward.cli pretrain …
    """

    options: Annotated[_Options, tyro.conf.arg(name="")] = field(default_factory=lambda: options_from(MaskedLanguageTraining()))
    kind = MaskedLanguageTraining

    @property
    def training(self) -> MaskedLanguageTraining:
        return settings_from(self.options, MaskedLanguageTraining)

    def run(self) -> int:
        from image_reward.training import pretrain

        result = pretrain(self.training, read_training_data(self.training.data))
        print(f"{result.model}: {result.steps} steps, {result.accuracy:.3f} of masked tokens predicted correctly")
        return 0
