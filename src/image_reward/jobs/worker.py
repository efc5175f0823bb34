"""A worker, whatever runs it: it loads the scorers, and then does one task after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from image_reward.errors import ImageRewardError, JobError
from image_reward.jobs.messages import DefectError, ShardResult, Task, WorkerDiedError

if TYPE_CHECKING:
    from image_reward.jobs.shards import ShardScorer, Work


class Worker:
    """A ``ShardScorer`` that fails in three ways only, each of which every engine can send to the driver.

    ``JobError`` is a failure that every worker would meet: a full disk, a changed input, an unknown model.
    ``WorkerDiedError`` is what another process may survive. ``DefectError`` is all else.
    """

    def __init__(self, work: Work, device: str | None, on_progress: Callable[[int, int], None] = lambda _rows, _errors: None) -> None:
        self.work, self.device, self.on_progress = work, device, on_progress
        self.scorer: ShardScorer | None = None

    def load(self) -> list[dict[str, str]]:
        """What the scorers are."""
        from image_reward.jobs.shards import ShardScorer

        with _failures("the scorers cannot be loaded"):
            self.scorer = ShardScorer(self.work, self.device)
            return self.scorer.identity()

    def run(self, task: Task) -> ShardResult:
        assert self.scorer is not None
        shard = task.shard
        with _failures(f"{shard.file}, rows {shard.first_row + 1:,} to {shard.first_row + shard.num_rows:,}"):
            if task.give_up is not None:
                return self.scorer.give_up(shard, task.give_up)
            return self.scorer.score(shard, task.upcoming, self.on_progress)

    def close(self) -> None:
        if self.scorer is not None:
            self.scorer.close()


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    from image_reward.jobs.shards import is_lost_device
    from image_reward.scorers.outcomes import is_out_of_memory

    try:
        yield
    except (DefectError, WorkerDiedError):
        raise
    except Exception as error:
        if isinstance(error, BrokenExecutor):  # of its decoders
            raise WorkerDiedError("a process that prepares batches died, as it does when memory runs out") from None
        if is_out_of_memory(error) or is_lost_device(error):
            raise WorkerDiedError(f"{type(error).__name__}: {error}") from None
        if isinstance(error, ImageRewardError | OSError):
            raise JobError(str(error)) from None
        raise DefectError(f"{doing}: {type(error).__name__}: {error}") from error
