"""What the driver of a job and its workers say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from image_reward.jobs.rows import Shard


@dataclass(frozen=True)
class Task:
    """What a worker is to do."""

    shard: Shard
    upcoming: Shard | None = None
    """The shard after it, to prepare ahead."""
    give_up: str | None = None
    """Do not score the shard: write its rows with this reason."""


@dataclass(frozen=True)
class ShardResult:
    """What came of a shard."""

    shard: int
    num_rows: int
    num_errors: int
    busy: float
    """Seconds in which the device computed."""
    warnings: tuple[str, ...] = ()


class WorkerDiedError(Exception):
    """A worker is gone. ``blameless``: its machine went with it, so the shard is not to blame."""

    def __init__(self, reason: str, blameless: bool = False) -> None:
        super().__init__(reason, blameless)
        self.reason, self.blameless = reason, blameless


class DefectError(RuntimeError):
    """An exception that neither a row nor the user may cause: a defect of this package or of a scorer. It ends the job.

    The message names the row where one row alone raises it; what is scored is kept.
    """
