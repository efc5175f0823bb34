"""The one loop that hands shards to workers, whatever runs them, and copes with those that die."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from image_reward.errors import JobError
from image_reward.jobs.folder import JobFolder
from image_reward.jobs.messages import ShardResult, Task, WorkerDiedError
from image_reward.jobs.rows import Shard

MAX_TRIES = 3
_MAX_STARTS = 3  # of a worker that never gets ready
_LOOK_EVERY = 0.25  # seconds: for progress, and for a wish to stop


class Pool(Protocol):
    """Workers of some kind, by number from 0 to ``num_workers``. Each does one thing at a time."""

    @property
    def num_workers(self) -> int: ...
    def start(self, worker: int) -> Future[Any]:
        """Start it, again if it died. What the scorers are."""

    def give(self, worker: int, task: Task) -> Future[Any]:
        """A ``ShardResult``."""

    def result(self, worker: int, call: Future[Any]) -> Any:
        """What a call brought. Raises ``WorkerDiedError``, after which it must be started again, ``JobError`` or ``DefectError``."""

    def progress(self, worker: int) -> tuple[int, int]:
        """Rows of its shard that are done, and those of them with errors, as far as that is known."""

    def stop(self, worker: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    num_rows: int
    """Done, those of earlier runs included."""
    total: int
    num_errors: int
    """Of this run."""
    rows_per_second: float
    """Of this run, since the first worker was ready."""
    seconds_left: float | None
    busy: float
    """The share of the time since the first worker was ready in which the workers' devices computed, from the shards that are done."""
    num_workers: int
    """Ready and not yet let go."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.num_rows,
            "total": self.total,
            "errors": self.num_errors,
            "rows_per_second": round(self.rows_per_second, 2),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "busy": round(self.busy, 4),
            "workers": self.num_workers,
        }


class Driver:
    """Hands out shards until all are done, or until ``stopping``."""

    def __init__(
        self,
        pool: Pool,
        folder: JobFolder,
        shards: Sequence[Shard],
        done: set[int],
        *,
        ahead: bool,
        on_ready: Callable[[list[dict[str, str]]], None],
        on_progress: Callable[[Progress], None],
        on_stopping: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        """``ahead``: name the next shard to workers too. ``on_ready`` judges what the scorers are, and raises if they are not the job's.

        ``on_stopping`` is called once, after ``stopping`` has become true.
        """
        self.pool, self.folder, self.shards = pool, folder, shards
        self.ahead, self.on_ready, self.on_progress, self.on_stopping, self.stopping = ahead, on_ready, on_progress, on_stopping, stopping
        self.noticed = False
        self.tries = folder.tries()
        missing = [shard for shard in shards if shard.number not in done]
        self.waiting = deque(shard for shard in missing if not self.tries.get(shard.number))
        self.suspects = deque(shard for shard in missing if self.tries.get(shard.number))
        self.calls: dict[Future[Any], tuple[int, Task | None]] = {}
        """What workers are at: a task, or loading the scorers."""
        self.reserved: dict[int, Shard] = {}
        self.idle: set[int] = set()
        self.starts: dict[int, int] = {}
        """How often workers were started in vain."""
        self.rows_before = sum(shard.num_rows for shard in shards if shard.number in done)
        self.total = sum(shard.num_rows for shard in shards)
        self.rows_now = self.errors_now = 0
        self.busy = 0.0
        self.warnings: dict[str, None] = {}
        self.reasons: dict[int, str] = {}
        self.num_scored = 0
        self.lost: set[int] = set()
        self.quarantined = 0
        self.began: float | None = None
        self.seconds = 0.0

    def run(self) -> None:
        """Raises ``JobError`` for what no worker can help, and ``DefectError``; parts that are written stay."""
        num_needed = max(1, len(self.waiting) + len(self.suspects))  # one at least, to see what the scorers are
        try:
            for worker in range(min(self.pool.num_workers, num_needed)):
                self._start(worker)
            while self.calls:
                if self.stopping() and not self.noticed:
                    self.noticed = True
                    self.on_stopping()
                if self.stopping() and not self._working():
                    break
                for call in wait(self.calls, _LOOK_EVERY, FIRST_COMPLETED).done:
                    self._take(call)
                self._hand_out()
                self.on_progress(self.progress())
                if self.began is not None and not self._working() and not self._more():
                    break
        finally:
            self.seconds = time.monotonic() - self.began if self.began is not None else 0.0
            self.pool.close()

    def progress(self) -> Progress:
        elapsed = time.monotonic() - self.began if self.began is not None else 0.0
        partial = [self.pool.progress(worker) for worker in self._working()]
        now = self.rows_now + sum(rows for rows, _ in partial)
        rate = now / elapsed if elapsed > 0 else 0.0
        left = self.total - self.rows_before - now
        num_workers = len(self.idle) + len(self._working())
        busy = self.busy / (elapsed * max(1, num_workers)) if elapsed > 0 else 0.0
        num_errors = self.errors_now + sum(errors for _, errors in partial)
        return Progress(self.rows_before + now, self.total, num_errors, rate, left / rate if rate else None, min(busy, 1.0), num_workers)

    # --- what workers answer ---

    def _working(self) -> list[int]:
        return [worker for worker, task in self.calls.values() if task is not None]

    def _start(self, worker: int) -> None:
        self.starts[worker] = self.starts.get(worker, 0) + 1
        self.calls[self.pool.start(worker)] = worker, None

    def _take(self, call: Future[Any]) -> None:
        worker, task = self.calls.pop(call)
        try:
            answer = self.pool.result(worker, call)
        except WorkerDiedError as death:
            self._handle_death(worker, task, death)
            return
        self.idle.add(worker)
        if task is not None:
            self._finish(task, answer)
        else:
            self.on_ready(answer)
            del self.starts[worker]
            self.began = self.began or time.monotonic()

    def _finish(self, task: Task, result: ShardResult) -> None:
        self.rows_now += result.num_rows
        self.errors_now += result.num_errors
        self.busy += result.busy
        self.warnings |= dict.fromkeys(result.warnings[: max(0, 20 - len(self.warnings))])
        if task.give_up is None:
            self.num_scored += 1
        else:
            self._quarantine(task.shard, task.give_up)

    def _handle_death(self, worker: int, task: Task | None, death: WorkerDiedError) -> None:
        """The shard is tried again, alone, and after three deaths no more; deaths while the job stops do not count."""
        if (shard := self.reserved.pop(worker, None)) is not None:
            self.waiting.appendleft(shard)
        if task is None:
            if self.starts[worker] >= _MAX_STARTS and not self.stopping():
                raise JobError(f"workers cannot start: {death.reason}")
        else:
            shard = task.shard
            if self.stopping():
                self.waiting.appendleft(shard)
            elif task.give_up is not None:  # not even its rows can be read
                self.rows_now += shard.num_rows
                self.errors_now += shard.num_rows
                self.lost.add(shard.number)
                self._quarantine(shard, task.give_up)
            elif death.blameless:
                self.waiting.appendleft(shard)
            else:
                self.tries[shard.number] = self.tries.get(shard.number, 0) + 1
                self.folder.write_tries(self.tries)
                self.reasons[shard.number] = death.reason
                self.suspects.append(shard)
        if (self._more() or task is None) and not self.stopping():
            self._start(worker)

    def _quarantine(self, shard: Shard, reason: str) -> None:
        self.folder.quarantine(shard, reason)
        self.quarantined += 1
        if self.quarantined >= MAX_TRIES and not self.num_scored:
            raise JobError(f"the first {self.quarantined} shards all ended their workers, so it is not the rows: {reason}")

    # --- handing out ---

    def _more(self) -> bool:
        return bool(self.waiting or self.suspects or self.reserved)

    def _hand_out(self) -> None:
        if self.stopping():
            return
        for worker in sorted(self.idle):
            task = self._next(worker)
            if task is None:  # nothing for this one; another may have a shard reserved
                continue
            self.idle.discard(worker)
            self.calls[self.pool.give(worker, task)] = worker, task
        if not self._more() and self.calls:  # let go of those that have nothing left to do, but keep one for what may come back
            for worker in sorted(self.idle)[1:]:
                self.idle.discard(worker)
                self.pool.stop(worker)

    def _next(self, worker: int) -> Task | None:
        shard = self.reserved.pop(worker, None)
        if shard is None and self.waiting:
            shard = self.waiting.popleft()
        if shard is not None:
            if self.ahead and self.waiting:
                self.reserved[worker] = self.waiting.popleft()
            return Task(shard, self.reserved.get(worker))
        if self.suspects:  # last, so that they hold up nothing else; and with nothing beside them, so that it is clear who is to blame
            shard = self.suspects.popleft()
            count = self.tries[shard.number]
            if count < MAX_TRIES:
                return Task(shard)
            reason = self.reasons.get(shard.number, "in an earlier run")
            return Task(shard, give_up=f"the worker died {count} times on this shard: {reason}")
        return None
