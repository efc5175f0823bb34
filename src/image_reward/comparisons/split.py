"""Splits of comparisons that never share a prompt."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from image_reward.errors import InputError
from image_reward.types import Comparison

# Control and format characters that are not white space, and selectors of a glyph's variant: nobody sees them, and no tokenizer here keeps
# them, but text copied from a page or a spreadsheet is full of them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)


def normalized_prompt(prompt: str) -> str:
    """The prompt without case, compatibility forms and surplus white space: equal for two spellings of one prompt.

    Punctuation and accents stay: they can change what is asked for.

    >>> normalized_prompt("A  Cat ") == normalized_prompt("a cat")
    True
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", prompt)).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())  # again, since a letter without case may be decomposed


def split(comparisons: Sequence[Comparison], fractions: Sequence[float], seed: int = 0) -> list[list[Comparison]]:
    """Comparisons -> one list for each fraction; those of one prompt (see ``normalized_prompt``) stay together.

    Prompts are ordered by a hash of seed and prompt and cut where the number of comparisons comes nearest to the fractions, so that the
    same data and seed give the same splits on every machine, in whatever order the comparisons come. Every part gets at least one prompt.
    Within a part, comparisons keep their order.

    Raises ``ValueError`` when the fractions are not positive numbers that sum to 1, or there are fewer prompts than parts.
    """
    if len(fractions) < 2 or not all(fraction > 0 for fraction in fractions) or not abs(sum(fractions) - 1) <= 1e-6:
        raise InputError(f"fractions are two or more positive numbers that sum to 1, not {', '.join(f'{f:g}' for f in fractions)}")
    keys = [normalized_prompt(comparison.prompt) for comparison in comparisons]
    sizes = Counter(keys)
    if len(sizes) < len(fractions):
        raise InputError(f"{len(sizes)} different prompts cannot be split into {len(fractions)} parts that share none; add more prompts")
    order = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    middles, total = [], 0
    for key in order:
        middles.append(total + sizes[key] / 2)
        total += sizes[key]
    part_of: dict[str, int] = {}
    start = 0
    for part in range(len(fractions)):
        end = sum(middle < sum(fractions[: part + 1]) * len(keys) for middle in middles)
        first, last = start + 1, len(order) - (len(fractions) - 1 - part)  # one prompt for this part, and one for each that follows
        end = len(order) if part == len(fractions) - 1 else min(max(end, first), last)
        part_of |= dict.fromkeys(order[start:end], part)
        start = end
    parts: list[list[Comparison]] = [[] for _ in fractions]
    for key, comparison in zip(keys, comparisons, strict=True):
        parts[part_of[key]].append(comparison)
    return parts


def shared_prompts(first: Iterable[Comparison], second: Iterable[Comparison]) -> list[str]:
    """The prompts of ``second`` that are also in ``first``, in whatever spelling, each once."""
    known = {normalized_prompt(comparison.prompt) for comparison in first}
    shared = {key: c.prompt for c in second if (key := normalized_prompt(c.prompt)) in known}
    return list(shared.values())
