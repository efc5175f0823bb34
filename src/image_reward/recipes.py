"""Recipes: dataclasses with all settings of a training run, and the TOML files that fill them. They need no PyTorch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from image_reward.errors import InputError
from image_reward.files import fill, read_regular

Settings = TypeVar("Settings", bound="Recipe")
Schedule = Literal["cosine", "linear", "constant"]

_LARGEST_RECIPE = 1 << 20
_HIGHEST_SEED = 2**32


class Recipe:
    """Base of the dataclasses that hold all settings of a run; flags and a TOML file both fill them."""

    output: str
    """The run's folder."""
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Settings that may change between the parts of one run: its result does not depend on them."""
    groups: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Groups of the settings in the help of a command: of each its first setting, and what it is about. Those before are in none."""

    def difference(self, other: Recipe) -> list[str]:
        """The settings that differ and affect the result: lines such as ``lr: 1e-05 there, 0.001 here``."""
        return [
            f"{f.name}: {getattr(self, f.name)!r} there, {getattr(other, f.name)!r} here"
            for f in fields(self)  # type: ignore[arg-type]
            if f.name not in self.without_effect and getattr(self, f.name) != getattr(other, f.name)
        ]

    def to_toml(self) -> str:
        values = {name: value for name, value in asdict(self).items() if value is not None}  # type: ignore[call-overload]
        tables = {name: values.pop(name) for name in list(values) if isinstance(values[name], dict)}
        lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
        for table, entries in tables.items():
            lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in entries.items())]
        return "\n".join(lines) + "\n"

    def check_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be greater than 0, not {getattr(self, name)}")

    def check_not_negative(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}")

    def check_share(self, *names: str, below_one: bool = False) -> None:
        for name in names:
            value = getattr(self, name)
            if not 0 <= value <= 1 or (below_one and value == 1):
                raise InputError(f"{name} must be from 0 to {'less than ' if below_one else ''}1, not {value}")

    def check_unused(self, is_so: bool, why: str, remedy: str, *names: str) -> None:
        """Raise ``InputError`` if it is so, and one of these settings is not 0, empty or its default: it would be ignored without a word.

        ``why`` and ``remedy``: the settings that leave it without effect, and what to change in them.
        """
        if not is_so:
            return
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if each.name in names and value and value != each.default:
                raise InputError(
                    f"{each.name} is {_toml(value)}, and {why}, so it would have no effect: leave {each.name} out, or {remedy}"
                )

    def check_seed(self) -> None:
        seed = self.seed  # type: ignore[attr-defined]
        if not 0 <= seed < _HIGHEST_SEED:
            raise InputError(f"seed must be at least 0 and less than {_HIGHEST_SEED:,}, not {seed}")


def read_toml(path: Path, defaults: Settings) -> Settings:
    """A recipe: ``defaults`` overridden by the file.

    Raises ``FileNotFoundError``, or ``InputError`` that names the file, the key and the likely key.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = read_regular(path, _LARGEST_RECIPE)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such recipe: {path}") from None
    try:
        values = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    return fill(defaults, values, str(path), InputError)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
