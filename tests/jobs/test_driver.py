from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from image_reward.errors import JobError
from image_reward.jobs.driver import Driver, Progress
from image_reward.jobs.folder import JobFolder
from image_reward.jobs.messages import ShardResult, Task, WorkerDiedError
from image_reward.jobs.rows import Shard

Play = Callable[[int, Task], ShardResult]


def shards(count: int, num_rows: int = 10) -> list[Shard]:
    return [Shard(n, "rows.csv", 0, 0, num_rows, n * num_rows) for n in range(count)]


def done(task: Task, **facts: Any) -> ShardResult:
    return ShardResult(task.shard.number, task.shard.num_rows, facts.pop("num_errors", 0), 0.5, **facts)


class ScriptedPool:
    """Workers that do at once what ``play`` says of a worker and its task, and a list of all that was asked of them."""

    def __init__(self, num_workers: int, play: Play = lambda _, task: done(task), start: Callable[[int], None] = lambda _: None) -> None:
        self.num_workers, self.play, self.begin = num_workers, play, start
        self.asked: list[tuple[str, int]] = []
        self.tasks: list[tuple[int, Task]] = []
        self.closed = False

    def start(self, worker: int) -> Future[Any]:
        self.asked.append(("start", worker))
        return self._future(lambda: (self.begin(worker), [{"name": "scorer"}])[1])

    def give(self, worker: int, task: Task) -> Future[Any]:
        self.tasks.append((worker, task))
        return self._future(lambda: self.play(worker, task))

    def _future(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)
        return future

    def result(self, _: int, call: Future[Any]) -> Any:
        return call.result()

    def progress(self, _: int) -> tuple[int, int]:
        return 3, 1

    def stop(self, worker: int) -> None:
        self.asked.append(("stop", worker))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    (tmp_path / "out").mkdir()
    return JobFolder(tmp_path / "out")


def driver(pool: ScriptedPool, folder: JobFolder, todo: list[Shard], **options: Any) -> Driver:
    defaults = {
        "ahead": False,
        "on_ready": lambda _: None,
        "on_progress": lambda _: None,
        "on_stopping": lambda: None,
        "stopping": lambda: False,
    }
    return Driver(pool, folder, todo, options.pop("done", set()), **defaults | options)


def given(pool: ScriptedPool) -> list[int]:
    """The shards in the order in which they were handed out."""
    return [task.shard.number for _, task in pool.tasks]


def test_every_shard_that_is_not_done_is_scored_once(folder: JobFolder) -> None:
    pool = ScriptedPool(2)
    seen: list[Progress] = []
    running = driver(pool, folder, shards(7), done={0, 4}, on_progress=seen.append)
    running.run()
    assert sorted(given(pool)) == [1, 2, 3, 5, 6]
    assert running.rows_now == 50
    assert (seen[-1].num_rows, seen[-1].total) == (70, 70)
    assert pool.closed


def test_a_job_with_nothing_to_do_still_asks_one_worker_what_the_scorers_are(folder: JobFolder) -> None:
    pool, identities = ScriptedPool(3), []
    driver(pool, folder, shards(2), done={0, 1}, on_ready=identities.append).run()
    assert pool.asked == [("start", 0)]
    assert identities == [[{"name": "scorer"}]]


def test_the_shard_that_is_named_ahead_is_the_next_of_that_worker(folder: JobFolder) -> None:
    pool = ScriptedPool(2)
    driver(pool, folder, shards(9), ahead=True).run()
    assert sorted(given(pool)) == list(range(9))
    for worker in range(2):
        tasks = [task for of, task in pool.tasks if of == worker]
        assert [task.upcoming for task in tasks] == [*(task.shard for task in tasks[1:]), None]


def test_a_shard_whose_worker_died_comes_last_and_is_given_up_after_three_deaths(folder: JobFolder) -> None:
    def play(_: int, task: Task) -> ShardResult:
        if task.shard.number == 1 and task.give_up is None:
            raise WorkerDiedError("SIGKILL")
        return done(task)

    pool = ScriptedPool(1, play)
    running = driver(pool, folder, shards(4), ahead=True)
    running.run()
    assert given(pool) == [0, 1, 2, 3, 1, 1, 1]
    assert [task.give_up for _, task in pool.tasks[:6]] == [None] * 6
    assert pool.tasks[6][1].give_up == "the worker died 3 times on this shard: SIGKILL"
    assert all(task.upcoming is None for _, task in pool.tasks[4:])
    assert pool.asked.count(("start", 0)) == 4
    assert folder.tries() == {1: 3}
    assert folder.quarantined() == [1]
    assert running.rows_now == 40


def test_tries_of_an_earlier_run_count(folder: JobFolder) -> None:
    folder.write_tries({0: 3, 2: 1})
    pool = ScriptedPool(1)
    driver(pool, folder, shards(3)).run()
    assert given(pool) == [1, 0, 2]
    assert pool.tasks[1][1].give_up == "the worker died 3 times on this shard: in an earlier run"
    assert pool.tasks[2][1].give_up is None


