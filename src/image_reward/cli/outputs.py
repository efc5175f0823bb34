"""What a command writes, before it does anything: never a file that it reads, and never a folder called ~."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from image_reward.cli.options import UsageError

_WRITTEN = ("report", "gallery", "per_prompt", "output", "save_results", "copy_to")
"""Arguments that name files, or folders, to write."""


def check_outputs(command: Any) -> None:
    """Raise ``UsageError`` where an output of a command begins with ``~``, or is a file of this machine that another argument names.

    A shell leaves the tilde of ``--output=~/runs`` alone, and so does a recipe.
    """
    named = list(_named(command))
    read = {
        file for argument, text in named if argument not in _WRITTEN for part in (text, text.partition("=")[2]) if (file := _file(part))
    }
    for argument, text in named:
        if argument not in _WRITTEN:
            continue
        option = f"--{argument.replace('_', '-')} {text}"
        if re.match(r"~\w*(/|$)", text) and not os.path.exists(text.partition("/")[0]):  # noqa: PTH110
            raise UsageError(f"{option}: ~ is not expanded here; write the folder's whole name")
        if _file(text) in read:
            raise UsageError(f"{option} is a file that is read too, and would be overwritten; give another name")


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
