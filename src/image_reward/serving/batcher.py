"""Rows of many requests -> batches -> rewards: a pool of threads opens images, one thread scores.

A request is divided into pieces, one for each image with all of its prompts. A piece is prepared by the pool, waits, and is scored in the
next batch that has room: whatever waits when the scoring thread becomes free is scored at once, so an idle service does not wait for
company, and a busy one fills its batches. Requests take turns, so that one of a thousand images does not hold up one of a single image.

Waking a thread costs about as much as all else that is done for a request of a small image. So the threads hand pieces on to each other
without the event loop, which hears of a whole batch at once, and only a thread that has nothing to do is woken. Where scoring uses the
cores that the pool would use, the scoring thread itself prepares small images of requests of one row, those of a batch at once.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from image_reward.errors import ImageRewardError, PromptError
from image_reward.prompts import long_prompt_warnings_collected, long_prompt_warnings_suppressed
from image_reward.scorers.base import Scorer, inference, joined, keys_of
from image_reward.scorers.outcomes import RefusedRowsError, of_image, outcome_of
from image_reward.scorers.together import estimates_together, options_of, prepare_together, processors_of
from image_reward.serving.errors import BusyError, of_package
from image_reward.serving.metrics import Metrics

_BATCHES_AHEAD = 4  # that may be prepared before they are scored
_SMALL = 1 << 14  # bytes of an image file that is prepared sooner than another thread is woken


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
    """Of each group [M, P]: M models, P prompts. Below them the standard deviations [P] by each of the models that has them."""
    warnings: list[str]


class _Piece:
    """Groups of a request that are prepared and scored as a whole."""

    def __init__(self, request: _Request, number: int, groups: Sequence[Group]) -> None:
        self.request, self.number, self.groups = request, number, groups
        self.num_rows = sum(len(group.prompts) for group in groups)
        self.batches: list[Any] = []
        """Empty until it is prepared"""
        self.keys: tuple[Hashable, ...] | None = None
        self.warnings: list[str] = []
        self.equal: _Piece = self
        """The first piece of its request that the scorers see the same in: copies of an image get one reward."""
        self.rewards: NDArray[np.float32] | None = None
        """As in ``Answer``, once they are there"""

    @property
    def num_ready(self) -> int:
        return self.num_rows if self.batches else 0

    def prepare(self) -> None:
        """Open, decode and tokenize. Raises ``RequestError`` that names the field."""
        prompts = [prompt for group in self.groups for prompt in group.prompts]
        images: list[Any] = [group.image for group in self.groups for _ in group.prompts]
        with long_prompt_warnings_collected() as self.warnings:
            try:
                self.batches = prepare_together(self.request.processors, prompts, images)
            except (ImageRewardError, MemoryError) as error:
                opened = [group.image.field for group in self.groups if group.image.was_opened]
                field = "prompt" if isinstance(error, PromptError) else opened[-1] if opened else "images"
                refused = of_package(error, field)
                assert refused is not None
                raise refused from error
        self.be_prepared(self.batches)

    def be_prepared(self, batches: list[Any]) -> None:
        self.batches = batches
        keys = [known for batch in batches if (known := keys_of(batch)) is not None]
        if len(keys) == len(batches):
            self.keys = tuple(zip(*keys, strict=True))

    def field_of(self, row: int) -> str:
        """The field that the image of a row came in."""
        return [group.image.field for group in self.groups for _ in group.prompts][row]


class _Request:
    """Where the pieces of a request are. Everything but ``done`` belongs to whoever holds the batcher's lock."""

    def __init__(self, models: tuple[int, ...], processors: Sequence[Any], groups: Sequence[Group], step: int) -> None:
        self.models, self.processors = models, processors
        self.pieces = [_Piece(self, number, groups[start : start + step]) for number, start in enumerate(range(0, len(groups), step))]
        self.todo = deque(self.pieces)
        """Not yet prepared."""
        self.num_busy = 0
        """Pieces that a thread prepares or scores."""
        self.ready: deque[_Piece] = deque()
        """Prepared, and waiting for a batch."""
        self.seen: dict[tuple[Hashable, ...], _Piece] = {}
        self.errors: dict[int, BaseException] = {}
        self.done = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        return not self.todo and not self.ready and not self.num_busy


