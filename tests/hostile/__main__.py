"""Uses every input in a process of its own, with limits of time and memory.

``python -m hostile FOLDER [NAME]``: ``FOLDER`` is for what the inputs write; with ``NAME`` only those whose name has it. Prints for each
its group, its name and what is wrong, if anything is.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hostile import GIB, Case, FaultError, all_cases, rewards, scorer

SECONDS = 30  # what a hang is told by, and no measure of speed
MEMORY = GIB
_TOGETHER = 16  # cases that one process uses, one after another


def run(cases: Sequence[Case], folder: Path, jobs: int) -> Iterator[tuple[Case, str]]:
    """Each case with its fault, empty if there is none. A case that ends its process is at fault; the others go on in a new one."""
    waiting = deque(cases[start : start + _TOGETHER] for start in range(0, len(cases), _TOGETHER))
    running: dict[int, tuple[Sequence[Case], Path]] = {}
    started = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            some, place = waiting.popleft(), folder / f"{started:03d}"
            place.mkdir(parents=True)
            started += 1
            if (process := os.fork()) == 0:
                _use_all(some, place)
            running[process] = some, place
        process, status = os.wait()
        some, place = running.pop(process)
        faults = [json.loads(line) for line in (place / "faults").read_text().splitlines()]
        if len(faults) < len(some):
            faults.append(_ending(status))
            if rest := some[len(faults) :]:
                waiting.appendleft(rest)
        yield from zip(some, faults, strict=False)
        shutil.rmtree(place, ignore_errors=True)


def _use_all(cases: Sequence[Case], place: Path) -> None:
    """In the child: use the inputs, write down what is wrong with each, and end."""
    try:
        output = os.open(place / "output", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with (place / "faults").open("w") as faults:
            for number, case in enumerate(cases):
                print(json.dumps(_use(case, place / f"{number}")), file=faults, flush=True)
    finally:
        os._exit(0)


def _use(case: Case, place: Path) -> str:
    place.mkdir()
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, resource.RLIM_INFINITY))
    signal.alarm(SECONDS)  # whose default is to end the process, even within a library
    try:
        case.use(place)
    except FaultError as error:
        return str(error)
    except BaseException:
        return traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        shutil.rmtree(place, ignore_errors=True)
    return ""


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return f"it hangs: it had not come to an end after {SECONDS} s"
    return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "the process ended"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def warm_up() -> None:
    """Load once what every case needs."""
    import image_reward.cli.compare
    import image_reward.cli.data
    import image_reward.cli.models
    import image_reward.cli.score
    import image_reward.comparisons
    import image_reward.jobs
    import image_reward.reports.tables  # noqa: F401

    torch.set_num_threads(1)
    rewards()
    scorer(allow_truncated=True)
    scorer(orient=True)
    os.fsync = lambda _: None  # nobody cuts the power


def report(folder: Path, every: str = "1", only: str = "") -> None:
    """Use every Nth input whose group and name hold ``only``."""
    cases = [case for case in all_cases() if only in f"{case.group}: {case.name}"][:: int(every)]
    warm_up()
    for case, fault in run(cases, folder, jobs=len(os.sched_getaffinity(0))):
        print(json.dumps({"group": case.group, "name": case.name, "fault": fault}), flush=True)


if __name__ == "__main__":
    report(Path(sys.argv[1]), *sys.argv[2:])
