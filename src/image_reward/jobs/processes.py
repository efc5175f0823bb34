"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from image_reward.errors import ImageRewardError, JobError
from image_reward.jobs.messages import Died, Done, Event, Failed, Progressed, Ready, Task
from image_reward.jobs.shards import ShardScorer, Work
from image_reward.jobs.signals import STOP_SIGNALS, end_with_parent, sheltered_from_signals


def work_in_process(work: Work, device: str | None, pipe: Connection) -> None:
    """What a worker process does: tasks come through the pipe, and events go back."""
    end_with_parent()
    warnings.simplefilter("ignore")  # of the network's libraries, once for every worker; those of prompts come with the results
    try:
        scorer = ShardScorer(work, device)
        pipe.send(Ready(0, scorer.identity()))
        while True:
            task: Task = pipe.recv()
            if task.give_up is not None:
                result = scorer.give_up(task.shard, task.give_up)
            else:
                result = scorer.score(task.shard, task.upcoming, lambda rows, errors: pipe.send(Progressed(0, rows, errors)))
            pipe.send(Done(0, result))
    except EOFError:
        pass
    except (ImageRewardError, OSError) as error:  # the job's trouble, not a row's: the disk, the input, the model
        pipe.send(Failed(0, str(error)))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        pipe.send(Died(0, f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"))  # noqa: PTH119


class ProcessPool:
    """Workers as processes of this machine, one for each entry of ``devices``."""

    def __init__(self, work: Work, devices: Sequence[str | None]) -> None:
        self.work, self.devices = work, list(devices)
        self.context: Any = multiprocessing.get_context("spawn")  # a process with PyTorch's threads cannot be forked
        self.processes: dict[int, BaseProcess] = {}
        self.pipes: dict[int, Connection] = {}
        self.waiting: set[int] = set()
        """Workers that wait for a task: the end of their pipe ends them."""

    @property
    def workers(self) -> list[int]:
        return list(range(len(self.devices)))

    def start(self, worker: int) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=work_in_process, args=(self.work, self.devices[worker], theirs), name=f"scorer-{worker}")
        with sheltered_from_signals():
            process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.processes[worker], self.pipes[worker] = process, ours

    def give(self, worker: int, task: Task) -> None:
        self.waiting.discard(worker)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has just died, which the next events will say
            self.pipes[worker].send(task)

    def events(self, timeout: float) -> list[Event]:
        found: list[Event] = []
        of = {pipe: worker for worker, pipe in self.pipes.items()}
        for pipe in wait(list(of), timeout):
            worker = of[pipe]  # type: ignore[index]
            try:
                event: Event = self.pipes[worker].recv()
                event.worker = worker
            except (EOFError, ConnectionResetError):
                process = self.processes[worker]
                process.join()
                event = Died(worker, _ending(process.exitcode), blameless=-(process.exitcode or 0) in STOP_SIGNALS)
            if isinstance(event, Ready | Done):
                self.waiting.add(worker)
            if isinstance(event, Died | Failed):
                self.stop(worker)
            found.append(event)
        return found

    def stop(self, worker: int) -> None:
        process, pipe = self.processes.pop(worker, None), self.pipes.pop(worker, None)
        if process is not None and pipe is not None:
            pipe.close()
            if worker in self.waiting:
                process.join(5)
            process.kill()
            process.join()
            process.close()
        self.waiting.discard(worker)

    def close(self) -> None:
        for worker, pipe in self.pipes.items():  # all at once, so that they end beside each other
            pipe.close()
            if worker not in self.waiting:
                self.processes[worker].kill()
        for worker in list(self.processes):
            self.stop(worker)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hint = ", which the system does to programs when memory runs out" if name == "SIGKILL" else ""
    return f"the process was ended by {name}{hint}"


def local_devices(device: str | None, num_workers: int | None, num_shards: int) -> list[str | None]:
    """The device of each worker: every CUDA device there is, or the CPU as often as there are cores and memory."""
    import torch

    if device is None and torch.cuda.is_available():
        devices: list[str | None] = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return [devices[i % len(devices)] for i in range(num_workers or len(devices))][: max(1, num_shards)]
    if device is not None and device.startswith("cuda"):
        return [device] * min(num_workers or 1, max(1, num_shards))
    return [device or "cpu"] * min(num_workers or min(num_cores(), _fitting()), max(1, num_shards))


_MEMORY_OF_A_WORKER = 2 << 30  # bytes, beyond the weights, which processes share


def _fitting() -> int:
    """As many workers as there is free memory for."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4
    return max(1, free // _MEMORY_OF_A_WORKER)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_can_start() -> None:
    """Raise ``JobError`` in a process that is being started itself: a script without a guard would start workers that start workers."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise JobError("a script that calls score_files must do so under `if __name__ == '__main__':`, because workers load the script too")