class Batcher:
    """Scores the rows of all requests. Its methods are called in the event loop; ``start`` and ``close`` once."""

    def __init__(self, scorers: Sequence[Scorer[Any]], num_decoders: int, max_queue: int) -> None:
        self.scorers = list(scorers)
        self.max_queue = max_queue
        self.num_rows = 0
        """Admitted and not yet scored."""
        self.metrics = Metrics(lambda: self.num_rows)
        self._processors: dict[tuple[int, ...], list[Any]] = {}
        self._can_join = [False] * len(self.scorers)
        self._shares_cores = [scorer.device.type == "cpu" for scorer in self.scorers]
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._decoders = [threading.Thread(target=self._decode, name=f"decoder {n}", daemon=True) for n in range(num_decoders)]
        self._lock = threading.Lock()
        self._to_prepare = threading.Condition(self._lock)
        self._to_score = threading.Condition(self._lock)
        self._unprepared: deque[_Request] = deque()
        self._waiting: deque[_Request] = deque()
        self._num_ready = 0  # rows that are prepared and wait
        self._most_ready = _BATCHES_AHEAD * max((scorer.batch_size for scorer in self.scorers), default=1)
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
            with inference(), suppress(RefusedRowsError):  # there is nothing to say about a grey image
                estimates_together([scorer], batches)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for thread in (self._thread, *self._decoders):
            thread.start()

    def close(self, timeout: float) -> bool:
        """End the threads; False if the scoring thread has not ended in time."""
        with self._lock:
            self._is_closing = True
            self._to_prepare.notify_all()
            self._to_score.notify_all()
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
        num_rows = sum(len(group.prompts) for group in groups)
        self.check_room(num_rows)
        can_join = all(self._can_join[model] for model in models)
        step = 1 if can_join else min(self.scorers[model].batch_size for model in models)
        request = _Request(models, self._models(models), groups, step)
        self.num_rows += num_rows
        try:
            with self._lock:
                if num_rows == 1 and _is_small(groups[0].image) and all(self._shares_cores[model] for model in models):
                    request.ready, request.todo = request.todo, request.ready
                    self._waiting.append(request)
                    self._to_score.notify()
                else:
                    self._unprepared.append(request)
                    self._to_prepare.notify(len(request.todo))
            await request.done
        finally:
            self.num_rows -= num_rows
            if not request.done.done() or request.done.cancelled():
                with self._lock:
                    self._drop(request)
        if request.errors:
            error = request.errors[min(request.errors)]
            refused = of_package(error, "model")
            if refused is None or refused is error:
                raise error
            raise refused from error
        # Rounding depends on what shares a batch, and equal rows get one reward: copies of an image keep their order.
        first: dict[Hashable, NDArray[np.float32]] = {}
        whole = []
        for piece in request.pieces:
            rewards = piece.equal.rewards
            assert rewards is not None
            if piece.keys and num_rows > 1:
                rewards = np.stack([first.setdefault(key, own) for key, own in zip(piece.keys, rewards.T, strict=True)], axis=1)
            end = 0
            for group in piece.groups:
                start, end = end, end + len(group.prompts)
                whole.append(rewards[:, start:end])
        return Answer(whole, list(dict.fromkeys(warning for piece in request.pieces for warning in piece.warnings)))

    def _models(self, models: tuple[int, ...]) -> list[Any]:
        if models not in self._processors:
            self._processors[models] = processors_of([self.scorers[model] for model in models])
        return self._processors[models]

    def _deliver(self, requests: Sequence[_Request], num_rows: int, seconds: float) -> None:
        if num_rows:
            self.metrics.batches.observe(num_rows)
            self.metrics.scoring.observe(seconds)
            rate = num_rows / max(seconds, 1e-6)
            self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        for request in requests:
            if not request.done.done():  # its client has not left
                request.done.set_result(None)

    # --- with the lock ---------------------------------------------------------------------------------------------------------------

    def _drop(self, request: _Request) -> None:
        """What waits of a request leaves the queue."""
        request.todo.clear()
        self._add_ready(-sum(piece.num_ready for piece in request.ready))
        request.ready.clear()
        for queue in (self._unprepared, self._waiting):
            with suppress(ValueError):
                queue.remove(request)

    def _fail(self, piece: _Piece, error: BaseException) -> None:
        piece.request.errors[piece.number] = error
        self._drop(piece.request)

    def _add_ready(self, num_rows: int) -> None:
        was_full = self._num_ready >= self._most_ready
        self._num_ready += num_rows
        if was_full and self._num_ready < self._most_ready:
            self._to_prepare.notify_all()

    # --- in the threads --------------------------------------------------------------------------------------------------------------

    def _report(self, requests: Sequence[_Request], num_rows: int = 0, seconds: float = 0.0) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver, requests, num_rows, seconds)

    def _decode(self) -> None:
        while True:
            with self._lock:
                while not self._is_closing and (not self._unprepared or self._num_ready >= self._most_ready):
                    self._to_prepare.wait()
                if not self._unprepared:
                    return
                request = self._unprepared.popleft()
                piece = request.todo.popleft()
                request.num_busy += 1
                if request.todo:
                    self._unprepared.append(request)
            error = _prepared(piece)
            with self._lock:
                request.num_busy -= 1
                if error is not None:
                    self._fail(piece, error)
                elif not request.errors and not request.done.cancelled():
                    self._add_prepared(piece)
                is_over = request.is_over
            if is_over:
                self._report([request])
            del request, piece, error

    def _add_prepared(self, piece: _Piece) -> None:
        request = piece.request
        if piece.keys is not None and (equal := request.seen.setdefault(piece.keys, piece)) is not piece:
            piece.equal, piece.batches = equal, []
            return
        if not request.ready:
            self._waiting.append(request)
        request.ready.append(piece)
        self._add_ready(piece.num_rows)
        self._to_score.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._is_closing:
                    self._to_score.wait()
                if not self._waiting:
                    return
                models, pieces = self._take()
            _prepare_at_once([piece for piece in pieces if not piece.batches])
            errors = [_prepared(piece) for piece in pieces]
            sound = [piece for piece, error in zip(pieces, errors, strict=True) if error is None]
            started = time.perf_counter()
            scored = iter(self._score(models, sound))
            seconds = time.perf_counter() - started
            results = [next(scored) if error is None else error for error in errors]
            with self._lock:
                for piece, result in zip(pieces, results, strict=True):
                    piece.request.num_busy -= 1
                    piece.batches = []
                    if isinstance(result, BaseException):
                        self._fail(piece, result)
                    else:
                        piece.rewards = result
                requests = dict.fromkeys(piece.request for piece in pieces)
                over = [request for request in requests if request.is_over]
            self._report(over, sum(piece.num_rows for piece in sound), seconds)
            del pieces, sound, errors, scored, results, requests, over

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
            request.num_busy += 1
            pieces.append(piece)
            room = room - (len(piece.groups) if whole_images else piece.num_rows) if can_join else 0
            if request.ready:
                self._waiting.append(request)
        self._waiting.extendleft(reversed(others))
        self._add_ready(-sum(piece.num_ready for piece in pieces))
        return models, pieces

    def _score(self, models: tuple[int, ...], pieces: Sequence[_Piece]) -> list[Any]:
        """The rewards of each piece, as in ``Answer``, or what was raised. A piece that fails does not fail those that share its batch."""
        scorers = [self.scorers[model] for model in models]
        try:
            return self._forward(scorers, pieces) if pieces else []
        except BaseException as error:
            if len(pieces) == 1:
                return [_as_memory_error(error)]
        return [result for piece in pieces for result in self._score(models, [piece])]

    def _forward(self, scorers: Sequence[Scorer[Any]], pieces: Sequence[_Piece]) -> list[Any]:
        first: dict[Hashable, int] = {}  # clients that hedge send the same twice
        place = [first.setdefault(piece.keys if piece.keys is not None else number, len(first)) for number, piece in enumerate(pieces)]
        different = [pieces[place.index(number)] for number in range(len(first))]
        with inference(), long_prompt_warnings_suppressed():
            batches = [joined(list(parts)) for parts in zip(*(piece.batches for piece in different), strict=True)]
            # Of each scorer its reward, and with uncertainty the standard deviation; those come last.
            values = [(scorer.name, number) for scorer in scorers for number in range(1 + scorer.has_uncertainty)]
            order = sorted(range(len(values)), key=lambda value: values[value][1])
            outcome = outcome_of([name for name, _ in values], lambda parts: estimates_together(scorers, parts), batches)
        results: list[Any] = []
        start = 0
        for piece in different:
            end = start + piece.num_rows
            refused = min((row for row in outcome.reasons if start <= row < end), default=None)
            results.append(
                outcome.rewards[order, start:end].numpy()
                if refused is None
                else of_image(outcome.reasons[refused], piece.field_of(refused - start))
            )
            start = end
        return [results[number] for number in place]


