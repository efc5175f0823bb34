"""Workers on this machine: processes, each the one process of an executor, or the program itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from image_reward.errors import JobError
from image_reward.jobs.messages import ShardResult, Task, WorkerDiedError
from image_reward.jobs.shards import Work
from image_reward.jobs.signals import STOP_SIGNALS, end_with_parent, sheltered_from_signals
from image_reward.jobs.worker import Worker

Answer = TypeVar("Answer")
_SECONDS_TO_END = 5.0  # that a worker has to exit before it is killed

# --- in a worker process ---

_this = threading.local()


def _begin(work: Work, device: str | None, progress: Any) -> None:
    end_with_parent()
    warnings.simplefilter("ignore")  # of the network's libraries, once for every worker; those of prompts come with the results

    def on_progress(num_rows: int, num_errors: int) -> None:
        progress[:] = num_rows, num_errors

    _this.worker = Worker(work, device, on_progress)


def _load() -> list[dict[str, str]]:
    return _this.worker.load()


def _run(task: Task) -> ShardResult:
    return _this.worker.run(task)


def _close() -> None:
    _this.worker.close()


# --- in the driver ---


class _Context(SpawnContext):  # a process with PyTorch's threads cannot be forked
    """Remembers the process that an executor starts, whose exit code says how it died."""

    process: BaseProcess

    def Process(self, *args: Any, **options: Any) -> BaseProcess:  # type: ignore[override]  # noqa: N802 - the name that executors call
        self.process = super().Process(*args, **options)
        return self.process


class _Executor(ProcessPoolExecutor):
    """One worker process."""

    def __init__(self, work: Work, device: str | None) -> None:
        self.context = _Context()
        self.progress = self.context.RawArray("q", 2)
        """Rows of the shard in work that are done, and those of them with errors."""
        super().__init__(1, self.context, _begin, (work, device, self.progress))
        self.last: Future[Any] = Future()

    def ask(self, function: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        self.progress[:] = 0, 0
        with sheltered_from_signals():  # the first call starts the process
            future = self.submit(function, *arguments)
        self.last = future
        return future

    def end(self) -> None:
        """Let the process end, once it has done what it was asked for."""
        with suppress(BrokenExecutor, RuntimeError):  # it is dead or exiting
            self.submit(_close)
        self.shutdown(wait=False)

    def kill(self) -> int | None:
        """Return the exit code, of a process that was dead before too."""
        self.context.process.kill()
        self.shutdown()
        self.context.process.join()
        return self.context.process.exitcode


class ProcessPool:
    """Workers as processes of this machine, one for each entry of ``devices``."""

    def __init__(self, work: Work, devices: Sequence[str | None]) -> None:
        self.work, self.devices = work, list(devices)
        self.executors: dict[int, _Executor] = {}

    @property
    def num_workers(self) -> int:
        return len(self.devices)

    def start(self, worker: int) -> Future[Any]:
        executor = _Executor(self.work, self.devices[worker])
        call = executor.ask(_load)
        self.executors[worker] = executor
        return call

    def give(self, worker: int, task: Task) -> Future[Any]:
        return self.executors[worker].ask(_run, task)

    def result(self, worker: int, call: Future[Any]) -> Any:
        try:
            return call.result()
        except BrokenExecutor:
            code = self.executors.pop(worker).kill()
            raise WorkerDiedError(_ending(code), blameless=-(code or 0) in STOP_SIGNALS) from None
        except WorkerDiedError:
            self.executors.pop(worker).kill()
            raise

    def progress(self, worker: int) -> tuple[int, int]:
        num_rows, num_errors = self.executors[worker].progress
        return num_rows, num_errors

    def stop(self, worker: int) -> None:
        executor = self.executors.pop(worker)
        if executor.last.done():
            executor.end()
            wait([executor.context.process.sentinel], _SECONDS_TO_END)
        executor.kill()

    def close(self) -> None:
        for executor in self.executors.values():  # all at once, so that they end beside each other
            executor.end() if executor.last.done() else executor.context.process.kill()
        for worker in list(self.executors):
            self.stop(worker)


class ThisProcess:
    """The only worker of a job that has none: the program itself, which does at once what it is asked for."""

    num_workers = 1

    def __init__(self, work: Work, device: str | None) -> None:
        self.work, self.device = work, device
        self.worker = Worker(work, device)

    def start(self, worker: int) -> Future[Any]:
        self.stop(worker)
        self.worker = Worker(self.work, self.device)
        return _done(self.worker.load)

    def give(self, worker: int, task: Task) -> Future[Any]:
        del worker
        return _done(self.worker.run, task)

    def result(self, worker: int, call: Future[Any]) -> Any:
        del worker
        return call.result()

    def progress(self, worker: int) -> tuple[int, int]:
        del worker
        return 0, 0

    def stop(self, worker: int) -> None:
        del worker
        self.worker.close()

    def close(self) -> None:
        self.stop(0)


def _done(function: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
    future: Future[Answer] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


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
    if device is not None and device.startswith(("cuda", "auto")):  # "auto": a worker spreads over all devices
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
    """Raise ``JobError`` where workers could not load the program: they would not find one that was read from standard input, and of a
    script without a guard they would start workers that start workers.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise JobError("a script that calls score_files must do so under `if __name__ == '__main__':`, because workers load the script too")
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is not None and getattr(main, "__spec__", None) is None and not os.path.exists(file):  # noqa: PTH110 - "<stdin>"
        raise JobError(
            f"workers load the program that calls score_files too, and {file} is not a file: save the program to a file, "
            "with the call under `if __name__ == '__main__':`, or pass workers=0"
        )
