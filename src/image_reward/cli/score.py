"""`image-reward score PROMPT IMAGE...` and `image-reward score ROWS FOLDER`"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from image_reward.cli.options import (
    GalleryOptions,
    OutputOptions,
    SeveralModelOptions,
    UsageError,
    find_images,
    print_json,
)

if TYPE_CHECKING:
    from image_reward.jobs import JobResult, Progress

_ROW_SUFFIXES = (".csv", ".jsonl", ".parquet", ".tar")
_SCORER_OPTIONS = ("compile", "config", "exact", "long_prompts", "orient", "allow_truncated", "max_pixels")
_HOW_TO_SAY_IT = "say which with --read-as prompt or --read-as rows"


@dataclass(kw_only=True)
class RowOptions:
    """For files of rows; none of them goes with PROMPT IMAGE..."""

    engine: Literal["local", "ray"] | None = None
    """Processes of this machine (the default), or the actors of a Ray cluster."""
    ray_address: str | None = None
    """Of a running cluster, such as auto or ray://HOST:10001; by default Ray is started on this machine."""
    workers: int | None = None
    """By default one for each CUDA device, or one for each core that there is memory for. On a cluster, at most so many."""
    decoders: int | None = None
    """Processes that prepare batches for each worker. By default none on a CPU, and the cores' share on CUDA."""
    shard_size: int | None = None
    """Rows in a part, which an interruption can lose. By default 500, or what the job was begun with."""
    format: Literal["parquet", "csv", "jsonl"] | None = None
    """csv and jsonl also write one file, FOLDER/rewards.csv or .jsonl, at the end; by default there are Parquet parts alone."""
    prompt: str | None = None
    """One prompt for all rows, where they have none."""
    prompt_column: str | None = None
    """Where it is not called prompt."""
    image_column: str | None = None
    """Where it is not called image."""
    id_column: str | None = None
    """A column whose values must be unique. A column called id may repeat, which is told."""
    allow_https: bool = False
    """Fetch rows and images from the web, too."""
    retry_quarantined: bool = False
    """Try shards again that were given up because workers died on them."""
    log_json: bool = False
    """Tell progress in JSON, an object on each line of standard error."""
    log_every: float | None = None
    """Seconds between lines of progress. By default half a second on a terminal, ten otherwise."""