def test_a_shard_is_not_blamed_for_the_loss_of_its_machine(folder: JobFolder) -> None:
    lost = [1, 1, 1, 1]

    def play(_: int, task: Task) -> ShardResult:
        if lost and task.shard.number == lost[0]:
            lost.pop()
            raise WorkerDiedError("the node has died", blameless=True)
        return done(task)

    pool = ScriptedPool(1, play)
    driver(pool, folder, shards(3)).run()
    assert given(pool) == [0, 1, 1, 1, 1, 1, 2]
    assert folder.tries() == {}


def test_rows_that_kill_even_while_they_are_given_up_are_counted_as_errors(folder: JobFolder) -> None:
    def play(_: int, task: Task) -> ShardResult:
        if task.shard.number == 1:
            raise WorkerDiedError("SIGSEGV")
        return done(task)

    running = driver(ScriptedPool(2, play), folder, shards(3))
    running.run()
    assert (running.rows_now, running.errors_now, running.lost) == (30, 10, {1})
    lines = [json.loads(line) for line in Path(folder.folder.path, "quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(10, 20))


def test_workers_that_never_get_ready_end_the_job(folder: JobFolder) -> None:
    def fail(_: int) -> None:
        raise WorkerDiedError("exit code 1")

    pool = ScriptedPool(1, start=fail)
    with pytest.raises(JobError, match="workers cannot start: exit code 1"):
        driver(pool, folder, shards(2)).run()
    assert pool.asked == [("start", 0)] * 3
    assert pool.closed


def test_three_shards_given_up_and_none_scored_is_not_the_fault_of_rows(folder: JobFolder) -> None:
    def play(_: int, task: Task) -> ShardResult:
        if task.give_up is None:
            raise WorkerDiedError("no memory")
        return done(task)

    with pytest.raises(JobError, match=r"the first 3 shards all ended their workers, so it is not the rows: .*no memory"):
        driver(ScriptedPool(2, play), folder, shards(6)).run()


def test_what_no_worker_can_help_ends_the_job_and_lets_all_workers_go(folder: JobFolder) -> None:
    def play(*_: object) -> ShardResult:
        raise JobError("the disk is full")

    pool = ScriptedPool(2, play)
    with pytest.raises(JobError, match="the disk is full"):
        driver(pool, folder, shards(6)).run()
    assert pool.closed
    assert len(pool.tasks) == 2


def test_a_job_that_stops_finishes_what_is_in_work_and_hands_out_nothing_more(folder: JobFolder) -> None:
    stopping, said = [False], []

    def play(_: int, task: Task) -> ShardResult:
        stopping[0] = task.shard.number >= 2
        return done(task)

    pool = ScriptedPool(1, play)
    running = driver(pool, folder, shards(9), stopping=lambda: stopping[0], on_stopping=lambda: said.append("stopping"))
    running.run()
    assert given(pool) == [0, 1, 2]
    assert running.rows_now == 30
    assert said == ["stopping"]


def test_a_death_while_the_job_stops_is_not_counted(folder: JobFolder) -> None:
    stopping = [False]

    def play(*_: object) -> ShardResult:
        stopping[0] = True
        raise WorkerDiedError("SIGTERM")

    pool = ScriptedPool(1, play)
    driver(pool, folder, shards(3), stopping=lambda: stopping[0]).run()
    assert folder.tries() == {}
    assert pool.asked == [("start", 0)]


def test_workers_with_nothing_left_to_do_are_let_go(folder: JobFolder) -> None:
    """All but one, for a shard that may come back."""
    release: Future[ShardResult] = Future()

    class Slow(ScriptedPool):
        def give(self, worker: int, task: Task) -> Future[Any]:
            if task.shard.number == 0:
                self.tasks.append((worker, task))
                return release
            return super().give(worker, task)

    pool = Slow(4)
    seen: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if sum(kind == "stop" for kind, _ in pool.asked) == 2 and not release.done():
            release.set_result(ShardResult(0, 10, 0, 0.5))

    driver(pool, folder, shards(4), on_progress=on_progress).run()
    assert [worker for kind, worker in pool.asked if kind == "stop"] == [2, 3]
    partial = next(progress for progress in seen if progress.num_rows == 33)  # three shards, and what the fourth's worker tells
    assert (partial.num_errors, partial.num_workers) == (1, 2)
    assert seen[-1].num_rows == 40


def test_warnings_are_kept_once_and_not_without_end(folder: JobFolder) -> None:
    def play(_: int, task: Task) -> ShardResult:
        return done(task, warnings=("the same", *(f"warning {task.shard.number}.{n}" for n in range(8))))

    running = driver(ScriptedPool(1, play), folder, shards(6))
    running.run()
    assert list(running.warnings)[:2] == ["the same", "warning 0.0"]
    assert 17 <= len(running.warnings) <= 20
