"""A file of millions of rows -> the same rows with rewards, in a folder of parts."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, Union, get_args

from image_reward.addresses import scheme
from image_reward.errors import InputError, JobError
from image_reward.jobs.driver import MAX_TRIES, Driver, Pool, Progress
from image_reward.jobs.files import Access
from image_reward.jobs.folder import SUMMARY, Format, JobFolder
from image_reward.jobs.inputs import open_input
from image_reward.jobs.rows import Names
from image_reward.jobs.signals import STOP_SIGNALS

Engine = Literal["local", "ray"]
SHARD_SIZE = 500  # rows: what is scored again after an interruption, and what workers take at a time

PathLike = Union[str, os.PathLike[str]]


@dataclass(frozen=True)
class LoadModels:
    """Loads scorers by name. Picklable, for workers."""

    models: tuple[str, ...]
    dtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, device: str | None) -> list[Any]:
        from image_reward.scorers import load_all

        return load_all(self.models, device, self.dtype, **self.options)


@dataclass(frozen=True)
class JobResult:
    """What came of a job."""

    output: str
    """The folder."""
    num_rows: int
    num_errors: int
    """Rows that have an ``error`` instead of a reward."""
    num_quarantined: int
    """Rows of shards on which a worker died three times; see quarantine.jsonl."""
    num_repeated_ids: int
    num_scored_now: int
    """Rows scored in this run; the others were there."""
    seconds: float
    """Of this run, from the first worker's being ready to the last part."""
    busy: float
    """The share of that time in which the workers' devices computed."""
    columns: tuple[str, ...]
    """Those that hold rewards."""
    file: str | None
    """The one file of all rows, if it was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Interrupted(KeyboardInterrupt):
    """The job was stopped; run it again to go on."""


def score_files(
    rows: PathLike,
    output: PathLike,
    model: str | Sequence[str] | Callable[[str | None], Sequence[Any]] = "ImageReward-v1.0",
    *,
    engine: Engine = "local",
    ray_address: str | None = None,
    workers: int | None = None,
    decoders: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    format: Format = "parquet",
    prompt: str | None = None,
    prompt_column: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    allow_https: bool = False,
    retry_quarantined: bool = False,
    options: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> JobResult:
    """Score every row of a file into a folder of parts. The same call again does what is missing.

    In a script, call it under ``if __name__ == "__main__":``, because worker processes load the script too.

    Args:
        rows: a .csv, .jsonl, .parquet or .tar (WebDataset) file, a glob or folder of such files, the folder of a Hugging Face data set
            saved to disk, or a folder of images with their prompts in .txt files beside them. ``s3://``, ``gs://`` … too.
        output: a new or empty folder, or that of the same job; may be in an object store.
        model: a name, file, folder or hub id, or several; or a function of a device that returns scorers, which workers can import.
        engine: "local" for processes of this machine, "ray" for the actors of a Ray cluster (``ray_address``; by default a local one).
        workers: by default one for each CUDA device, or as many as there are cores (and memory). On a cluster, the most there may be. With
            0 this process does the work itself, as debuggers and small jobs like it; then no part of it survives what ends the process.
        decoders: processes that prepare batches for each worker; by default none on a CPU, and the cores' share of each CUDA device.
        batch_size: images at once; by default found by trial on CUDA. Halved when memory runs out; rewards do not depend on it.
        shard_size: rows in a part; 500 unless the job was begun with another.
        format: "csv" or "jsonl" also write one file, rewards.csv or rewards.jsonl, at the end.
        prompt: one prompt for all rows, where the input has none.
        prompt_column, image_column, id_column: where the columns are not called prompt, image, id. A named id must be unique.
        allow_https: let rows and images come from the web.
        retry_quarantined: try shards again that were given up.
        options: further arguments of ``image_reward.load``.
        on_progress: called several times a second. on_note: called with what a person should know.

    Raises:
        AddressError: an object store cannot be read or written.
        JobError, FileNotFoundError: the message says what is wrong with the input, the folder or the scorer; parts that are done are kept.
        DefectError: an exception that no row may cause, with the row that caused it; parts that are done are kept.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the shards in work were finished first. A Ctrl-C after that does not wait for them.
    """
    least = {"workers": 1 if engine == "ray" else 0, "decoders": 0, "batch_size": 1, "shard_size": 1}
    for name, value in (("workers", workers), ("decoders", decoders), ("batch_size", batch_size), ("shard_size", shard_size)):
        if value is not None and value < least[name]:
            raise InputError(f"{name} must be at least {least[name]}, not {value}")
        if value is not None and value >= 1 << 31:
            raise InputError(f"{name} must be less than 2^31, not {value}")
    for name, choice, known in (("engine", engine, get_args(Engine)), ("format", format, get_args(Format))):
        if choice not in known:
            raise InputError(f"{name} must be {' or '.join(map(repr, known))}, not {choice!r}")
    job = JobFolder(output)
    names = Names(prompt_column, image_column, id_column)
    source = open_input(os.fspath(rows), names, prompt, Access(allow_https))
    load = model if callable(model) else LoadModels((model,) if isinstance(model, str) else tuple(model), dtype, dict(options or {}))
    with job.opened():
        if shard_size is None:
            shard_size = job.manifest["shard_size"] if job.manifest else SHARD_SIZE
        plan = job.plan() if job.manifest else None
        resumed = source.resume(plan, shard_size) if plan is not None else None
        shards = source.scan(shard_size) if resumed is None else resumed
        for note in source.notes:
            on_note(note)
        if source.num_repeated_ids:
            num = source.num_repeated_ids
            ids = "1 id occurs" if num == 1 else f"{num:,} ids occur"
            on_note(f"{ids} more than once in the column {source.id_column!r}, such as {source.repeated_id}")
        found: dict[str, Any] = {
            "format": "image-reward job",
            "version": 1,
            "input": source.fingerprint(),
            "base": source.base if scheme(source.base) else os.path.abspath(source.base),  # noqa: PTH100 - a string
            "image_column": source.image_column,
            "num_rows": sum(shard.num_rows for shard in shards),
            "repeated_ids": source.num_repeated_ids,
            "shard_size": shard_size,
            "columns": source.schema.names,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("image-reward", "torch", "pillow", "pyarrow")},
        }
        if job.manifest:
            job.settle({name: value for name, value in found.items() if name in ("input", "shard_size", "columns")})
        if retry_quarantined:
            job.release_quarantine()
        done = job.done(shards)
        tries, listed = job.tries(), set(job.quarantined())
        for number in sorted(done - listed):
            if tries.get(number, 0) >= MAX_TRIES:  # the job was killed between writing the part and listing its rows
                job.quarantine(shards[number], f"the worker died {tries[number]} times on this shard: in an earlier run")
        earlier = listed - done
        todo = [shard for shard in shards if shard.number not in done and shard.number not in earlier]

        from image_reward.jobs.shards import Work, reward_columns

        columns: list[str] = []

        def on_ready(identity: list[dict[str, str]]) -> None:
            is_first = not columns
            columns[:] = reward_columns([scorer["name"] for scorer in identity])
            exact = {"exact": "yes"} if (options or {}).get("exact") else {}
            job.settle(found | {"scorers": [scorer | exact for scorer in identity]})
            if is_first and resumed is None:
                job.write_plan(source.plan(shards, shard_size))

        pool, ahead = _pool(
            engine, partial(Work, source, job.folder.path, load, batch_size), workers, decoders, device, ray_address, len(todo)
        )
        with _stoppable() as stopping:
            driver = Driver(
                pool,
                job,
                shards,
                done | earlier,
                ahead=ahead,
                on_ready=on_ready,
                on_progress=on_progress,
                on_stopping=lambda: on_note(_STOPPING),
                stopping=stopping.is_set,
            )
            driver.run()
        for heard in driver.warnings:
            on_note(heard)
        source.check_unchanged()
        if stopping.is_set() and driver.progress().num_rows < driver.total:
            raise Interrupted(f"{driver.progress().num_rows:,} of {driver.total:,} rows are done; run the same command again to go on")
        quarantined = job.quarantined()
        num_rows = sum(shard.num_rows for shard in shards)
        result = JobResult(
            job.folder.path,
            num_rows,
            job.num_errors(shards),
            sum(shards[number].num_rows for number in quarantined),
            source.num_repeated_ids,
            driver.rows_now,
            driver.seconds,
            driver.progress().busy,
            tuple(columns),
            job.assemble(format),
        )
        summary = result.as_dict() | {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        job.folder.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    return result


def _pool(
    engine: str,
    work: Callable[..., Any],
    workers: int | None,
    decoders: int | None,
    device: str | None,
    ray_address: str | None,
    num_shards: int,
) -> tuple[Pool, bool]:
    """The workers, and whether they prepare ahead."""
    if engine == "ray":
        from image_reward.jobs.cluster import ActorPool

        pool = ActorPool(work, workers, decoders, device, ray_address, num_shards)
        return pool, pool.decoders > 0
    if ray_address is not None:
        raise JobError("a Ray address was given, but the engine is 'local'; choose engine 'ray'")
    from image_reward.jobs.processes import ProcessPool, ThisProcess, check_can_start, local_devices, num_cores

    if workers != 0 or decoders:
        check_can_start()
    if workers == 0:
        return ThisProcess(work(decoders or 0, None), device), bool(decoders)
    devices = local_devices(device, workers, num_shards)
    cuda = (devices[0] or "").startswith("cuda")
    if decoders is None:
        decoders = max(1, num_cores() // len(devices) - 1) if cuda else 0
    threads = None if cuda else max(1, num_cores() // (len(devices) * (1 + decoders)))
    return ProcessPool(work(decoders, threads), devices), decoders > 0


_STOPPING = "finishing the shards in work, then stopping; press Ctrl-C again to stop at once (they will be scored again)"


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """A Ctrl-C, SIGTERM or SIGHUP asks to stop after the shards in work; a Ctrl-C after that stops at once.

    Another SIGTERM does not: `timeout` sends it to the process and then to its group.
    """
    stopping = threading.Event()

    def on_signal(number: int, _frame: Any) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise Interrupted("stopped at once; run the same command again to go on")
        stopping.set()

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield stopping
        return
    hang_up = getattr(signal, "SIGHUP", None)
    ignored = {hang_up} if hang_up and signal.getsignal(hang_up) == signal.SIG_IGN else set()  # by `nohup`
    before = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS - ignored}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
