"""Numbers and texts as reports show them. What is not defined is a dash."""

from __future__ import annotations

from collections.abc import Callable

from image_reward.metrics import Interval

_LONGEST_TEXT = 90  # characters of a prompt or a message in a table


def decimal(value: float | None, digits: int = 4) -> str:
    """
    >>> decimal(0.5), decimal(None)
    ('0.5000', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share in percent, without the sign.

    >>> percent(0.65141), percent(0.5, digits=1)
    ('65.14', '50.0')
    """
    return decimal(None if share is None else 100 * share, digits)


def with_interval(estimate: Interval | None, show: Callable[[float | None], str] = decimal) -> str:
    """
    >>> with_interval(Interval(0.65141, 0.632, 0.66911, 466), percent)
    '65.14 [63.20, 66.91]'
    """
    if estimate is None or estimate.value is None:
        return "-"
    ends = "" if estimate.low is None else f" [{show(estimate.low)}, {show(estimate.high)}]"
    return show(estimate.value) + ends


def between(low: float | None, high: float | None, digits: int = 4) -> str:
    """
    >>> between(0.1, 0.25, digits=2)
    '0.10 to 0.25'
    """
    return f"{decimal(low, digits)} to {decimal(high, digits)}"


def p_value(p: float) -> str:
    """
    >>> p_value(0.0002), p_value(0.0399)
    ('< 0.001', '0.040')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def confidence_level(confidence: float) -> str:
    """
    >>> confidence_level(0.95)
    '95 %'
    """
    return f"{100 * confidence:g} %"


def counted(num: int, noun: str) -> str:
    """
    >>> counted(1, "prompt"), counted(1632, "prompt")
    ('1 prompt', '1,632 prompts')
    """
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def short(text: str, longest: int = _LONGEST_TEXT) -> str:
    """A text on one line, cut where it is longer than ``longest`` characters.

    >>> short("a cat  on a chair", longest=8)
    'a cat o…'
    """
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
