"""Scoring the selected images of all generators, continuing from what an earlier run saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from image_reward.errors import InputError
from image_reward.evaluation.generators.images import Images, Selection
from image_reward.evaluation.generators.results import Rewards, SavedResults
from image_reward.prompt_sets import Prompt, first_few, repeated
from image_reward.scorers import Scorer
from image_reward.scorers.identity import identity_of
from image_reward.scorers.together import long_prompts_reported_once, score_together


def score_images(
    scorers: Sequence[Scorer[Any]],
    images: Images,
    selection: Selection,
    save_to: Path | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Rewards, int]:
    """The rewards of the selected images, and the number of them saved by an earlier run. An image is opened once for all scorers.

    ``save_to``: a folder of results, SCORER/GENERATOR.json, written as scoring proceeds. Rewards that are there already are used if
    the prompt, the images' content and the scorer are the same.

    Raises ``ValueError`` for saved results of other prompts, or without fingerprints to compare; and what scoring raises.
    """
    if twice := repeated([scorer.name for scorer in scorers]):
        raise InputError(f"several scorers are called {first_few(twice)}; use each once")
    by_scorer = [_RewardsOfScorer(scorer, list(images.paths), selection.prompts, save_to) for scorer in scorers]
    total, done, reused = len(images.paths) * sum(selection.num_images), 0, 0
    step = 4 * min((scorer.batch_size for scorer in scorers), default=1)
    with long_prompts_reported_once(scorers, [prompt.prompt for prompt in selection.prompts]):
        for tasks in _tasks(images, selection, step, with_content=save_to is not None):
            reused += _score(tasks, by_scorer)
            done += sum(len(task.images) for task in tasks)
            if on_image:
                on_image(done, total)
    return {rewards.scorer.name: rewards.by_generator for rewards in by_scorer}, reused


@dataclass(frozen=True)
class _Task:
    """A generator's images of one prompt."""

    generator: str
    prompt: Prompt
    images: list[Path]
    content: list[str]
    """The sha256 of each image's file; empty where nothing is saved."""


def _tasks(images: Images, selection: Selection, step: int, with_content: bool) -> Iterator[list[_Task]]:
    """The work in parts of about ``step`` images, each of one generator, whose file is then written once for the part."""
    for generator, paths in images.paths.items():
        part: list[_Task] = []
        for prompt, num in zip(selection.prompts, selection.num_images, strict=True):
            chosen = paths[prompt.id][:num]
            content = [hashlib.sha256(path.read_bytes()).hexdigest() for path in chosen] if with_content else []
            part.append(_Task(generator, prompt, chosen, content))
            if sum(len(task.images) for task in part) >= step:
                yield part
                part = []
        if part:
            yield part


class _RewardsOfScorer:
    """One scorer's rewards so far, and the files they are saved in, if any."""

    def __init__(self, scorer: Scorer[Any], generators: Sequence[str], prompts: Sequence[Prompt], folder: Path | None) -> None:
        self.scorer = scorer
        self.by_generator: dict[str, dict[str, list[float]]] = {generator: {} for generator in generators}
        self.saved = {generator: SavedResults(folder, scorer.name, generator, prompts) for generator in generators} if folder else {}
        self.scorer_fingerprint = scorer_fingerprint(scorer) if folder else ""

    def reuse_saved(self, task: _Task) -> bool:
        """Reuse the rewards that an earlier run saved for this scorer and the same images; whether there were any."""
        rewards = self.saved[task.generator].get(task.prompt, self._fingerprint(task)) if self.saved else None
        if rewards is not None:
            self.by_generator[task.generator][task.prompt.id] = rewards
        return rewards is not None

    def add(self, tasks: Sequence[_Task], rewards: Sequence[float]) -> None:
        """``rewards``: of the tasks' images, one after the other. All tasks are of one generator."""
        start = 0
        for task in tasks:
            row = list(rewards[start : start + len(task.images)])
            start += len(row)
            self.by_generator[task.generator][task.prompt.id] = row
            if self.saved:
                self.saved[task.generator].add(task.prompt, row, self._fingerprint(task))
        if self.saved:
            self.saved[tasks[0].generator].write()

    def _fingerprint(self, task: _Task) -> str:
        return hashlib.sha256("\n".join([self.scorer_fingerprint, *task.content]).encode()).hexdigest()


def _score(tasks: Sequence[_Task], by_scorer: Sequence[_RewardsOfScorer]) -> int:
    """Score the tasks that were not saved. Returns the number of rewards that were."""
    tasks_of: dict[tuple[int, ...], list[_Task]] = {}
    reused = 0
    for task in tasks:
        unsaved = tuple(number for number, rewards in enumerate(by_scorer) if not rewards.reuse_saved(task))
        reused += (len(by_scorer) - len(unsaved)) * len(task.images)
        if unsaved:
            tasks_of.setdefault(unsaved, []).append(task)
    # Tasks that the same scorers have yet to score are scored together, so that each image is opened once.
    for numbers, group in tasks_of.items():
        prompts = [task.prompt.prompt for task in group for _ in task.images]
        paths = [str(path) for task in group for path in task.images]
        rewards = score_together([by_scorer[number].scorer for number in numbers], prompts, paths)
        for number, of_scorer in zip(numbers, rewards, strict=True):
            by_scorer[number].add(group, of_scorer)
    return reused


def scorer_fingerprint(scorer: Scorer[Any]) -> str:
    """Changes when the scorer's rewards do: its identity, and, since its code may have changed, its rewards of a synthetic image."""
    y, x = np.mgrid[:96, :128]
    image = np.stack([2 * x, 2 * y, (x * y) % 256], axis=-1).astype(np.uint8)
    rewards = scorer.score(["", "a cat", "three red circles on a blue square"], [image] * 3)
    return f"{identity_of(scorer)} {[f'{reward:.3e}' for reward in rewards]}"
