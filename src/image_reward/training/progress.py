"""Where a run is, on stderr: one line that is rewritten on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    def __init__(self, start: int, total: int, shown: bool) -> None:
        """``start`` steps of ``total`` were done before; nothing is printed unless ``shown``."""
        self.start, self.total, self.shown = start, total, shown
        self.live = shown and sys.stderr.isatty()
        self.began = self.drawn = time.monotonic()
        self.images = 0

    def step(self, step: int, images: int, values: str, due: bool) -> None:
        """``due``: this step is logged, so it is shown even where lines cannot be rewritten."""
        self.images += images
        now = time.monotonic()
        if not self.shown or not (due or (self.live and now - self.drawn > 0.2)):
            return
        self.drawn = now
        passed = max(now - self.began, 1e-9)
        left = passed / (step - self.start) * (self.total - step)
        line = f"step {step}/{self.total}  {values}  {self.images / passed:.1f} images/s  {duration(left)} left"
        sys.stderr.write(f"\r\x1b[K{line}" if self.live else f"{line}\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        if self.shown:
            sys.stderr.write(("\r\x1b[K" if self.live else "") + text + "\n")
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(600), duration(9000)
    ('42 s', '10 min', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
