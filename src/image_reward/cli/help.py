"""How tyro makes help of the commands' classes."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Annotated, Any, ClassVar, TextIO, get_args, get_origin, get_type_hints

import tyro

CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
"""No ``--no-json`` beside ``--json``, and no ``{None}`` among the values of an option that can be left out."""


def _default(default: str) -> str:
    if default == "True":  # of a flag that turns off what its help describes
        return "(on unless this is given)"
    return "" if default in ("None", "False", "", "''") else f"(default: {default})"


class _Wrapping:
    """A stream that breaks long lines between words, unless they are those of a box, or in colour: both have been laid out.

    What tyro leaves empty is left out: the line after an option without a default whose help fills its last line.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.width = stream, min(shutil.get_terminal_size().columns, 120)
        self.in_options = self.left_out = False

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            content = line.rstrip()
            plain = re.sub("\x1b\\[[0-9;]*m", "", content)
            if plain.startswith("╭"):
                self.in_options = plain.rstrip("─╮ ").endswith(("options", "arguments"))
            is_end = line == "\n" and self.left_out  # `print` writes it apart
            self.left_out = self.in_options and bool(re.fullmatch("│ *│", plain))
            if is_end or self.left_out:
                continue
            if len(content) > self.width and content[0] not in "│╭╰" and "\x1b" not in content:
                content = re.sub(r"\{[\w,-]{60,}\}", "COMMAND", content)  # too many commands for one word
                line = textwrap.fill(content, self.width, break_on_hyphens=False, break_long_words=False) + line[len(line.rstrip()) :]
            self.stream.write(line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def wrapped_help() -> Iterator[None]:
    """Descriptions are broken between words, which tyro leaves to the terminal."""
    with redirect_stdout(_Wrapping(sys.stdout)):
        yield


def prepare_help(command: type) -> None:
    """Make what tyro says of a dataclass, and of the groups in it, say no more than is meant.

    The text below a field becomes its help as one paragraph, where tyro keeps the ends of its lines; "(default: None)" and "(default:
    False)" are left out. tyro takes both from annotations, so they are added to all of them here rather than written beside each.
    """
    for kind in command.__mro__:
        if not is_dataclass(kind):
            continue
        hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
        for name in vars(kind).get("__annotations__", {}):
            hint = hints[name]
            for part in parts_of(hint):
                if isinstance(part, type) and is_dataclass(part):
                    prepare_help(part)
            base, *others = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if get_origin(base) is not ClassVar and not any(isinstance(each, _Prepared) for each in others):
                own = tyro.conf.arg(help=docs.get(name), help_behavior_hint=_default)
                kind.__annotations__[name] = Annotated[(base, _Prepared(), own, *others)]  # first, so that an argument's own prevails


class _Prepared:
    """Marks an annotation that has been prepared."""


def field_docs(kind: type) -> dict[str, str]:
    """The text below each field of a class, as one paragraph; nothing for a class that no file holds."""
    module = sys.modules.get(kind.__module__)
    return _docs_in(module).get(kind.__qualname__, {}) if module else {}


@cache
def _docs_in(module: ModuleType) -> dict[str, dict[str, str]]:
    try:
        body = ast.parse(inspect.getsource(module)).body
    except (OSError, TypeError):
        return {}
    return {statement.name: dict(_documented(statement.body)) for statement in body if isinstance(statement, ast.ClassDef)}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, text in pairwise(body):
        match statement, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                yield name, " ".join(doc.split())


def parts_of(hint: Any) -> list[Any]:
    """A type hint, and whatever is in its brackets, at any depth."""
    return [hint, *(part for argument in get_args(hint) for part in parts_of(argument))]