def _is_small(image: Source) -> bool:
    return isinstance(image.content, bytes) and len(image.content) <= _SMALL


def _prepare_at_once(pieces: Sequence[_Piece]) -> None:
    """Prepare pieces of one row and the same models, which takes less time than one by one; none if one fails, or is to be warned of."""
    if len(pieces) < 2:
        return
    groups = [group for piece in pieces for group in piece.groups]
    images: list[Any] = [group.image for group in groups]
    with long_prompt_warnings_collected() as warnings:
        try:
            batches = prepare_together(pieces[0].request.processors, [prompt for group in groups for prompt in group.prompts], images)
        except (ImageRewardError, MemoryError):
            return
    if not warnings:
        for number, piece in enumerate(pieces):
            piece.be_prepared([batch.select([number]) for batch in batches])


def _prepared(piece: _Piece) -> BaseException | None:
    """Prepare a piece, unless it is; what was raised, if anything."""
    try:
        if not piece.batches:
            piece.prepare()
    except BaseException as error:
        return error
    return None


def _as_memory_error(error: BaseException) -> BaseException:
    return MemoryError(str(error)) if isinstance(error, torch.cuda.OutOfMemoryError) else error


def groups_of(prompts: Sequence[str], images: Sequence[Source]) -> tuple[list[Group], Callable[[Sequence[NDArray[np.float32]]], Any]]:
    """Aligned prompts and images as groups, each of a distinct image, and what puts the groups' rewards back in order."""
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
