"""Files that a command would read and then write over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from image_reward.cli.options import UsageError

_WRITTEN = ("report", "gallery", "per_prompt", "output")
"""Arguments that name files, or folders, to write."""


def refuse_overwriting(command: Any) -> None:
    """Raise ``UsageError`` where an output of a command is a file of this machine that another of its arguments names."""
    named = list(_named(command))
    read = {
        file for argument, text in named if argument not in _WRITTEN for part in (text, text.partition("=")[2]) if (file := _file(part))
    }
    for argument, text in named:
        if argument in _WRITTEN and _file(text) in read:
            raise UsageError(
                f"--{argument.replace('_', '-')} {text} is a file that is read too, and would be overwritten; give another name"
            )


def _named(command: Any) -> Iterator[tuple[str, str]]:
    """The texts and paths among the arguments of a command and of its groups, with the names of their fields."""
    for field in fields(command):
        value = getattr(command, field.name)
        if is_dataclass(value):
            yield from _named(value)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str | os.PathLike):
                yield field.name, os.fspath(each)


def _file(text: str) -> tuple[int, int] | None:
    """What tells a file from others, whatever its name; None for what is not a file."""
    try:
        status = os.stat(text)  # noqa: PTH116 - may be anything, such as a prompt
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if os.path.isfile(text) else None  # noqa: PTH113
