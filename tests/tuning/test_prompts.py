from __future__ import annotations

import random
from pathlib import Path

import pytest

from image_reward.comparisons.shapes import split_of
from image_reward.errors import InputError, RowsError
from image_reward.tuning.config import Tuning
from image_reward.tuning.prompts import TuningPrompts, other_prompts, read_prompts

MANY = [f"a cat of {number} spots" for number in range(40)]


def test_prompts_of_the_shapes_world_are_of_their_split() -> None:
    assert all(split_of(prompt) == "train" for prompt in read_prompts("shapes:20", "train"))
    assert all(split_of(prompt) == "test" for prompt in read_prompts("shapes:5:3", "test"))
    assert len(read_prompts("shapes:one", "train")) == 387
    assert all(split_of(prompt) == "test" for prompt in read_prompts("shapes:one", "test"))
    with pytest.raises(InputError, match=r"'shapes:0' is not of the form shapes:KIND \(one, count, relation\), shapes:PROMPTS"):
        read_prompts("shapes:0", "train")


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    assert read_prompts(str(tmp_path / "p.txt"), "train") == ["a cat", "a dog"]
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(RowsError, match=r"none\.txt is empty"):
        read_prompts(str(tmp_path / "none.txt"), "train")


def test_a_share_is_held_out_in_whatever_spelling() -> None:
    prompts = TuningPrompts.of(Tuning(), [*MANY, *(prompt.upper() for prompt in MANY), MANY[0]])
    assert len(prompts.held_out) == 8
    assert len(prompts.train) == 72
    assert not {prompt.lower() for prompt in prompts.train} & {prompt.lower() for prompt in prompts.held_out}
    assert prompts.notes == ("8 of 80 prompts are held out (held_out_share, seed 0)",)
    assert len(TuningPrompts.of(Tuning(num_held_out=3), MANY).held_out) == 3


def test_held_out_prompts_are_not_trained_on() -> None:
    prompts = TuningPrompts.of(Tuning(), MANY, [MANY[0].upper(), "a dog"])
    assert prompts.train == tuple(MANY[1:])
    assert prompts.notes == ("1 training prompts are held out, too, and are not trained on",)


def test_of_many_held_out_prompts_some_are_chosen() -> None:
    held_out = TuningPrompts.of(Tuning(num_held_out=4), ["a", "b"], MANY).held_out
    assert len(held_out) == 4
    assert list(held_out) == sorted(held_out, key=MANY.index)
    assert held_out != tuple(MANY[:4])


def test_too_few_prompts() -> None:
    with pytest.raises(InputError, match=r"too few prompts to hold some out and train on at least two \(3 different prompts\)"):
        TuningPrompts.of(Tuning(), ["a", "b", "c"])
    with pytest.raises(InputError, match="at least two different training prompts are needed, of which there are 1"):
        TuningPrompts.of(Tuning(), ["a", "a"], ["b", "c"])
    with pytest.raises(InputError, match="no prompts: use --prompts"):
        TuningPrompts.of(Tuning())


def test_each_pass_sees_each_prompt_once_in_an_order_of_its_own() -> None:
    prompts = TuningPrompts.of(Tuning(), MANY, ["x", "y"])
    seen = [prompt for step in range(20) for prompt in prompts.step(0, step, 4)]
    first, second = seen[:40], seen[40:]
    assert sorted(first) == sorted(second) == sorted(MANY)
    assert first != second
    assert prompts.step(0, 3, 4) == prompts.step(0, 3, 4) != prompts.step(1, 3, 4)
    assert len(prompts.step(0, 9, 5)) == 5  # across the end of a pass


def test_other_prompts_differ() -> None:
    assert all(a != b for a, b in zip(MANY, other_prompts(MANY, MANY, random.Random(0)), strict=True))
