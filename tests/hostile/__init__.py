"""Malformed images, checkpoints, files of rows and rankings, made by code from valid originals, and what must come of each of them.

``python -m hostile`` uses every input in a process of its own, with limits of time and memory, and prints a line of JSON for each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import image_reward as ir
from image_reward.cli import main
from image_reward.errors import ImageRewardError

MODEL = "ImageReward-mini"
REFUSALS = (ImageRewardError, FileNotFoundError)
"""What users can cause is one of these."""
CLOSE = 1e-5
GIB = 1 << 30


class FaultError(Exception):
    """What came of an input is not what must come of it."""


@dataclass(frozen=True)
class Case:
    """One input."""

    group: str
    name: str
    use: Callable[[Path], None]
    """Makes the input in an empty folder and uses it. Raises ``FaultError``; any other exception is a fault too."""


# --- originals -----------------------------------------------------------------------------------------------------------------------

PROMPTS = [
    "a large green square above a yellow triangle on a blue background",
    "two red circles on a white background",
    "a small black cross left of a blue square",
    "three yellow triangles on a black background",
    "a red cross below a white circle",
    "a blue circle on a green background",
]


@cache
def pictures() -> list[Image.Image]:
    """One for each prompt, RGB, 96 x 80, all different."""
    pixels = np.random.RandomState(5).randint(0, 256, size=(len(PROMPTS), 10, 12, 3), dtype=np.uint8)
    return [Image.fromarray(part.repeat(8, axis=0).repeat(8, axis=1)) for part in pixels]


@cache
def scorer(**options: Any) -> Any:
    return ir.load(MODEL, "cpu", **options)


@cache
def rewards() -> list[float]:
    """Of each prompt for its picture."""
    return list(scorer().score(PROMPTS, pictures()))


def encoded(form: str, picture: Image.Image | None = None, **options: Any) -> bytes:
    """A picture, by default the first, as an image file."""
    file = io.BytesIO()
    (picture or pictures()[0]).save(file, form, **options)
    return file.getvalue()


# --- things that are not files -------------------------------------------------------------------------------------------------------


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(size: int, start: bytes = b"") -> Callable[[Path], None]:
    """A file of zeros that takes no room on the disk."""

    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def a_socket(path: Path) -> None:
    import socket

    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 108 letters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a socket": a_socket,
    "a link to /dev/zero": link("/dev/zero"),
    "a link to /dev/null": link("/dev/null"),
    "a link to a file of the system without an end": link("/proc/self/pagemap"),
    "a link to nothing": link("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a file of 50 GB": sparse(50 * GIB),
    "a file of nothing": sparse(0),
}
"""What may stand where a file is expected; none of it is ever right, but where nothing would be."""
EMPTY = ("a file of nothing", "a link to a file of the system without an end")
"""Those that may pass for a file of nothing, as they have no size."""


def write(path: Path, content: bytes | str | Callable[[Path], None]) -> Path:
    """Write a file, or let ``content`` make what stands there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def zeros(size: int) -> bytes:
    """So many zeros, deflated, without making them: a block of a megabyte again and again."""
    packer = zlib.compressobj(9)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * ((size >> 20) - 1) + b"\3\0" + b"\0\0\0\1"


def deep(levels: int = 100_000) -> str:
    """JSON that no reader's stack is deep enough for."""
    return "[" * levels + "]" * levels


def flips(data: bytes, count: int, start: int = 0, stop: int | None = None) -> list[bytes]:
    """Copies of the data, each with one bit of ``data[start:stop]`` turned."""
    random = np.random.RandomState(len(data))
    copies = []
    for place in random.randint(start, stop or len(data), size=count):
        copy = bytearray(data)
        copy[place] ^= 1 << random.randint(8)
        copies.append(bytes(copy))
    return copies


# --- what must come of an input ------------------------------------------------------------------------------------------------------


def refused(error: Exception, *words: str) -> None:
    """Raise unless the error is one that users can cause, in one line, and names the file."""
    text = str(error)
    if not isinstance(error, REFUSALS):
        raise FaultError(f"{type(error).__name__}: {text:.300}") from error
    for word in words:
        if word not in text:
            raise FaultError(f"{type(error).__name__} does not say {word!r}: {text:.300}")


def attempt(action: Callable[[], Any]) -> Any:
    """What ``action`` returns, or the error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        try:
            return action()
        except Exception as error:
            return error


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    error: str


def command(*arguments: str) -> Ended:
    """Run a command in this process; of standard error, what is no notice and no warning. A traceback is a fault."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        except Exception as escaped:
            raise FaultError(f"`{arguments[0]}` ends with a traceback of {type(escaped).__name__}: {escaped!s:.300}") from escaped
    lines = [line for line in error.getvalue().splitlines() if line.strip() and not line.startswith((MODEL, "warning: "))]
    if "Traceback" in error.getvalue():
        raise FaultError(f"`{arguments[0]}` prints a traceback: {error.getvalue()[-300:]}")
    return Ended(code, output.getvalue(), "\n".join(lines))


def command_refuses(*arguments: str, names: str) -> None:
    """A command must end with exit code 1 or 2 and one line that names the file."""
    ended = command(*arguments)
    if ended.code not in (1, 2):
        raise FaultError(f"`{arguments[0]}` ends with exit code {ended.code}")
    if len(ended.error.splitlines()) != 1 or names not in ended.error:
        raise FaultError(
            f"`{arguments[0]}` says in {len(ended.error.splitlines())} lines, of which one must name {names}: {ended.error:.300}"
        )


def mini(folder: Path) -> Path:
    """A copy of the embedded model's folder."""
    source = Path(ir.__file__).parent / "assets" / MODEL
    return Path(shutil.copytree(source, folder))


def json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def all_cases() -> list[Case]:
    from hostile import checkpoints, images, rankings, rows

    found: Sequence[Case] = [*images.cases(), *checkpoints.cases(), *rows.cases(), *rankings.cases()]
    names = [(case.group, case.name) for case in found]
    assert len(set(names)) == len(names), "two cases of one name"
    return list(found)
