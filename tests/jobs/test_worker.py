from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import stubs
import torch

from image_reward.errors import ImageReadError, InputError, JobError
from image_reward.jobs.inputs import open_input
from image_reward.jobs.messages import DefectError, Task, WorkerDiedError
from image_reward.jobs.shards import ShardScorer, Work
from image_reward.jobs.worker import Worker


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ImageReadError("no image"), JobError, "^no image$"),
        (OSError("no disk"), JobError, "^no disk$"),
        (MemoryError("no memory"), WorkerDiedError, "MemoryError: no memory"),
        (torch.OutOfMemoryError("no memory"), WorkerDiedError, "OutOfMemoryError: no memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), WorkerDiedError, "CUDA error: an illegal"),
        (BrokenProcessPool("a decoder died"), WorkerDiedError, "a process that prepares batches died"),
        (RuntimeError("mat1 and mat2"), DefectError, r"rows\.csv, rows 3 to 4: RuntimeError: mat1 and mat2"),
        (ValueError("not a row's"), DefectError, r"rows\.csv, rows 3 to 4: ValueError: not a row's"),
        (KeyError("key"), DefectError, r"rows\.csv, rows 3 to 4: KeyError: 'key'"),
    ],
)
def test_a_worker_fails_in_three_ways(
    error: Exception, expected: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.csv").write_text("prompt,image\n" + "a,0.png\n" * 4)
    source = open_input(str(tmp_path / "rows.csv"))
    shard = source.scan(2)[1]

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ShardScorer, "score", fail)
    worker = Worker(Work(source, str(tmp_path / "out"), stubs.load, None, decoders=0), "cpu")
    assert worker.load()[0]["name"] == "brightness"
    with pytest.raises(expected, match=message):
        worker.run(Task(shard))


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (InputError("no such dtype"), JobError, "^no such dtype$"),
        (ValueError("shape mismatch"), DefectError, "the scorers cannot be loaded: ValueError: shape mismatch"),
        (KeyError("state"), DefectError, "the scorers cannot be loaded: KeyError: 'state'"),
    ],
)
def test_scorers_that_cannot_be_loaded(error: Exception, expected: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,image\na,0.png\n")

    def load(_: str | None) -> list[stubs.Brightness]:
        raise error

    with pytest.raises(expected, match=message):
        Worker(Work(open_input(str(tmp_path / "rows.csv")), str(tmp_path), load, None, decoders=0), "cpu").load()
