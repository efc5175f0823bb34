"""The folder of a job: parts of rewards, and all that is needed to go on after an interruption.

====================  =============================================================================================================
manifest.json         what is scored by what; another input or another scorer is refused
part-NNNNNN.parquet   the rows of shard NNNNNN with their rewards and errors; there, or not there, never half
shards.arrow          where the shards begin and end in the input, so that going on needs no scan
tries.json            shards on which a worker died, and how often
quarantine.jsonl      the rows of shards on which a worker died every time
summary.json          what came of it, once all is done
rewards.csv, .jsonl   all rows in one file, if it was asked for
====================  =============================================================================================================
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from image_reward.addresses import Address
from image_reward.errors import JobError
from image_reward.jobs.arrow import clean, python_rows, text_array
from image_reward.jobs.files import Folder, writing
from image_reward.jobs.rows import Shard

if TYPE_CHECKING:
    import pyarrow

MANIFEST, PLAN, TRIES, QUARANTINE, SUMMARY = "manifest.json", "shards.arrow", "tries.json", "quarantine.jsonl", "summary.json"
Format = Literal["parquet", "csv", "jsonl"]
DIGESTS = b"image_reward.digests"
"""Key of a part's metadata: the digests of its images' files, 16 bytes a row, base64; zeros where no file could be read."""
DIGEST_SIZE = 16


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def part_numbers(names: Sequence[str]) -> list[int]:
    """The shards whose parts are among the files of a folder."""
    stems = (name[5:-8] for name in names if name.startswith("part-") and name.endswith(".parquet"))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def write_part(
    folder: Folder,
    shard: Shard,
    table: pyarrow.Table,
    columns: Mapping[str, Sequence[float]],
    errors: Mapping[int, str],
    digests: Mapping[int, bytes],
) -> None:
    """Write the rows of a shard with their rewards (NaN becomes no value) and errors."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.float32(), from_pandas=True))
    table = table.append_column("error", text_array([errors.get(row) for row in range(len(table))]))
    stored = b"".join(digests.get(row, bytes(DIGEST_SIZE)) for row in range(len(table)))
    table = table.replace_schema_metadata({DIGESTS: base64.b64encode(stored)})
    sink = io.BytesIO()
    write_table(table, sink, compression="zstd")
    folder.write(part_name(shard.number), sink.getvalue())


