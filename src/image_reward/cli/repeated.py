"""Options that a command line names more than once, of which tyro keeps the last without a word."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import tyro

from image_reward.cli.help import parts_of
from image_reward.cli.options import UsageError


def refuse_repeated(command: str, kind: type, arguments: Sequence[str]) -> None:
    """Raise ``UsageError`` for an option that is named twice, unless it is a flag or collects its values. ``kind``: the command's class."""
    names = [_name(argument) for argument in itertools.takewhile(lambda argument: argument != "--", arguments) if argument[:2] == "--"]
    repeated = {name: num for name, num in Counter(names).items() if num > 1}
    if not repeated:
        return  # the hints of all options take a while to read
    once = set(_taken_once(kind))
    for name, num in repeated.items():
        if name in once:
            raise UsageError(f"--{name} is named {num} times, and {command} takes it once; leave out all but one")


def _name(argument: str) -> str:
    return argument[2:].partition("=")[0].replace("_", "-")


def _taken_once(kind: type, prefix: str = "") -> Iterator[str]:
    for field, hint in get_type_hints(kind, include_extras=True).items():
        name, parts = prefix + field.replace("_", "-"), parts_of(hint)
        groups = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
        for group in groups:
            for inside in ("", f"{name}."):  # some groups are without the prefix
                yield from _taken_once(group, inside)
        if not groups and not {tyro.conf.UseAppendAction, bool} & set(_hashable(parts)):
            yield name


def _hashable(parts: Sequence[Any]) -> Iterator[Any]:
    return (part for part in parts if part is bool or part is tyro.conf.UseAppendAction)
