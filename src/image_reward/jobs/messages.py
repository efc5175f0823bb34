"""What the driver of a job and its workers say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from image_reward.jobs.rows import Shard


@dataclass(frozen=True)
class ShardResult:
    """What came of a shard."""

    shard: int
    num_rows: int
    num_errors: int
    seconds: float
    busy: float
    """Seconds in which the device computed."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a worker is to do."""

    shard: Shard
    upcoming: Shard | None = None
    """The shard after it, to prepare ahead."""
    give_up: str | None = None
    """Do not score the shard: write its rows with this reason."""


@dataclass
class Ready:
    """A worker has loaded its scorers."""

    worker: int
    identity: list[dict[str, str]]


@dataclass
class Progressed:
    """How far the worker is with its shard."""

    worker: int
    num_rows: int
    num_errors: int


@dataclass
class Done:
    """The part of a shard is written."""

    worker: int
    result: ShardResult


@dataclass
class Died:
    """A worker is gone. ``blameless``: its machine went with it, so the shard is not to blame."""

    worker: int
    reason: str
    blameless: bool = False


@dataclass
class Failed:
    """What every worker would run into: the disk is full, the input has changed, there is no such model."""

    worker: int
    reason: str


Event = Union[Ready, Progressed, Done, Died, Failed]