class JobFolder:
    """The folder that a job writes to. One job at a time, on a file system with locks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Folder.at(path)
        self.manifest: dict[str, Any] | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folder, or read what is in it, and keep other jobs out. Raises ``JobError``."""
        path = self.folder.path
        names = self.folder.names()
        text = self.folder.read(MANIFEST) if names else None
        if names and text is None:
            raise JobError(f"{path} is not empty and holds no job (it has {names[0]}); give an empty or a new folder")
        if text is not None:
            self.manifest = read_manifest(self.folder, text)
        if self.folder.remote:
            yield
            return
        made = not Path(path).exists()
        self.folder.create()
        from filelock import FileLock, Timeout

        lock = FileLock(Path(path, ".lock"), timeout=0)
        with writing(path):
            try:
                lock.acquire()
            except Timeout:
                raise JobError(f"another process is writing to {path}; wait for it, or give another folder") from None
        try:
            yield
        finally:
            if made and self.manifest is None:  # the job never began, so nothing of it stays
                with suppress(OSError):
                    Path(lock.lock_file).unlink()
                    Path(path).rmdir()
            lock.release()

    def settle(self, found: Mapping[str, Any]) -> None:
        """Begin a job, or go on with one if it is the same, by what a manifest says of it. Raises ``JobError`` that says what differs."""
        if self.manifest is None:
            self.manifest = dict(found)
            self.folder.write(MANIFEST, (json.dumps(found, indent=1) + "\n").encode())
            return
        for part, what in (("input", "the input"), ("shard_size", "the shard size"), ("columns", "the columns"), ("scorers", "the scorer")):
            if part in found and found[part] != self.manifest[part]:
                where, before, now = _first_difference(self.manifest[part], found[part], "")
                raise JobError(
                    f"{self.folder.path} holds another job: {what} has changed since it began "
                    f"({where or part}: {before!r:.90} then, {now!r:.90} now). Give another folder, or what it was begun with"
                )

    def plan(self) -> pyarrow.Table | None:
        """What the scan of the input found when the job began; None where that is missing or damaged."""
        import pyarrow as pa

        content = self.folder.read(PLAN)
        try:
            return pa.ipc.open_stream(content).read_all() if content else None
        except (pa.ArrowException, OSError):
            return None

    def write_plan(self, plan: pyarrow.Table) -> None:
        import pyarrow as pa

        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, plan.schema) as writer:
            writer.write_table(plan)
        self.folder.write(PLAN, sink.getvalue())

    # --- parts ---

    def done(self, shards: Sequence[Shard]) -> set[int]:
        """The shards whose parts are there and whole. Others are removed."""
        from pyarrow import ArrowException
        from pyarrow.parquet import read_metadata

        found = set()
        for number in part_numbers(self.folder.names()):
            try:
                with self.folder.open(part_name(number)) as file:
                    whole = number < len(shards) and read_metadata(file).num_rows == shards[number].num_rows
            except (ArrowException, OSError):
                whole = False
            if whole:
                found.add(number)
            else:
                self.folder.remove(part_name(number))
        return found

    def num_errors(self, shards: Sequence[Shard]) -> int:
        """Rows with an error in all parts, from what is written at their ends."""
        return sum(_num_errors(self.folder, shard) for shard in shards)

    # --- shards that kill their workers ---

    def tries(self) -> dict[int, int]:
        """How often a worker died on a shard."""
        text = self.folder.read(TRIES)
        try:
            return {int(number): int(count) for number, count in json.loads(text or b"{}").items()}
        except (AttributeError, RecursionError, TypeError, ValueError):
            raise JobError(f"{self.folder.path}/{TRIES} is damaged; delete it, and run the same command again") from None

    def write_tries(self, tries: Mapping[int, int]) -> None:
        self.folder.write(TRIES, json.dumps({str(number): count for number, count in sorted(tries.items())}).encode())

    def quarantined(self) -> list[int]:
        return sorted(set(quarantined_rows(self.folder)))

    def quarantine(self, shard: Shard, reason: str) -> None:
        """List the rows of a shard, whose part holds them with an error, or is missing because reading them kills too."""
        text = self.folder.read(QUARANTINE) or b""
        place = {"shard": shard.number, "reason": reason, "file": clean(shard.file)}
        try:
            with self.folder.open(part_name(shard.number)) as file:
                rows = [{name: value for name, value in row.items() if name != "error"} for row in python_rows(read_part(file))]
        except FileNotFoundError:
            rows = [{} for _ in range(shard.num_rows)]
        lines = [json_text(row | place | {"row": shard.first_row + n}) for n, row in enumerate(rows)]
        self.folder.write(QUARANTINE, text + "".join(f"{line}\n" for line in lines).encode())

    def release_quarantine(self) -> None:
        """Let quarantined shards be tried again."""
        numbers, tries = self.quarantined(), self.tries()
        names = set(self.folder.names())
        for number in numbers:
            tries.pop(number, None)
            if part_name(number) in names:
                self.folder.remove(part_name(number))
        self.write_tries(tries)
        if QUARANTINE in names:
            self.folder.remove(QUARANTINE)

    # --- the end ---

    def assemble(self, form: Format) -> str | None:
        """All rows in one file, part by part; it appears when it is whole. The file's path, or None for Parquet, which stays in parts."""
        if form == "parquet":
            return None
        name = f"rewards.{form}"
        with self.folder.writer(name) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            write_rows(text, form, tables(self.folder))
            text.detach()
        return f"{self.folder.path}/{name}"


