from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import stubs

from image_reward.errors import JobError
from image_reward.jobs import processes
from image_reward.jobs.inputs import open_input
from image_reward.jobs.messages import Task, WorkerDiedError
from image_reward.jobs.processes import ProcessPool, ThisProcess, check_can_start, local_devices, num_cores
from image_reward.jobs.rows import Shard
from image_reward.jobs.shards import Work


@pytest.fixture
def work(tmp_path: Path) -> tuple[Work, list[Shard]]:
    """Two shards, the second of which kills its worker."""
    stubs.draw(tmp_path, 1)
    (tmp_path / "rows.csv").write_text("prompt,image\na,0.png\na b,0.png\nkill,0.png\n")
    source = open_input(str(tmp_path / "rows.csv"))
    shards = source.scan(2)
    (tmp_path / "out").mkdir()
    return Work(source, str(tmp_path / "out"), stubs.load, None, decoders=0), shards


@pytest.fixture
def pool(work: tuple[Work, list[Shard]]) -> Iterator[ProcessPool]:
    pool = ProcessPool(work[0], ["cpu"])
    yield pool
    pool.close()


def test_a_process_that_dies_is_named_and_another_takes_its_place(work: tuple[Work, list[Shard]], pool: ProcessPool) -> None:
    _, (good, bad) = work
    (identity,) = pool.result(0, pool.start(0))
    assert identity["name"] == "brightness"
    with pytest.raises(WorkerDiedError, match="ended by SIGKILL, which the system does to programs when memory runs out") as caught:
        pool.result(0, pool.give(0, Task(bad)))
    assert not caught.value.blameless
    assert pool.executors == {}
    pool.result(0, pool.start(0))
    result = pool.result(0, pool.give(0, Task(good)))
    assert (result.shard, result.num_rows, result.num_errors) == (0, 2, 0)
    ended = pool.executors[0].context.process.sentinel
    pool.stop(0)
    assert wait([ended], 60)
    assert pool.executors == {}


def test_a_process_that_the_system_stopped_is_not_to_blame(pool: ProcessPool) -> None:
    pool.result(0, pool.start(0))
    ended = pool.executors[0].context.process.sentinel
    call = pool.executors[0].submit(stubs.stop_this_process)
    with pytest.raises(WorkerDiedError, match="ended by SIGTERM") as caught:
        pool.result(0, call)
    assert caught.value.blameless
    assert wait([ended], 60)


def test_without_workers_errors_come_with_the_result(work: tuple[Work, list[Shard]]) -> None:
    source, (good, _) = work
    here = ThisProcess(source, "cpu")
    (identity,) = here.result(0, here.start(0))
    assert identity["name"] == "brightness"
    assert here.result(0, here.give(0, Task(good))).num_rows == 2
    Path(source.input.path).unlink()
    call = here.give(0, Task(good))
    with pytest.raises(JobError, match=r"rows\.csv is gone"):
        here.result(0, call)
    here.close()


def test_as_many_workers_as_devices_or_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(processes, "num_cores", lambda: 8)
    monkeypatch.setattr(processes, "_fitting", lambda: 3)
    assert local_devices(None, None, 100) == ["cpu"] * 3
    assert local_devices("cpu", 5, 100) == ["cpu"] * 5
    assert local_devices(None, None, 2) == ["cpu"] * 2
    assert local_devices(None, None, 0) == ["cpu"]
    assert local_devices("cuda:1", None, 100) == ["cuda:1"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_devices(None, None, 100) == ["cuda:0", "cuda:1"]
    assert local_devices(None, 3, 100) == ["cuda:0", "cuda:1", "cuda:0"]
    assert local_devices("cpu", None, 100) == ["cpu"] * 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "the process ended with exit code 1"),
        (-11, "the process was ended by SIGSEGV"),
        (-9, "the process was ended by SIGKILL, which the system does to programs when memory runs out"),
        (-250, "the process was ended by 250"),
    ],
)
def test_how_a_process_ended(code: int, words: str) -> None:
    assert processes._ending(code) == words


def test_a_script_without_a_guard_is_not_started_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_start()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(JobError, match="under `if __name__ == '__main__':`"):
        check_can_start()
    assert num_cores() >= 1