@dataclass
class Score(SeveralModelOptions, OutputOptions, GalleryOptions, RowOptions):
    """Print the reward of each image, in the order given; or score a file of millions of rows into a folder.

    PROMPT IMAGE... prints rewards. ROWS FOLDER takes .csv, .jsonl, .parquet or .tar (WebDataset) files, a glob, a Hugging Face data set
    on disk, or a folder of images with their prompts in .txt files, here or in an object store (s3://…), and writes Parquet parts with
    all columns, the rewards, and errors. The same command again does what is missing.
    """

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT|ROWS", help="What the images were made for; or rows.")]
    rest: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="IMAGE...|FOLDER",
            help="Image files, folders, or globs, - for paths from standard input; or the folder to write to.",
            help_behavior_hint="(at least one)",
        ),
    ]
    read_as: Literal["prompt", "rows"] | None = None
    """What the first argument is, where that is not clear."""
    batch_size: int | Literal["auto"] | None = field(default=None, kw_only=True)  # type: ignore[assignment]
    """Images that pass through the network at once. By default 8 on a CPU, 64 elsewhere; for rows on CUDA the fastest, by trial (auto).
    Halved when memory runs out."""

    def run(self) -> int:
        if self.batch_size == "auto":
            self.batch_size = None
        rows = self.read_as == "rows" if self.read_as else reads_rows(self.first, self.rest)
        return self._score_rows() if rows else self._score_images()

    def _score_images(self) -> int:
        for name, value in vars(self).items():
            if name in RowOptions.__dataclass_fields__ and value is not RowOptions.__dataclass_fields__[name].default:
                raise UsageError(
                    f"--{name.replace('_', '-')} is for files of rows, and {self.first!r:.60} was taken for a prompt; {_HOW_TO_SAY_IT}"
                )
        if len(self.model) > 1:
            raise UsageError("several models score files of rows; give one --model for images")
        images = find_images(self.rest)
        scorer = self.load_all()[0]
        rewards = scorer.score([self.first] * len(images), images)

        from image_reward.cli.tables import reward_table
        from image_reward.reports.tables import show
        from image_reward.scorers.distribution import RewardRow

        rows = [RewardRow.of(scorer, image, reward) for image, reward in zip(images, rewards, strict=True)]
        if self.json:
            print_json({"model": scorer.name, "prompt": self.first, "images": [row.as_dict() for row in rows]})
        else:
            show(reward_table(rows, title=self.first, caption=scorer.name))
        self.write_gallery(rows, self.first, scorer)
        return 0

    def _score_rows(self) -> int:
        if len(self.rest) != 1:
            raise UsageError(f"rows are scored into one folder, and {len(self.rest)} were given; {_HOW_TO_SAY_IT}")
        if self.gallery:
            raise UsageError("--gallery is for the images of one prompt; see `image-reward report FOLDER --report FILE.html`")
        for name, least in (("workers", 1), ("decoders", 0), ("shard_size", 1), ("batch_size", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")

        from image_reward.jobs import score_files
        from image_reward.scorers.registry import spec_of

        for model in self.model:
            if (spec := spec_of(model)) and spec.notice:
                print(spec.notice, file=sys.stderr)
        teller = _Teller(self.log_json, self.log_every)
        result = score_files(
            self.first,
            self.rest[0],
            self.model or ("ImageReward-v1.0",),
            engine=self.engine or "local",
            ray_address=self.ray_address,
            workers=self.workers,
            decoders=self.decoders,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,  # type: ignore[arg-type]
            shard_size=self.shard_size,
            format=self.format or "parquet",
            prompt=self.prompt,
            prompt_column=self.prompt_column,
            image_column=self.image_column,
            id_column=self.id_column,
            allow_https=self.allow_https,
            retry_quarantined=self.retry_quarantined,
            options={name: getattr(self, name) for name in _SCORER_OPTIONS},
            on_progress=teller.tell,
            on_note=teller.note,
        )
        teller.end()
        if self.json:
            print_json(result.as_dict())
        else:
            print(*_told(result), sep="\n")
        return 1 if result.num_quarantined or result.num_errors == result.num_rows else 0


def reads_rows(first: str, rest: tuple[str, ...]) -> bool:
    """Whether the arguments are ROWS FOLDER rather than PROMPT IMAGE... Raises ``UsageError`` where they could be both, or neither."""
    exists = _exists(first)
    named = PurePosixPath(first).suffix.lower() in _ROW_SUFFIXES and (exists or not any(space in first for space in " \n\t"))
    folder = exists and Path(first).is_dir()
    if not (named or folder or "://" in first.split(" ")[0]):
        return False
    if len(rest) != 1:
        if named:
            raise UsageError(
                f"{first} looks like a file of rows, which is scored into one folder, and {len(rest)} were given; {_HOW_TO_SAY_IT}"
            )
        return False
    if _is_image(rest[0]):
        what = "a folder" if folder else "a file of rows"
        raise UsageError(f"{first} looks like {what}, and {rest[0]} like images to be scored for a prompt; {_HOW_TO_SAY_IT}")
    return True


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a prompt, too long for a name
        return False


def _is_image(path: str) -> bool:
    """Whether this names images, be they there or not, rather than a folder to write to."""
    from image_reward.images import IMAGE_SUFFIXES

    if path == "-" or Path(path).suffix.lower() in IMAGE_SUFFIXES or any(sign in path for sign in "*?["):
        return True
    if not _exists(path) or not Path(path).is_dir():
        return _exists(path)
    inside = [entry.name for entry in Path(path).iterdir()]
    return "manifest.json" not in inside and any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in inside)


def _told(result: JobResult) -> list[str]:
    rate = f", {result.num_scored_now / result.seconds:.1f} rows/s, devices busy {100 * result.busy:.0f} %" if result.num_scored_now else ""
    lines = [f"{result.output}: {result.num_rows:,} rows, {result.num_errors:,} with errors; {result.num_scored_now:,} scored now{rate}"]
    if result.file:
        lines.append(result.file)
    if result.num_quarantined:
        lines.append(f"{result.num_quarantined:,} rows were given up because workers died on them: {result.output}/quarantine.jsonl")
    return lines


class _Teller:
    """Progress on standard error: one line that is written over on a terminal, a line now and then elsewhere, JSON for programs."""

    def __init__(self, as_json: bool, every: float | None) -> None:
        self.as_json = as_json
        self.over = sys.stderr.isatty() and not as_json
        self.every = every if every is not None else 0.5 if self.over else 10.0
        self.told = time.monotonic()
        self.last: Progress | None = None

    def tell(self, progress: Progress) -> None:
        self.last = progress
        if time.monotonic() - self.told >= self.every:
            self._print()

    def note(self, text: str) -> None:
        start = "\r\x1b[K" if self.over else ""
        print(json.dumps({"note": text}) if self.as_json else f"{start}{text}", file=sys.stderr)

    def end(self) -> None:
        if self.last is not None:
            self._print()
        if self.over:
            print(file=sys.stderr)

    def _print(self) -> None:
        assert self.last is not None
        self.told = time.monotonic()
        if self.as_json:
            print(json.dumps(self.last.as_dict()), file=sys.stderr, flush=True)
        else:
            print(
                f"\r\x1b[K{in_words(self.last)}" if self.over else in_words(self.last),
                end="" if self.over else "\n",
                file=sys.stderr,
                flush=True,
            )


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
