from __future__ import annotations

import random

import pytest

from image_reward.comparisons import normalized_prompt, shared_prompts, split
from image_reward.types import Comparison


def rankings(num_prompts: int, each: int = 1) -> list[Comparison]:
    spellings = [str, str.upper, lambda text: f"  {text}\n", lambda text: text.replace(" ", "  ")]
    return [
        Comparison(spellings[k % 4](f"prompt number {i}"), ("a", "b"), (1, 2), id=f"{i}-{k}")
        for k in range(each)
        for i in range(num_prompts)
    ]


def test_spellings_of_one_prompt_are_one_prompt() -> None:
    for spellings in [
        ("A Cat", "a cat", " a\tcat ", "ａ cat", "\ufeffa\u00a0cat\u200b", "a c\u00adat", "a\r\ncat\0", "a\u2003cat"),
        ("Straße", "STRASSE", "strasse"),
        ("café", "cafe\u0301", "CAFÉ"),
        ("a ﬁne ☀ day", "A fine ☀\ufe0f Day"),
        ("ΐ", "\u03b9\u0308\u0301", "Ϊ\u0301"),
    ]:
        assert len({normalized_prompt(text) for text in spellings}) == 1
    for text in ("a cat.", "a, cat", "a cât", "acat", "a cat a cat"):
        assert normalized_prompt(text) != normalized_prompt("a cat")


def test_normalizing_twice_changes_nothing() -> None:
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000:
            once = normalized_prompt(f"a{chr(code)}b")
            assert normalized_prompt(once) == once, hex(code)


def test_no_prompt_is_in_two_splits_and_nothing_is_lost() -> None:
    given = rankings(100, each=4)
    parts = split(given, (0.8, 0.1, 0.1))
    prompts = [{normalized_prompt(c.prompt) for c in part} for part in parts]
    assert [len(p) for p in prompts] == [80, 10, 10]
    assert [len(part) for part in parts] == [320, 40, 40]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]
    assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in given)


def test_fractions_count_comparisons_not_prompts() -> None:
    given = rankings(50) + [Comparison("one that was ranked often", ("a", "b"), (1, 2), id=f"often-{i}") for i in range(50)]
    sizes = [len(part) for part in split(given, (0.5, 0.5))]
    assert sum(sizes) == 100
    assert max(sizes) <= 75


def test_the_seed_decides_and_the_order_does_not() -> None:
    given = rankings(60)
    ids = [{c.id for c in part} for part in split(given, (0.7, 0.3), seed=1)]
    shuffled = random.Random(0).sample(given, len(given))
    assert [{c.id for c in part} for part in split(shuffled, (0.7, 0.3), seed=1)] == ids
    assert [{c.id for c in part} for part in split(given, (0.7, 0.3), seed=2)] != ids
    part = split(given, (0.7, 0.3))[0]
    assert [c.id for c in part] == [c.id for c in given if c in part]  # a split keeps the order


def test_the_splits_of_a_seed_are_these_on_every_machine() -> None:
    assert [c.id for c in split(rankings(12), (0.75, 0.25), seed=0)[1]] == ["1-0", "2-0", "4-0"]


@pytest.mark.parametrize("fractions", [(1.0,), (0.5, 0.6), (0.5, 0.4), (1.2, -0.2), (1.0, 0.0)])
def test_fractions_that_are_none(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="fractions are two or more positive numbers that sum to 1"):
        split(rankings(10), fractions)


@pytest.mark.parametrize("num_prompts", [3, 4, 7, 40])
def test_every_part_gets_a_prompt_however_small_its_fraction(num_prompts: int) -> None:
    for fractions in [(0.98, 0.01, 0.01), (0.01, 0.98, 0.01), (0.01, 0.01, 0.98)]:
        parts = split(rankings(num_prompts, each=3), fractions)
        assert sorted(len({normalized_prompt(c.prompt) for c in part}) for part in parts) == [1, 1, num_prompts - 2]
    often = [Comparison("ranked often", ("a", "b"), (1, 2))] * 100 + rankings(2)
    assert all(split(often, (0.4, 0.3, 0.3), seed=seed)[part] for seed in range(20) for part in range(3))


def test_fewer_prompts_than_parts_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="2 different prompts cannot be split into 3 parts that share none; add more prompts"):
        split(rankings(2, each=3), (0.8, 0.1, 0.1))


def test_prompts_that_two_sets_share_are_found_in_whatever_spelling() -> None:
    first, second = rankings(10, each=2), [*rankings(12)[9:], *rankings(10, each=4)[-1:], Comparison("new", ("a", "b"), (1, 2))]
    assert shared_prompts(first, second) == ["prompt  number  9"]
    assert shared_prompts(second, first[:9]) == []
