"""The prompts that a generator is tuned on, and those that are held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from image_reward.comparisons import normalized_prompt, shapes
from image_reward.errors import InputError
from image_reward.prompt_sets import prompts as prompts_of
from image_reward.prompts import check_prompts
from image_reward.reports.numbers import counted
from image_reward.tuning.config import Tuning


def read_prompts(source: str, split: Literal["train", "test"]) -> list[str]:
    """The prompts of a published set or a file, or of that split of the shapes world.

    "shapes:one", "shapes:count" and "shapes:relation" are all of a kind there; "shapes:PROMPTS" and "shapes:PROMPTS:SEED" are drawn.

    Raises ``InputError`` and ``FileNotFoundError`` as ``prompt_sets.prompts`` does.
    """
    kind, _, numbers = source.partition(":")
    if kind != "shapes":
        return [prompt.prompt for prompt in prompts_of(source)]
    if numbers in get_args(shapes.PromptKind):
        return [spec.prompt for spec in shapes.prompt_specs(cast(shapes.PromptKind, numbers), split)]
    if not (match := re.fullmatch("([1-9][0-9]{0,8})(?::([0-9]{1,9}))?", numbers)):
        raise InputError(
            f"{source!r} is not of the form shapes:KIND ({', '.join(get_args(shapes.PromptKind))}), shapes:PROMPTS or shapes:PROMPTS:SEED"
        )
    return [each.prompt for each in shapes.comparisons(int(match[1]), int(match[2] or 0), split=split)]


@dataclass(frozen=True)
class TuningPrompts:
    """Training prompts and held-out ones, none of which is in both, and notes on what was left out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Tuning, train: Sequence[str] | None = None, held_out: Sequence[str] | None = None) -> TuningPrompts:
        """Those of the configuration, or those that a caller has read.

        Raises ``InputError`` for none, for no two different ones, and where no prompts can be held out.
        """
        if train is None:
            if not config.prompts:
                raise InputError("no prompts: use --prompts FILE_OR_SET, or set prompts = FILE_OR_SET in the recipe")
            train = read_prompts(config.prompts, "train")
        if held_out is None and config.held_out:
            held_out = read_prompts(config.held_out, "test")
        check_prompts([*train, *(held_out or ())])
        train = list(dict.fromkeys(train))
        notes = []
        if held_out is None:
            train, held_out = _split(train, config)
            notes.append(f"{len(held_out):,} of {len(train) + len(held_out):,} prompts are held out (held_out_share, seed {config.seed})")
        else:
            held_out = list(dict.fromkeys(held_out))
            if len(held_out) > config.num_held_out:  # not the first, which are of one category in published sets
                chosen = sorted(random.Random(f"{config.seed} held out").sample(range(len(held_out)), config.num_held_out))
                held_out = [held_out[place] for place in chosen]
            shared = {normalized_prompt(prompt) for prompt in held_out}
            kept = [prompt for prompt in train if normalized_prompt(prompt) not in shared]
            if len(kept) < len(train):
                notes.append(f"{len(train) - len(kept):,} training prompts are held out, too, and are not trained on")
            train = kept
        for name, each in (("training", train), ("held-out", held_out)):
            if len(each) < 2:
                raise InputError(f"at least two different {name} prompts are needed, of which there are {len(each)}: give more prompts")
        return cls(tuple(train), tuple(held_out), tuple(notes))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.train, self.held_out)).encode(errors="backslashreplace")).hexdigest()

    def order(self, seed: int, epoch: int) -> list[int]:
        """The order of the training prompts in one pass over them."""
        order = list(range(len(self.train)))
        random.Random(f"{seed} order {epoch}").shuffle(order)
        return order

    def step(self, seed: int, step: int, size: int) -> list[str]:
        """The prompts of a step of the optimizer, counted from 0."""
        places = range(step * size, (step + 1) * size)
        orders = {epoch: self.order(seed, epoch) for epoch in {place // len(self.train) for place in places}}
        return [self.train[orders[place // len(self.train)][place % len(self.train)]] for place in places]


def other_prompts(prompts: Sequence[str], pool: Sequence[str], draws: random.Random) -> list[str]:
    """For each prompt a different one of the pool.

    >>> other_prompts(["a", "b"], ["a", "b"], random.Random(0))
    ['b', 'a']
    """
    return [draws.choice([other for other in pool if other != prompt]) for prompt in prompts]


def _split(prompts: list[str], config: Tuning) -> tuple[list[str], list[str]]:
    """Prompts that differ in spelling alone are on the same side."""
    different = sorted({normalized_prompt(prompt) for prompt in prompts})
    random.Random(f"{config.seed} held out").shuffle(different)
    num = min(max(2, round(config.held_out_share * len(different))), config.num_held_out)
    if len(different) < num + 2:
        raise InputError(
            f"there are too few prompts to hold some out and train on at least two ({counted(len(different), 'different prompt')}): give "
            "more, or other prompts with held_out"
        )
    chosen = set(different[:num])
    held_out = [prompt for prompt in prompts if normalized_prompt(prompt) in chosen][: config.num_held_out]
    return [prompt for prompt in prompts if normalized_prompt(prompt) not in chosen], held_out