def write_rows(file: Any, form: str, parts: Iterator[pyarrow.Table]) -> None:
    """Tables as CSV or JSONL, one after another. JSONL has null where there is no value, CSV an empty cell, and JSON for lists and objects.

    Bytes become base64. NaN and infinities, which JSON has not, become null in it; what a stream cannot encode is escaped in it.
    """
    ascii_only = not (getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
    first = True
    for table in parts:
        rows = python_rows(table)
        if form == "csv":
            writer = csv.writer(file, lineterminator="\n")
            if first:
                writer.writerow(map(_cell, table.column_names))
            writer.writerows([_cell(row[name]) for name in table.column_names] for row in rows)
        else:
            file.writelines(json_text(row, ascii_only) + "\n" for row in rows)
        first = False


def _cell(value: object) -> object:
    if isinstance(value, list | dict):
        return json_text(value)
    if isinstance(value, str) and sys.version_info < (3, 11):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")  # which Python 3.10 does not write
    return _plain(value) if isinstance(value, bytes) else value


def json_text(value: object, ascii_only: bool = False) -> str:
    """JSON of what a table holds."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=ascii_only, default=_plain)


def _plain(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def quarantined_rows(folder: Folder) -> list[int]:
    """The shard of every row that was given up."""
    try:
        return [int(json.loads(line)["shard"]) for line in (folder.read(QUARANTINE) or b"").splitlines()]
    except (LookupError, RecursionError, TypeError, ValueError):
        raise JobError(
            f"{folder.path}/{QUARANTINE} is damaged; delete it, and run the command that began the job again, which writes it anew"
        ) from None


def read_part(file: Any) -> pyarrow.Table:
    """An open part. Without Arrow's threads: one that still holds Python's file when the program ends aborts it (apache/arrow#50482)."""
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file).read(use_threads=False)


def tables(folder: Folder, numbers: Iterable[int] | None = None) -> Iterator[pyarrow.Table]:
    """The parts of a job, or some of them, one at a time, in order. Raises ``JobError`` for a part that is damaged."""
    for number in part_numbers(folder.names()) if numbers is None else numbers:
        with folder.open(part_name(number)) as file, _damage_reported(folder, number):
            table = read_part(file)
        yield table


def value_at(folder: Folder, number: int, row: int, column: str) -> Any:
    """One value of a part, of which no other column and no other row group is read.

    Raises ``LookupError`` for a part or a row that does not exist, and ``JobError`` for a part that is damaged.
    """
    from pyarrow.parquet import ParquetFile

    try:
        file = folder.open(part_name(number))
    except FileNotFoundError:
        raise LookupError(f"there is no part {number}") from None
    with file, _damage_reported(folder, number):
        part = ParquetFile(file)
        for group in range(part.num_row_groups):
            num_rows = part.metadata.row_group(group).num_rows
            if row < num_rows:
                return part.read_row_group(group, [column], use_threads=False).column(column)[row].as_py()
            row -= num_rows
    raise LookupError(f"part {number} has no such row")


@contextmanager
def _damage_reported(folder: Folder, number: int) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        path = f"{folder.path}/{part_name(number)}"
        raise JobError(f"{path} is damaged ({error}); run the command that began the job again, which scores its rows anew") from None


def read_manifest(folder: Folder, text: bytes | None = None) -> dict[str, Any]:
    """Raises ``JobError`` where there is no job, or one of another version."""
    text = text or folder.read(MANIFEST)
    if text is None:
        if not Address.parse(folder.path).exists():
            raise JobError(f"there is no folder {folder.path}")
        raise JobError(f"{folder.path} is not the folder of a job: it has no {MANIFEST}")
    try:
        manifest = json.loads(text)
    except (RecursionError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != "image-reward job" or manifest.get("version") != 1:
        raise JobError(f"{folder.path}/{MANIFEST} is not that of a job of this release; give another folder")
    return manifest


def _num_errors(folder: Folder, shard: Shard) -> int:
    from pyarrow.parquet import read_metadata

    try:
        with folder.open(part_name(shard.number)) as file:
            metadata = read_metadata(file)
    except FileNotFoundError:  # quarantined, and not even its rows could be read
        return shard.num_rows
    place = metadata.num_columns - 1
    nulls = sum(metadata.row_group(group).column(place).statistics.null_count for group in range(metadata.num_row_groups))
    return int(metadata.num_rows - nulls)


def _first_difference(before: Any, now: Any, where: str) -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for a, b in zip(before, now, strict=True):
            if a != b:
                return _first_difference(a, b, where)
    return where, before, now
