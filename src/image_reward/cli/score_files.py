"""`image-reward score-files ROWS OUTPUT`"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from image_reward.addresses import Address
from image_reward.cli.options import (
    DEFAULT_MODEL,
    InferenceOptions,
    OutputOptions,
    PromptOptions,
    SeveralModelOptions,
    UsageError,
    print_json,
    print_notices,
)
from image_reward.terminal import StatusLine, duration, note, printable

if TYPE_CHECKING:
    from image_reward.jobs import JobResult, Progress


@dataclass(frozen=True, kw_only=True)
class JobInferenceOptions(InferenceOptions):
    """How rewards are computed."""

    batch_size: int | Literal["auto"] | None = None  # type: ignore[assignment]
    """Images per batch; by default 8 on a CPU, and on CUDA the fastest of several that are tried (auto). Halved when memory runs out."""


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What the rows hold."""

    prompt: str | None = None
    """The prompt of all rows, if they have none of their own."""
    prompt_column: str | None = None
    """The column of prompts; by default `prompt`."""
    image_column: str | None = None
    """The column of images; by default `image`."""
    id_column: str | None = None
    """A column whose values must be unique. By default, repeated values in a column `id` are only reported."""
    allow_https: bool = False
    """Also fetch rows and images from the web."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Where the work is done."""

    engine: Annotated[Literal["local", "ray"], tyro.conf.arg(help="Processes on this machine, or actors on a Ray cluster.")] = "local"
    ray_address: str | None = None
    """Address of a running cluster, such as auto or ray://HOST:10001; by default Ray is started on this machine."""
    workers: int | None = None
    """Number of workers (on a cluster, the largest); by default one per CUDA device, or per core as memory allows. 0: this process."""
    decoders: int | None = None
    """Processes per worker that prepare batches; by default none on a CPU, and an equal share of the cores on CUDA."""
    shard_size: int | None = None
    """Rows per shard; shards in progress are lost on an interruption. By default 500, or as the job was started."""
    retry_quarantined: bool = False
    """Retry shards that were given up because their workers died."""


@dataclass
class ScoreFiles(SeveralModelOptions, OutputOptions, PromptOptions):
    """Score any number of rows of prompts and images into a folder of Parquet files with all columns, rewards and errors.

    The same command again resumes an interrupted job. The images of one prompt are scored by `image-reward score`.
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
    format: Literal["parquet", "csv", "jsonl"] = field(default="parquet", kw_only=True)
    """csv and jsonl also write one file of all rows, OUTPUT/rewards.csv or .jsonl, at the end."""
    log_json: bool = field(default=False, kw_only=True)
    """Report progress in JSON, one object per line of standard error."""
    log_seconds: float | None = field(default=None, kw_only=True)
    """Seconds between progress reports; by default 0.2 on a terminal, 10 elsewhere."""
    inference: tyro.conf.OmitArgPrefixes[JobInferenceOptions] = field(default_factory=JobInferenceOptions, kw_only=True)
    row: tyro.conf.OmitArgPrefixes[RowOptions] = field(default_factory=RowOptions, kw_only=True)
    worker: tyro.conf.OmitArgPrefixes[WorkerOptions] = field(default_factory=WorkerOptions, kw_only=True)

    def run(self) -> int:
        self._check_usage()

        from image_reward.jobs import score_files

        print_notices(self.model)
        printer = _ProgressPrinter(self.log_json, self.log_seconds)
        inference = self.inference
        own = ("device", "dtype", "batch_size")
        result = score_files(
            self.rows,
            self.output,
            self.model or (DEFAULT_MODEL,),
            device=inference.device,
            dtype=inference.dtype,
            batch_size=None if inference.batch_size == "auto" else inference.batch_size,
            format=self.format,
            **asdict(self.row),
            **asdict(self.worker),
            options={name: value for name, value in self.loading.items() if name not in own},
            on_progress=printer.update,
            on_note=printer.note,
        )
        printer.end()
        if self.json:
            print_json(result.as_dict())
        else:
            print(*map(printable, describe(result)), sep="\n")
            note(f"summarize: image-reward report {shlex.quote(result.output)}")
        return 1 if result.num_quarantined or result.num_errors == result.num_rows else 0

    def _check_usage(self) -> None:
        values = asdict(self.worker) | asdict(self.inference)
        for name, least in (("workers", int(self.worker.engine == "ray")), ("decoders", 0), ("shard_size", 1), ("batch_size", 1)):
            value = values[name]
            if isinstance(value, int) and value < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
        self.check_used(self.row.prompt is not None, "--prompt")
        if self.row.prompt is not None:
            self.check_prompt(self.row.prompt, "--prompt takes the text of one prompt for all rows.")
        suffix = Address.parse(self.output).suffix.lower()
        if suffix in (".csv", ".jsonl", ".parquet") and Address.parse(self.output).kind() != "folder":
            one_file = "" if suffix == ".parquet" else f", and add --format {suffix[1:]} for one file in it"
            raise UsageError(f"rows are scored into a folder, and {self.output} is the name of a file: name a folder{one_file}")


def describe(result: JobResult) -> list[str]:
    rate = f", {result.num_scored_now / result.seconds:.1f} rows/s, devices busy {100 * result.busy:.0f} %" if result.num_scored_now else ""
    rows = f"{result.num_rows:,} row{'' if result.num_rows == 1 else 's'}"
    lines = [f"{result.output}: {rows}, {result.num_errors:,} with errors; {result.num_scored_now:,} scored now{rate}"]
    if result.file:
        lines.append(result.file)
    if result.num_quarantined:
        lines.append(f"{result.num_quarantined:,} rows were given up because their workers died: {result.output}/quarantine.jsonl")
    return lines


class _ProgressPrinter:
    """Progress on standard error, for people or as JSON for programs."""

    def __init__(self, as_json: bool, seconds: float | None) -> None:
        self.as_json = as_json
        self.line = StatusLine(seconds, rewrite=not as_json)
        self.last: Progress | None = None

    def update(self, progress: Progress, now: bool = False) -> None:
        self.last = progress
        self.line.show(lambda: json.dumps(progress.as_dict()) if self.as_json else in_words(progress), now)

    def note(self, text: str) -> None:
        self.line.note(json.dumps({"note": text}) if self.as_json else text)

    def end(self) -> None:
        if self.last is not None:
            self.update(self.last, now=True)
        self.line.end()


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
        parts.append(f"{duration(progress.seconds_left)} left")
    parts.append(f"{progress.num_errors:,} error{'' if progress.num_errors == 1 else 's'}")
    parts.append(f"devices busy {100 * progress.busy:.0f} %")
    return ", ".join(parts)
