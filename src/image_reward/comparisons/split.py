"""Splits of comparisons that never share a prompt."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from image_reward.types import Comparison


def normalized_prompt(prompt: str) -> str:
    """What two spellings of one prompt have in common: letters without case or compatibility forms, and single spaces.

    >>> normalized_prompt("A  Cat\\n") == normalized_prompt("a cat")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def split(comparisons: Sequence[Comparison], fractions: Sequence[float], seed: int = 0) -> list[list[Comparison]]:
    """Comparisons -> one list for each fraction; those of one prompt (see ``normalized_prompt``) stay together.

    Prompts are ordered by a hash of seed and prompt and cut where the number of comparisons comes nearest to the fractions, so that the
    same data and seed give the same splits on every machine, in whatever order the comparisons come. Within a split they keep their order.

    Raises ``ValueError`` when the fractions are not positive numbers that sum to 1, or a split would be empty.
    """
    if len(fractions) < 2 or not all(fraction > 0 for fraction in fractions) or not abs(sum(fractions) - 1) <= 1e-6:
        raise ValueError(f"fractions are two or more positive numbers that sum to 1, not {', '.join(f'{f:g}' for f in fractions)}")
    keys = [normalized_prompt(comparison.prompt) for comparison in comparisons]
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    part_of: dict[str, int] = {}
    middle = 0.0
    ends = [sum(fractions[: i + 1]) * len(keys) for i in range(len(fractions))]
    for key in sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest()):
        middle += sizes[key] / 2
        part_of[key] = next((part for part, end in enumerate(ends) if middle < end), len(ends) - 1)
        middle += sizes[key] / 2
    parts: list[list[Comparison]] = [[] for _ in fractions]
    for key, comparison in zip(keys, comparisons, strict=True):
        parts[part_of[key]].append(comparison)
    if not all(parts):
        empty = fractions[next(i for i, part in enumerate(parts) if not part)]
        raise ValueError(
            f"{len(sizes)} prompts cannot be split so: the part of {empty:g} would be empty; give it more, or bring more prompts"
        )
    return parts
