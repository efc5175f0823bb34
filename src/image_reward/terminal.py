"""Text on its way to a terminal or a stream: whatever it holds, it can be encoded, and it cannot steer the terminal."""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 and C1 without tab and newline: cursor, colours, title, clipboard


def printable(text: str) -> str:
    r"""Text with its control characters spelled out.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _CONTROLS.sub(lambda control: f"\\x{ord(control[0]):02x}", text)


def note(text: str) -> None:
    """Print a line to standard error."""
    print(printable(text), file=sys.stderr)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("image_reward.escaped", _escaped)


@contextmanager
def encodable_output() -> Iterator[None]:
    """Within this, what standard output or error cannot encode is written as JSON escapes it (``\\u6f22``) and ends no program.

    So are lone surrogates, such as in a file's name that is not UTF-8; and JSON stays JSON.
    """
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper) and s.errors in ("strict", "surrogateescape")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="image_reward.escaped")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)
