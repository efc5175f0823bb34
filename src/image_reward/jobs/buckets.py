"""Records that must be grouped by a key, more of them than fit into memory: parted by key into files, then looked at part by part."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUM_BUCKETS = 256
_IN_MEMORY = 1 << 20  # records; below this no file is made

KEY = np.dtype([("high", "<u8"), ("low", "<u8")])


class Buckets:
    """Records with a 16-byte digest as their key; all records of one key come back together, whatever their number.

    ``fields``: the numpy type of what a record holds besides its key.
    """

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self.dtype = np.dtype([*KEY.descr, *fields])
        self._held: list[NDArray[Any]] = []
        self._num_held = 0
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Buckets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def add(self, digests: bytes, **fields: Any) -> None:
        """``digests``: 16 bytes for each record, one after another; each field is an array of as many values."""
        keys = np.frombuffer(digests, dtype=KEY)
        records = np.empty(len(keys), dtype=self.dtype)
        for name in ("high", "low"):
            records[name] = keys[name]
        for name, values in fields.items():
            records[name] = values
        self._held.append(records)
        self._num_held += len(records)
        if self._num_held >= _IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        if not self._files:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
            self._files = [self._stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(_NUM_BUCKETS)]  # noqa: SIM115
        records = np.concatenate(self._held)
        bucket = records["high"] % _NUM_BUCKETS
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(_NUM_BUCKETS + 1))
        for number, file in enumerate(self._files):
            file.write(records[order[ends[number] : ends[number + 1]]].tobytes())
        self._held, self._num_held = [], 0

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Parts of the records. Within a part, records of one key stand together in the order in which they were added."""
        if self._files and self._held:
            self._spill()
        parts: Iterator[Any] = iter([self._held]) if not self._files else map(self._read, self._files)
        for part in parts:
            records = np.concatenate(part) if part else np.empty(0, dtype=self.dtype)
            yield records[np.lexsort((records["low"], records["high"]))]

    def _read(self, file: IO[bytes]) -> list[NDArray[Any]]:
        file.seek(0)
        return [np.frombuffer(file.read(), dtype=self.dtype)]


def group_starts(records: NDArray[Any]) -> NDArray[Any]:
    """Where a new key begins in a part of ``Buckets``: bool [N]."""
    new = np.ones(len(records), dtype=bool)
    new[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
    return new
