"""How tyro makes help of the commands' classes."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import is_dataclass
from typing import Annotated, Any, ClassVar, TextIO, get_args, get_origin, get_type_hints

import tyro

CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
"""No ``--no-json`` beside ``--json``, and no ``{None}`` among the values of an option that can be left out."""


def _default(default: str) -> str:
    if default == "True":  # of a flag that turns off what its help describes
        return "(on unless this is given)"
    return "" if default in ("None", "False", "", "''") else f"(default: {default})"


_QUIET = tyro.conf.arg(help_behavior_hint=_default)


class _Wrapping:
    """A stream that breaks long lines between words, unless they are those of a box, or in colour: both have been laid out."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.width = stream, min(shutil.get_terminal_size().columns, 120)

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            content = line.rstrip()
            if len(content) > self.width and content[0] not in "│╭╰" and "\x1b" not in content:
                line = textwrap.fill(content, self.width, break_on_hyphens=False, break_long_words=False) + line[len(content) :]
            self.stream.write(line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def wrapped_help() -> Iterator[None]:
    """Descriptions are broken between words, which tyro leaves to the terminal."""
    with redirect_stdout(_Wrapping(sys.stdout)):
        yield


def without_empty_defaults(command: type) -> None:
    """Leave "(default: None)" and "(default: False)" out of the help of a dataclass and of the groups in it.

    tyro takes this from annotations alone, so it is added to all of them here rather than written beside each.
    """
    for kind in command.__mro__:
        if not is_dataclass(kind):
            continue
        hints = get_type_hints(kind, include_extras=True)
        for name in vars(kind).get("__annotations__", {}):
            hint = hints[name]
            for part in parts_of(hint):
                if isinstance(part, type) and is_dataclass(part):
                    without_empty_defaults(part)
            base, *others = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if _QUIET not in others and get_origin(base) is not ClassVar:
                kind.__annotations__[name] = Annotated[(base, _QUIET, *others)]  # first, so that an argument's own hint prevails


def parts_of(hint: Any) -> list[Any]:
    """A type hint, and whatever is in its brackets, at any depth."""
    return [hint, *(part for argument in get_args(hint) for part in parts_of(argument))]
