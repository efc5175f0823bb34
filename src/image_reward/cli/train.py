"""``image-reward train``: learn a reward model from comparisons."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.errors import ImageRewardError
from image_reward.training.config import RewardTraining, read_toml
from image_reward.types import Comparison


@dataclass(frozen=True)
class Train:
    """Learn a reward model from comparisons, into a run's folder; the same command again goes on where a killed run stopped.

    Several GPUs: torchrun --nproc-per-node NUMBER -m image_reward.cli train …
    """

    recipe: Path | None = None
    """A TOML file with any of the settings below; a flag given too wins."""
    training: Annotated[RewardTraining, tyro.conf.arg(name="")] = field(default_factory=RewardTraining)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Train:
        """The command as the recipe named among the arguments has it: what flags are laid over (tyro's ``default``).

        Raises ``ValueError`` and ``FileNotFoundError`` that name the recipe.
        """
        given = [b for a, b in pairwise(arguments) if a == "--recipe"]
        given += [a.removeprefix("--recipe=") for a in arguments if a.startswith("--recipe=")]
        if not given:
            return cls()
        if not Path(given[-1]).is_file():
            raise FileNotFoundError(f"no such recipe: {given[-1]}")
        return cls(Path(given[-1]), read_toml(Path(given[-1])))

    def run(self) -> int:
        from image_reward.training import train

        config = self.training
        if not config.data:
            print("image-reward train: no data; give --data FILE … or a recipe that names some", file=sys.stderr)
            return 2
        try:
            result = train(config, read_sources(config, config.data, "train"), read_sources(config, config.validation, "test"))
        except (ImageRewardError, ValueError, OSError) as error:
            print(f"image-reward train: {error}", file=sys.stderr)
            return 1
        accuracy = "" if result.accuracy is None else f", pairwise accuracy {result.accuracy:.4f} on validation"
        print(f"{result.model}: step {result.best_step}{accuracy}")
        return 0


def read_sources(config: RewardTraining, sources: Sequence[str], split: str) -> list[Comparison]:
    """The comparisons that a config's ``data`` or ``validation`` names.

    ``shapes:PROMPTS`` or ``shapes:PROMPTS:SEED`` are drawn, at the network's size, from the train or the test side of the shapes world;
    anything else is a path that ``comparisons.read`` takes.
    """
    comparisons: list[Comparison] = []
    for source in sources:
        kind, _, numbers = source.partition(":")
        if kind == "shapes":
            try:
                num_prompts, seed = (int(n) for n in (numbers + ":0").split(":")[:2])
            except ValueError:
                raise ValueError(f"{source!r} is not of the form shapes:PROMPTS or shapes:PROMPTS:SEED") from None
            shapes = import_module("image_reward.comparisons.shapes")
            comparisons += shapes.comparisons(num_prompts, seed, size=config.network.image_size, split=split)
        else:
            comparisons += import_module("image_reward.comparisons").read(source)
    return comparisons


def parse(arguments: Sequence[str]) -> Train:
    """Flags over the recipe's settings."""
    return tyro.cli(Train, args=list(arguments), default=Train.defaults(arguments))
