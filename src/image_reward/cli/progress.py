"""Progress of work that takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from image_reward.terminal import StatusLine, duration


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A line on standard error, where that is a terminal. Yields a function that takes how much is done, and of how much (if known)."""
    line, start = StatusLine(), time.monotonic()

    def update(done: int, total: int | None) -> None:
        if line.is_terminal:
            line.show(lambda: state(what, done, total, time.monotonic() - start))

    try:
        yield update
    finally:
        line.clear()


def state(what: str, done: int, total: int | None, seconds: float) -> str:
    """
    >>> state("images", 500, 2000, 100.0), state("images", 0, None, 1.0)
    ('500 of 2,000 images, 5 min left', '0 images')
    """
    if total is None:
        return f"{done:,} {what}"
    left = f", {duration(seconds / done * (total - done))} left" if 0 < done < total else ""
    return f"{done:,} of {total:,} {what}{left}"
