from __future__ import annotations

import random

import pytest

from image_reward.comparisons import normalized_prompt, split
from image_reward.types import Comparison


def rankings(num_prompts: int, each: int = 1) -> list[Comparison]:
    spellings = [str, str.upper, lambda text: f"  {text}\n", lambda text: text.replace(" ", "  ")]
    return [
        Comparison(spellings[k % 4](f"prompt number {i}"), ("a", "b"), (1, 2), id=f"{i}-{k}")
        for k in range(each)
        for i in range(num_prompts)
    ]


def test_spellings_of_one_prompt_are_one_prompt() -> None:
    assert len({normalized_prompt(text) for text in ("A Cat", "a cat", " a\tcat ", "ａ cat")}) == 1
    assert normalized_prompt("a cat") != normalized_prompt("a cat.")


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


def test_a_split_is_never_empty() -> None:
    with pytest.raises(ValueError, match=r"2 prompts cannot be split so: the part of 0\.\d+ would be empty"):
        split(rankings(2, each=3), (0.8, 0.1, 0.1))
