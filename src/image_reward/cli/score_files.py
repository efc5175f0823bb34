"""`image-reward score-files ROWS OUTPUT`"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from image_reward.cli.options import (
    LoadingOptions,
    OutputOptions,
    PromptOptions,
    SeveralModelOptions,
    UsageError,
    print_json,
    print_notices,
)
from image_reward.terminal import note, printable

if TYPE_CHECKING:
    from image_reward.jobs import JobResult, Progress


@dataclass
class ScoreFiles(SeveralModelOptions, OutputOptions, PromptOptions):
    """Score rows of prompts and images, of any number, into a folder of Parquet files with all columns, rewards and errors.

    The same command again continues where an earlier one stopped. The images of one prompt are scored by `image-reward score`.
    """

    rows: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="ROWS",
            help="A .csv, .jsonl, .parquet or .tar (WebDataset) file, a glob of them, a Hugging Face data set on disk, or a folder of "
            "images with their prompts in .txt files; here or in an object store (s3://…).",
        ),
    ]
    output: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT", help="The folder to write to.")]
    batch_size: int | Literal["auto"] | None = field(default=None, kw_only=True)  # type: ignore[assignment]
    """Images that pass through the network at once. By default 8 on a CPU, and on CUDA the fastest, by trial (auto).
    Halved when memory runs out."""
    engine: Annotated[Literal["local", "ray"], tyro.conf.arg(help="Processes on this machine, or the actors of a Ray cluster.")] = field(
        default="local", kw_only=True
    )
    ray_address: str | None = field(default=None, kw_only=True)
    """Address of a running cluster, such as auto or ray://HOST:10001; by default Ray is started on this machine."""
    workers: int | None = field(default=None, kw_only=True)
    """By default one for each CUDA device, or one for each core that there is memory for. On a cluster, at most this many.
    0 scores within this process, which debuggers and small jobs like."""
    decoders: int | None = field(default=None, kw_only=True)
    """Processes that prepare batches for each worker. By default none on a CPU, and the cores' share on CUDA."""
    shard_size: int | None = field(default=None, kw_only=True)
    """Rows in a part, which an interruption can lose. By default 500, or what the job was begun with."""
    format: Literal["parquet", "csv", "jsonl"] = field(default="parquet", kw_only=True)
    """csv and jsonl also write one file, OUTPUT/rewards.csv or .jsonl, at the end."""
    prompt: str | None = field(default=None, kw_only=True)
    """One prompt for all rows, where they have none."""
    prompt_column: str | None = field(default=None, kw_only=True)
    """The column with the prompt, where it is not called prompt."""
    image_column: str | None = field(default=None, kw_only=True)
    """The column with the image, where it is not called image."""
    id_column: str | None = field(default=None, kw_only=True)
    """A column whose values must be unique. Repeated values in a column called id are reported."""
    allow_https: bool = field(default=False, kw_only=True)
    """Also fetch rows and images from the web."""
    retry_quarantined: bool = field(default=False, kw_only=True)
    """Retry shards that were given up because workers died on them."""
    log_json: bool = field(default=False, kw_only=True)
    """Report progress in JSON, one object on each line of standard error."""
    log_every: float | None = field(default=None, kw_only=True)
    """Seconds between lines of progress. By default half a second on a terminal, ten otherwise."""

    def run(self) -> int:
        self._check_usage()

        from image_reward.jobs import score_files

        print_notices(self.model)
        printer = _ProgressPrinter(self.log_json, self.log_every)
        own = {"model", "device", "dtype", "batch_size"}
        result = score_files(
            self.rows,
            self.output,
            self.model or ("ImageReward-v1.0",),
            engine=self.engine,
            ray_address=self.ray_address,
            workers=self.workers,
            decoders=self.decoders,
            device=self.device,
            dtype=self.dtype,
            batch_size=None if self.batch_size == "auto" else self.batch_size,
            shard_size=self.shard_size,
            format=self.format,
            prompt=self.prompt,
            prompt_column=self.prompt_column,
            image_column=self.image_column,
            id_column=self.id_column,
            allow_https=self.allow_https,
            retry_quarantined=self.retry_quarantined,
            options={option.name: getattr(self, option.name) for option in fields(LoadingOptions) if option.name not in own},
            on_progress=printer.update,
            on_note=printer.note,
        )
        printer.end()
        if self.json:
            print_json(result.as_dict())
        else:
            print(*map(printable, describe(result)), sep="\n")
        return 1 if result.num_quarantined or result.num_errors == result.num_rows else 0

    def _check_usage(self) -> None:
        for name, least in (("workers", int(self.engine == "ray")), ("decoders", 0), ("shard_size", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
        if self.prompt is not None:
            self.check_prompt(self.prompt, "--prompt takes the text of one prompt for all rows.")
        suffix = PurePosixPath(self.output).suffix.lower()
        if suffix in (".csv", ".jsonl", ".parquet") and not Path(self.output).is_dir():
            one_file = "" if suffix == ".parquet" else f", and add --format {suffix[1:]} for one file in it"
            raise UsageError(f"rows are scored into a folder, and {self.output} is the name of a file: give a folder{one_file}")


def describe(result: JobResult) -> list[str]:
    rate = f", {result.num_scored_now / result.seconds:.1f} rows/s, devices busy {100 * result.busy:.0f} %" if result.num_scored_now else ""
    lines = [f"{result.output}: {result.num_rows:,} rows, {result.num_errors:,} with errors; {result.num_scored_now:,} scored now{rate}"]
    if result.file:
        lines.append(result.file)
    if result.num_quarantined:
        lines.append(f"{result.num_quarantined:,} rows were given up because workers died on them: {result.output}/quarantine.jsonl")
    return lines


class _ProgressPrinter:
    """Progress on standard error: one line that is written over on a terminal, a line now and then elsewhere, JSON for programs."""

    def __init__(self, as_json: bool, every: float | None) -> None:
        self.as_json = as_json
        self.over = sys.stderr.isatty() and not as_json
        self.every = every if every is not None else 0.5 if self.over else 10.0
        self.printed = time.monotonic()
        self.last: Progress | None = None

    def update(self, progress: Progress) -> None:
        self.last = progress
        if time.monotonic() - self.printed >= self.every:
            self._print()

    def note(self, text: str) -> None:
        if self.over:
            print("\r\x1b[K", end="", file=sys.stderr)
        note(json.dumps({"note": text}) if self.as_json else text)

    def end(self) -> None:
        if self.last is not None:
            self._print()
        if self.over:
            print(file=sys.stderr)

    def _print(self) -> None:
        assert self.last is not None
        self.printed = time.monotonic()
        if self.as_json:
            print(json.dumps(self.last.as_dict()), file=sys.stderr, flush=True)
        elif self.over:
            print(f"\r\x1b[K{in_words(self.last)}", end="", file=sys.stderr, flush=True)
        else:
            print(in_words(self.last), file=sys.stderr, flush=True)


def in_words(progress: Progress) -> str:
    """
    >>> from image_reward.jobs import Progress
    >>> in_words(Progress(500, 2000, 1, 20.0, 75.0, 0.93, 2))
    '500 of 2,000 rows, 20.0 rows/s, 1 min 15 s left, 1 error, devices busy 93 %'
    """
    parts = [f"{progress.num_rows:,} of {progress.total:,} rows"]
    if not progress.num_workers and not progress.rows_per_second:
        return f"{parts[0]}, loading"
    parts.append(f"{progress.rows_per_second:.1f} rows/s")
    if progress.seconds_left is not None and progress.num_rows < progress.total:
        parts.append(f"{_duration(progress.seconds_left)} left")
    parts.append(f"{progress.num_errors:,} error{'' if progress.num_errors == 1 else 's'}")
    parts.append(f"devices busy {100 * progress.busy:.0f} %")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
