"""Rows of many requests -> batches -> rewards: a pool of threads opens images, one thread scores.

A request is divided into pieces, one for each image with all of its prompts. A piece is prepared by the pool, waits, and is scored in the
next batch that has room: whatever waits when the scoring thread becomes free is scored at once, so an idle service does not wait for
company, and a busy one fills its batches. Requests take turns, so that one of a thousand images does not hold up one of a single image.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from image_reward.errors import ImageRewardError, PromptError
from image_reward.prompts import long_prompt_warnings_collected, long_prompt_warnings_suppressed
from image_reward.scorers.base import Scorer, check_finite, inference, joined, keys_of
from image_reward.scorers.together import options_of, prepare_together, processors_of, rewards_together
from image_reward.serving.errors import BusyError, of_package
from image_reward.serving.metrics import Metrics


class Source:
    """An image of a request: its content, and the field it came in, by which messages name it."""

    def __init__(self, content: Any, field: str) -> None:
        self.content, self.field = content, field
        self.was_opened = False

    def __call__(self) -> Any:
        self.was_opened = True
        return self.content

    def __str__(self) -> str:
        return self.field


@dataclass(frozen=True)
class Group:
    """An image and the prompts that it is to be scored with."""

    image: Source
    prompts: tuple[str, ...]


@dataclass
class Answer:
    """What became of the groups of a request."""

    rewards: list[NDArray[np.float32]]
    """Of each group [M, P]: M models, P prompts"""
    warnings: list[str]


class _Piece:
    """Groups of a request that are prepared and scored as a whole."""

    def __init__(self, groups: Sequence[Group], loop: asyncio.AbstractEventLoop) -> None:
        self.groups = groups
        self.num_rows = sum(len(group.prompts) for group in groups)
        self.batches: list[Any] = []
        self.keys: tuple[Hashable, ...] | None = None
        self.warnings: list[str] = []
        self.rewards: asyncio.Future[NDArray[np.float32]] = loop.create_future()

    def prepare(self, processors: Sequence[Any]) -> None:
        """Open, decode and tokenize. Raises ``RequestError`` that names the field."""
        prompts = [prompt for group in self.groups for prompt in group.prompts]
        images: list[Any] = [group.image for group in self.groups for _ in group.prompts]
        with long_prompt_warnings_collected() as self.warnings:
            try:
                self.batches = prepare_together(processors, prompts, images)
            except (ImageRewardError, MemoryError) as error:
                opened = [group.image.field for group in self.groups if group.image.was_opened]
                field = "prompt" if isinstance(error, PromptError) else opened[-1] if opened else "images"
                refused = of_package(error, field)
                assert refused is not None
                raise refused from error
        keys = [known for batch in self.batches if (known := keys_of(batch)) is not None]
        if len(keys) == len(self.batches):
            self.keys = tuple(zip(*keys, strict=True))


@dataclass(eq=False)
class _Request:
    models: tuple[int, ...]
    ready: deque[_Piece] = field(default_factory=deque)
    """Prepared, and waiting for a batch."""


class Batcher:
    """Scores the rows of all requests. Its methods are called in the event loop; ``start`` and ``close`` once."""

    def __init__(self, scorers: Sequence[Scorer[Any]], num_decoders: int, max_queue: int) -> None:
        self.scorers = list(scorers)
        self.max_queue = max_queue
        self.num_rows = 0
        """Admitted and not yet scored."""
        self.metrics = Metrics(lambda: self.num_rows)
        self._num_decoders = num_decoders
        self._decoders = ThreadPoolExecutor(num_decoders, "decoder")
        self._processors: dict[tuple[int, ...], list[Any]] = {}
        self._can_join = [False] * len(self.scorers)
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._condition = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._is_closing = False
        self._rate = 0.0  # rows a second, a moving average
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- its life --------------------------------------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Score a grey image once, which loads whatever is loaded on first use, and shows which batches can be joined.

        Raises what scoring raises.
        """
        for number, scorer in enumerate(self.scorers):
            scorer.check_evaluating()
            processors = self._models((number,))
            side = max(options_of(processor).min_side for processor in processors) + 1
            batches = prepare_together(processors, ["grey"], [Image.new("RGB", (side, side), (128, 128, 128))])
            self._can_join[number] = all(joined([batch, batch]) is not None for batch in batches)
            with inference():
                rewards_together([scorer], batches)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """End the threads; False if the scoring thread has not ended in time."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # --- in the event loop -----------------------------------------------------------------------------------------------------------

    def check_room(self, num_rows: int) -> None:
        """Raise ``BusyError`` if the queue has no room for this many more rows."""
        if self.num_rows + num_rows > self.max_queue:
            raise BusyError(f"the queue is full: {self.num_rows} of {self.max_queue} rows wait", self.retry_after())

    def retry_after(self) -> int:
        """Seconds until half of what waits should be scored."""
        return min(60, max(1, math.ceil(self.num_rows / 2 / self._rate))) if self._rate else 1

    async def rewards(self, models: tuple[int, ...], groups: Sequence[Group]) -> Answer:
        """The rewards of groups by models. If it is cancelled, the rows that wait leave the queue.

        Raises ``RequestError``: of all groups that fail the first in order, of those that were tried.
        """
        loop = asyncio.get_running_loop()
        scorers = [self.scorers[model] for model in models]
        step = 1 if all(self._can_join[model] for model in models) else min(scorer.batch_size for scorer in scorers)
        pieces = [_Piece(groups[start : start + step], loop) for start in range(0, len(groups), step)]
        num_rows = sum(piece.num_rows for piece in pieces)
        self.check_room(num_rows)
        self.num_rows += num_rows
        request = _Request(models)
        errors: dict[int, BaseException] = {}
        try:
            todo = iter(enumerate(pieces))
            seen: dict[tuple[Hashable, ...], _Piece] = {}
            prepare = (self._prepare_in_turn(request, todo, seen, errors) for _ in range(min(self._num_decoders, len(pieces))))
            await asyncio.gather(*prepare)
            if errors:
                raise errors[min(errors)]
            rewards = [await piece.rewards for piece in pieces]
        except ImageRewardError as error:
            refused = of_package(error, "model")
            assert refused is not None
            raise refused from error
        finally:
            self.num_rows -= num_rows
            with self._condition:
                request.ready.clear()
                with suppress(ValueError):
                    self._waiting.remove(request)
            for piece in pieces:
                if piece.rewards.done() and not piece.rewards.cancelled():
                    piece.rewards.exception()  # it is known by now: of an equal piece, or of one that came after the first that failed
                piece.rewards.cancel()
        # Rounding depends on what shares a batch, and equal rows get one reward: copies of an image keep their order.
        first: dict[Hashable, NDArray[np.float32]] = {}
        whole = []
        for piece, scored in zip(pieces, rewards, strict=True):
            columns = [first.setdefault(key, column) for key, column in zip(piece.keys, scored.T, strict=True)] if piece.keys else scored.T
            own = np.stack(list(columns), axis=1)
            whole += np.split(own, np.cumsum([len(group.prompts) for group in piece.groups])[:-1], axis=1)
        return Answer(whole, list(dict.fromkeys(warning for piece in pieces for warning in piece.warnings)))

    async def _prepare_in_turn(
        self,
        request: _Request,
        todo: Iterator[tuple[int, _Piece]],
        seen: dict[tuple[Hashable, ...], _Piece],
        errors: dict[int, BaseException],
    ) -> None:
        """Prepare pieces one after the other; several of these share ``todo``, and a request occupies no more threads than there are."""
        loop = asyncio.get_running_loop()
        processors = self._models(request.models)
        for number, piece in todo:
            if errors:
                return
            try:
                await loop.run_in_executor(self._decoders, piece.prepare, processors)
            except Exception as error:
                errors[number] = error
                return
            if piece.keys is not None and (equal := seen.setdefault(piece.keys, piece)) is not piece:
                piece.rewards = equal.rewards  # copies of an image get one reward, in whatever batches they would have been
                continue
            with self._condition:
                if not request.ready:
                    self._waiting.append(request)
                request.ready.append(piece)
                self._condition.notify()

    def _models(self, models: tuple[int, ...]) -> list[Any]:
        if models not in self._processors:
            self._processors[models] = processors_of([self.scorers[model] for model in models])
        return self._processors[models]

    def _deliver(self, results: Sequence[tuple[_Piece, Any]], num_rows: int, seconds: float) -> None:
        self.metrics.batches.observe(num_rows)
        self.metrics.scoring.observe(seconds)
        rate = num_rows / max(seconds, 1e-6)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        for piece, result in results:
            if piece.rewards.done():  # its client has left
                continue
            if isinstance(result, BaseException):
                piece.rewards.set_exception(result)
            else:
                piece.rewards.set_result(result)

    # --- in the scoring thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._waiting and not self._is_closing:
                    self._condition.wait()
                if not self._waiting:
                    return
                models, pieces = self._take()
            started = time.perf_counter()
            results = self._score(models, pieces)
            seconds = time.perf_counter() - started
            num_rows = sum(piece.num_rows for piece in pieces)
            assert self._loop is not None
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver, list(zip(pieces, results, strict=True)), num_rows, seconds)
            del pieces, results

    def _take(self) -> tuple[tuple[int, ...], list[_Piece]]:
        """The next batch: of the request that waits longest, and of others for the same models, each in its turn."""
        models = self._waiting[0].models
        scorers = [self.scorers[model] for model in models]
        room = min(scorer.batch_size for scorer in scorers)
        whole_images = any(scorer.whole_images for scorer in scorers)
        can_join = all(self._can_join[model] for model in models)
        pieces: list[_Piece] = []
        others: list[_Request] = []
        while self._waiting and room > 0:
            request = self._waiting.popleft()
            if request.models != models:
                others.append(request)
                continue
            piece = request.ready.popleft()
            pieces.append(piece)
            room = room - (len(piece.groups) if whole_images else piece.num_rows) if can_join else 0
            if request.ready:
                self._waiting.append(request)
        self._waiting.extendleft(reversed(others))
        return models, pieces

    def _score(self, models: tuple[int, ...], pieces: Sequence[_Piece]) -> list[Any]:
        """The rewards [M, N] of each piece, or what was raised. A piece that fails does not fail those that share its batch."""
        scorers = [self.scorers[model] for model in models]
        try:
            return self._forward(scorers, pieces)
        except BaseException as error:
            if len(pieces) == 1:
                return [_as_memory_error(error)]
        return [result for piece in pieces for result in self._score(models, [piece])]

    def _forward(self, scorers: Sequence[Scorer[Any]], pieces: Sequence[_Piece]) -> list[NDArray[np.float32]]:
        first: dict[Hashable, int] = {}  # clients that hedge send the same twice
        place = [first.setdefault(piece.keys if piece.keys is not None else number, len(first)) for number, piece in enumerate(pieces)]
        different = [pieces[place.index(number)] for number in range(len(first))]
        with inference(), long_prompt_warnings_suppressed():
            batches = [joined(list(parts)) for parts in zip(*(piece.batches for piece in different), strict=True)]
            rewards = torch.stack([own.float().cpu() for own in rewards_together(scorers, batches)])
        parts = rewards.split([piece.num_rows for piece in different], dim=1)
        for own in parts:
            for scorer, line in zip(scorers, own, strict=True):
                check_finite(line, scorer.name)
        return [parts[number].numpy() for number in place]


def _as_memory_error(error: BaseException) -> BaseException:
    return MemoryError(str(error)) if isinstance(error, torch.cuda.OutOfMemoryError) else error


def groups_of(prompts: Sequence[str], images: Sequence[Source]) -> tuple[list[Group], Callable[[Sequence[NDArray[np.float32]]], Any]]:
    """Aligned prompts and images as groups, each of a distinct image, and what puts the groups' rewards back in order [M, N]."""
    rows: dict[Hashable, list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(image.content if isinstance(image.content, bytes) else id(image), []).append(row)
    groups = [Group(images[own[0]], tuple(prompts[row] for row in own)) for own in rows.values()]
    order = [row for own in rows.values() for row in own]

    def in_order(rewards: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        together = np.concatenate(rewards, axis=1)
        whole = np.empty_like(together)
        whole[:, order] = together
        return whole

    return groups, in_order
