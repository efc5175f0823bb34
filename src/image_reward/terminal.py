"""Text on its way to a terminal or a stream: whatever it holds, it can be encoded, and it cannot steer the terminal."""

from __future__ import annotations

import codecs
import io
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# C0 and C1 without tab and newline: cursor, colours, title, clipboard. Lone surrogates, of which names that are not UTF-8 have some.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text with its control characters and lone surrogates spelled out.

    >>> printable("a\x1b[2Jb"), printable("l\udce9")
    ('a\\x1b[2Jb', 'l\\udce9')
    """
    return _UNPRINTABLE.sub(lambda character: (r"\u%04x" if character[0] > "\xff" else r"\x%02x") % ord(character[0]), text)


def note(text: str) -> None:
    """Print a line to standard error."""
    print(printable(text), file=sys.stderr)


class StatusLine:
    """How far work is, on standard error: one line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self, seconds: float | None = None, rewrite: bool = True) -> None:
        """``seconds``: at least, between two states; by default 0.2 on a terminal, 10 elsewhere. ``rewrite``: else lines there too."""
        self.is_terminal = rewrite and sys.stderr.isatty()
        self._seconds = seconds if seconds is not None else 0.2 if self.is_terminal else 10.0
        self._last = time.monotonic()
        self._is_open = False

    def show(self, text: Callable[[], str], now: bool = False) -> None:
        """Show a state if it is time to, or ``now``. On a terminal it is cut to one line, as only one can be written over."""
        if not now and time.monotonic() - self._last < self._seconds:
            return
        self._last = time.monotonic()
        line = printable(text())
        if self.is_terminal:
            sys.stderr.write(f"{_CLEAR}{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
            self._is_open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line above the state."""
        self.clear()
        note(text)

    def clear(self) -> None:
        if self._is_open:
            sys.stderr.write(_CLEAR)
            self._is_open = False

    def end(self) -> None:
        """Let the state stand."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False


_CLEAR = "\r\x1b[K"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(75), duration(600), duration(9000)
    ('42 s', '1 min 15 s', '10 min', '2 h 30 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min{f' {rest} s' if rest and minutes < 10 else ''}" if minutes else f"{rest} s"


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
