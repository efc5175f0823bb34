"""Recipes: a TOML file with the settings of a training command, over which its options take precedence; and where its data comes from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from image_reward.cli.groups import options_from, settings_from
from image_reward.cli.options import UsageError
from image_reward.errors import InputError
from image_reward.recipes import Recipe, read_toml

if TYPE_CHECKING:
    from image_reward.types import Comparison

Settings = TypeVar("Settings", bound=Recipe)


@dataclass(frozen=True)
class RecipeCommand:
    """For commands that train: their settings come from a recipe, their options, or both."""

    recipe: Path | None = None
    """A TOML file with any of the settings below; options on the command line take precedence."""
    options: Any = None
    """The settings, as ``options_of`` their class ``kind``."""
    kind: ClassVar[type[Recipe]]

    def check_settings(self) -> None:
        """Raise ``InputError`` for values that make no sense."""
        settings_from(self.options, self.kind)

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Any:
        recipe, settings = from_recipe(arguments, cls.kind())
        return cls(recipe, options_from(settings))


def from_recipe(arguments: Sequence[str], defaults: Settings) -> tuple[Path | None, Settings]:
    """The recipe among the arguments, and the settings with its values: the defaults of the options.

    Raises ``ValueError`` and ``FileNotFoundError`` that name the recipe.
    """
    named = [b for a, b in pairwise(arguments) if a == "--recipe"]
    named += [a.removeprefix("--recipe=") for a in arguments if a.startswith("--recipe=")]
    if not named:
        return None, defaults
    path = Path(named[-1])
    return path, read_toml(path, defaults)


def read_training_data(sources: Sequence[str]) -> list[Comparison]:
    """``read_sources`` of a recipe's ``data``, which must name some. Raises ``UsageError``."""
    if not sources:
        raise UsageError("no training data: use --data FILE …, or set data = [FILE, …] in the recipe")
    return read_sources(sources, "train")


def read_sources(sources: Sequence[str], split: Literal["train", "test"]) -> list[Comparison]:
    """The comparisons that a recipe's ``data`` or ``validation`` names.

    ``shapes:PROMPTS`` or ``shapes:PROMPTS:SEED`` are drawn from the train or the test side of the shapes world; anything else is a path
    that ``comparisons.read`` takes.
    """
    from image_reward.comparisons import read, shapes

    comparisons: list[Comparison] = []
    for source in sources:
        kind, _, numbers = source.partition(":")
        if kind == "shapes":
            if not (match := re.fullmatch("([1-9][0-9]{0,8})(?::([0-9]{1,9}))?", numbers)):
                raise InputError(f"{source!r} is not of the form shapes:PROMPTS or shapes:PROMPTS:SEED")
            comparisons += shapes.comparisons(int(match[1]), int(match[2] or 0), split=split)
        else:
            comparisons += read(source)
    return comparisons
