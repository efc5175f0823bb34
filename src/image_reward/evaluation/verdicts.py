"""Verdicts of a judge that compares two images and answers which is better, read from a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from image_reward.addresses import Address, PathLike
from image_reward.errors import ComparisonError
from image_reward.prompt_sets import first_few
from image_reward.types import Comparison

TIE = "A=B"
_ORDERS = {"A>B": 1, "B>A": -1, TIE: 0, "A=B=Good": 0, "A=B=Bad": 0}
_LABELS = {label.casefold(): label for label in _ORDERS}
_LARGEST_FILE = 1 << 28  # bytes


@dataclass(frozen=True)
class Verdicts:
    """A judge's answers on pairs of images: A>B, B>A, A=B, A=B=Good or A=B=Bad, A being the image that it was shown first."""

    labels: list[str]
    """For each pair, the answer with its images in the order of the data."""
    swapped: list[str] | None = None
    """For each pair, the answer with its images the other way round."""

    def orders(self) -> list[tuple[int, int | None]]:
        """For each pair 1 where the image shown first is better, -1 where the second is, 0 for a tie: as in the data, and swapped."""
        swapped = [None] * len(self.labels) if self.swapped is None else [_ORDERS[label] for label in self.swapped]
        return [(_ORDERS[label], other) for label, other in zip(self.labels, swapped, strict=True)]

    def rewards(self) -> list[list[float]]:
        """Rewards of the two images of each pair, whose difference is the verdict: 1, -1 or 0, or the mean of the verdicts in both orders.

        So verdicts that contradict each other are a tie, and a tie in one order only leaves the preference in the other.
        """
        means = [one if other is None else (one - other) / 2 for one, other in self.orders()]
        return [[mean / 2, -mean / 2] for mean in means]


def read_verdicts(path: PathLike | Address, comparisons: Sequence[Comparison]) -> Verdicts:
    """Verdicts that were saved, aligned with ``comparisons``.

    The file is JSON: {id: label}, or a list of labels aligned with them. In place of a label, [label, label] are the answers to the pair as
    it is in the data, and to the same pair with its images swapped; A is the image shown first. Case and spaces are ignored, and so are
    the brackets in [[A>B]]. ``null`` says that the judge gave none (``without_verdict``), and is not a verdict.

    Raises ``FileNotFoundError``, and ``ComparisonError`` that names the file and comparisons without a verdict, comparisons of more than
    two images, unknown labels, or pairs of which only some were asked in both orders.
    """
    name = Address.parse(path)
    try:
        return _aligned(_content(name), comparisons)
    except ComparisonError as error:
        raise ComparisonError(f"{name}: {error}") from None


def _content(name: Address) -> Any:
    if name.kind() != "file":
        raise FileNotFoundError(f"no such file of verdicts: {name}")
    return name.read_json(_LARGEST_FILE, ComparisonError)


def order_of(label: str) -> int:
    """1 where the image shown first is better, -1 where the second is, 0 for a tie."""
    return _ORDERS[label]


def check_pairs(comparisons: Sequence[Comparison]) -> None:
    """Raise ``ComparisonError`` for comparisons of more than two images."""
    more = [c.id for c in comparisons if len(c.images) != 2]
    if more:
        raise ComparisonError(f"verdicts are on pairs of images, and {len(more)} comparisons have more: {first_few(more)}")


def check_ids(comparisons: Sequence[Comparison]) -> None:
    """Raise ``ComparisonError`` for comparisons that an id does not tell from each other."""
    ids = [c.id for c in comparisons]
    if "" in ids:
        raise ComparisonError(f"{ids.count('')} comparisons have no id, by which verdicts are kept; give each one of its own")
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise ComparisonError(f"verdicts are kept by id, and several comparisons have {first_few(twice)}; give each one of its own")


def without_verdict(path: PathLike | Address) -> set[str]:
    """The ids that have ``null`` for a verdict, because the judge's answer could not be read. Raises ``FileNotFoundError`` for no file."""
    content = _content(Address.parse(path))
    return {id for id, verdict in content.items() if verdict is None} if isinstance(content, Mapping) else set()


def _aligned(content: Any, comparisons: Sequence[Comparison]) -> Verdicts:
    check_pairs(comparisons)
    if isinstance(content, Mapping):
        check_ids(comparisons)
        missing = [c.id for c in comparisons if c.id not in content]
        if missing:
            raise ComparisonError(f"there is no verdict on {len(missing)} of {len(comparisons)} pairs: {first_few(missing)}")
        content = [content[c.id] for c in comparisons]
    if not isinstance(content, list):
        raise ComparisonError("it has no verdicts. They are {id: label}, or a list of labels aligned with the comparisons")
    if len(content) != len(comparisons):
        raise ComparisonError(f"there are {len(content)} verdicts, but {len(comparisons)} comparisons; use {{id: label}} for others")
    answers = [answer if isinstance(answer, list) else [answer] for answer in content]
    labels = [[_LABELS.get(_plain(label)) for label in answer] for answer in answers]
    for comparison, answer, known in zip(comparisons, answers, labels, strict=True):
        if not 1 <= len(answer) <= 2 or None in known:
            raise ComparisonError(
                f"the verdict on {comparison.id} is {answer!r:.80}; a label is one of {', '.join(_ORDERS)}, and there is one, "
                "or one for each order of the images"
            )
    numbers = {len(answer) for answer in answers}
    if len(numbers) > 1:
        raise ComparisonError("some pairs have verdicts in both orders and some do not; position bias needs both, or leave out the second")
    columns = list(zip(*labels, strict=True))
    return Verdicts(*([label for label in column if label is not None] for column in columns))


def _plain(label: object) -> str:
    return re.sub(r"[\[\]\s]", "", label).casefold() if isinstance(label, str) else ""


def human_label(comparison: Comparison) -> str:
    """The label that the annotators gave a pair.

    >>> human_label(Comparison("a cat", ("1.png", "2.png"), (1, 1), both_bad=True))
    'A=B=Bad'
    """
    first, second = comparison.ranks
    if first == second:
        return "A=B=Bad" if comparison.both_bad else "A=B=Good"
    return "A>B" if first < second else "B>A"
