"""Files of rows, each a prompt and an image, cut into shards that can be read alone.

======================  ================================================================  ===============================================
input                   a row is                                                          a shard is read by
======================  ================================================================  ===============================================
CSV                     a record: prompt, image, optional id                              seeking to the byte where it begins
JSONL                   an object on a line                                               seeking to the byte where it begins
Parquet                 a row; the image is a path, bytes, or {bytes, path}               its row groups
Hugging Face data set   a row of the .arrow files that ``save_to_disk`` wrote             their record batches
WebDataset              the files of a .tar that share a name: KEY.jpg, KEY.txt or .json  seeking to the byte where it begins
folder of images        an image, its prompt in a .txt file beside it                     the names in it
======================  ================================================================  ===============================================

Paths of images are relative to the file that names them. The kinds are told apart by suffix.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from image_reward.errors import JobError
from image_reward.files import read_regular
from image_reward.image_files import IMAGE_SUFFIXES, list_images
from image_reward.jobs.arrow import arrow, clean, clean_table, is_clean, text_array, text_table
from image_reward.jobs.database import ROW_NUMBER, database
from image_reward.jobs.files import LARGEST_TEXT, Access, ImageSource, Member, join, parent, scheme

if TYPE_CHECKING:
    import pyarrow

_PLAN = b"image_reward.plan"  # key of the metadata of a plan
_PROMPT_KEYS = ("prompt", "caption", "text")  # in the .json of a WebDataset sample, which has no columns to choose from


@dataclass(frozen=True)
class Shard:
    """Rows that are scored together and become one part of the output. Small and picklable."""

    number: int
    file: str
    start: int
    """Where it begins in the file, and ``stop`` where it ends: bytes or rows, as the kind of input has it."""
    stop: int
    num_rows: int
    first_row: int
    """The number of its first row within the file, from 0."""
    names: tuple[str, ...] = ()
    """Of the images, for a folder of them."""


@dataclass(frozen=True)
class Rows:
    """The rows of a shard."""

    table: pyarrow.Table
    """The columns that the output takes over; images are named, never contained."""
    prompts: Sequence[object]
    images: Sequence[ImageSource | None]
    problems: Sequence[str | None]
    """What is wrong with the row itself, where anything is."""


@dataclass(frozen=True)
class Names:
    """Which columns hold what; None for the usual name."""

    prompt: str | None = None
    image: str | None = None
    id: str | None = None


@dataclass
class Input(ABC):
    """Files of rows of one kind. ``scan`` must run before anything else; then it can be pickled and read anywhere."""

    given: str
    files: tuple[str, ...]
    access: Access
    names: Names
    prompt: str | None = None
    """One prompt for all rows, where the rows have none."""
    stamps: dict[str, str] = field(default_factory=dict)
    schema: Any = None
    """pyarrow.Schema of the columns that the output takes over."""
    num_repeated_ids: int = 0
    repeated_id: str = ""
    """One of them."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the input: what of it is not read."""

    kind = ""

    @property
    def prompt_column(self) -> str:
        return self.names.prompt or "prompt"

    @property
    def image_column(self) -> str:
        return self.names.image or "image"

    @property
    def id_column(self) -> str:
        return self.names.id or "id"

    @property
    def base(self) -> str:
        """The folder that image paths are relative to."""
        return parent(self.files[0])

    def scan(self, shard_size: int) -> list[Shard]:
        """Count the rows, learn the columns, look for ids that occur twice, and cut the rows into shards.

        Raises ``JobError`` for a column that is not there, files that do not go together, or no rows at all.
        """
        self.stamps = self._stamps()
        self._size = shard_size
        shards: list[Shard] = []
        with _Ids() as self._ids:
            for file in self.files:
                for start, stop, num_rows, first_row in self._pieces(file):
                    names = self._piece_names(start, stop)
                    shards.append(Shard(len(shards), file, start, stop, num_rows, first_row, names))
            self._finish_ids()
        del self._ids
        if not shards:
            raise JobError(". ".join([f"{self.given} holds no rows", *self.notes]))
        self._check_columns()
        self.check_unchanged()
        return shards

    def plan(self, shards: Sequence[Shard], shard_size: int) -> pyarrow.Table:
        """What a scan found, for ``resume``."""
        pa = arrow()
        fields = ("file", "start", "stop", "num_rows", "first_row")
        table = pa.table({name: [getattr(shard, name) for shard in shards] for name in fields})
        found = {
            "of": self._identity(shard_size),
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "num_repeated_ids": self.num_repeated_ids,
            "repeated_id": self.repeated_id,
            "notes": self.notes,
        }
        return table.replace_schema_metadata({_PLAN: json.dumps(found)})

    def resume(self, plan: pyarrow.Table, shard_size: int) -> list[Shard] | None:
        """Take over what an earlier scan found, instead of a scan; None where that was of other files, or cut otherwise."""
        pa = arrow()
        found = json.loads((plan.schema.metadata or {}).get(_PLAN, b"{}"))
        self.stamps = self._stamps()
        if found.get("of") != self._identity(shard_size):
            return None
        self.schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(found["schema"])))
        self.num_repeated_ids, self.repeated_id, self.notes = found["num_repeated_ids"], found["repeated_id"], found["notes"]
        return [Shard(number, *values) for number, values in enumerate(zip(*plan.to_pydict().values(), strict=True))]

    def _identity(self, shard_size: int) -> dict[str, Any]:
        """What the result of a scan depends on."""
        files = [[file, self.stamps[file]] for file in self.files]
        return {"kind": self.kind, "files": files, "names": asdict(self.names), "prompt": self.prompt, "shard_size": shard_size}

    def read(self, shard: Shard) -> Rows:
        """Raises ``JobError`` if the file is not what it was when it was scanned."""
        self.check_unchanged(shard.file)
        rows = self._read(shard)
        self.check_unchanged(shard.file)
        if len(rows.problems) != shard.num_rows:
            raise JobError(f"{shard.file}: {len(rows.problems)} rows where there were {shard.num_rows}; it has changed since the job began")
        return rows

    def check_unchanged(self, file: str | None = None) -> None:
        for name in [file] if file else self.files:
            try:
                now = self.access.stamp(name)
            except FileNotFoundError:
                raise JobError(f"{name} is gone; put it back and run the same command again") from None
            if now != self.stamps[name]:
                raise JobError(
                    f"{name} has changed while it was being read: it had {self.stamps[name]}, and now has {now}. What was scored before is "
                    "kept; restore the file and run the same command again, or score the new one into another folder"
                )

    def fingerprint(self) -> dict[str, Any]:
        """What tells this input from another, for the manifest."""
        return {
            "kind": self.kind,
            "files": {self._name(file): stamp for file, stamp in self.stamps.items()},
            "prompt": self.prompt,
            "prompt_column": self.prompt_column,
            "image_column": self.image_column,
        }

    # --- what the kinds differ in ---

    @abstractmethod
    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        """Where the shards of a file begin and end, how many rows they have, and the number of their first row."""

    @abstractmethod
    def _read(self, shard: Shard) -> Rows: ...

    def _piece_names(self, start: int, stop: int) -> tuple[str, ...]:
        del start, stop
        return ()

    # --- what they share ---

    def _stamps(self) -> dict[str, str]:
        return {file: self.access.stamp(file) for file in self.files}

    def _name(self, file: str) -> str:
        """One of the input's files, relative to ``base``."""
        return PurePosixPath(Path(file).as_posix()).name if self.base in (file, parent(file)) else self._from_base(file)

    def _from_base(self, path: str) -> str:
        """Relative to ``base``, however many folders lie between; of an object store the whole address."""
        return path if scheme(path) else Path(os.path.relpath(path, self.base)).as_posix()

    def _check_columns(self) -> None:
        columns = self.schema.names
        for column, option in ((self.image_column, "--image-column"), (self.prompt_column, "--prompt-column")):
            if column not in columns and not (column == self.prompt_column and self.prompt is not None):
                text = " or --prompt TEXT" if column == self.prompt_column else ""
                found = ", ".join(columns) or "none at all"
                raise JobError(f"{self.given} has no column {column!r}; it has {found}. Name it with {option}{text}")
        if self.image_column == self.prompt_column:
            raise JobError(f"the column {self.image_column!r} cannot hold both images and prompts; name two columns")
        if self.prompt is not None and self.prompt_column in columns:
            raise JobError(f"{self.given} has a column {self.prompt_column!r} of prompts; leave --prompt out")
        if self.names.id is not None and self.names.id not in columns:
            raise JobError(f"{self.given} has no column {self.names.id!r}; it has {', '.join(columns)}. Name it with --id-column")
        if taken := [name for name in columns if name in ("error", "reward") or name.startswith("reward:") or name.lower() == ROW_NUMBER]:
            raise JobError(f"{self.given} has a column {taken[0]!r} already, which the result would hide; rename or drop it")
        if self.prompt is not None:
            self.schema = self.schema.append(arrow().field(self.prompt_column, arrow().string()))

    def _finish_ids(self) -> None:
        self.num_repeated_ids, self.repeated_id = self._ids.repeated()
        if self.num_repeated_ids and self.names.id is not None:
            raise JobError(
                f"{self.given}: {self.num_repeated_ids:,} ids in the column {self.names.id!r} occur more than once, such as "
                f"{self.repeated_id}; make them unique, or leave --id-column out"
            )

    def _rows(self, table: pyarrow.Table, shard: Shard, problems: list[str | None] | None = None, images: list[Any] | None = None) -> Rows:
        """A table as it is in the file -> its prompts and images, and the table with images named."""
        problems = problems or [None] * len(table)
        place = table.schema.get_field_index(self.image_column)
        if images is None:
            images, named = self._images(table.column(place).to_pylist(), shard)
            table = table.set_column(place, self.image_column, text_array(named))
        if self.prompt is not None:
            table = table.append_column(self.prompt_column, text_array([self.prompt] * len(table)))
        prompts = table.column(self.prompt_column).to_pylist()
        return Rows(table.select(self.schema.names).cast(self.schema), prompts, images, problems)

    def _images(self, values: list[Any], shard: Shard) -> tuple[list[ImageSource | None], list[str | None]]:
        folder = parent(shard.file)
        sources: list[ImageSource | None] = []
        named: list[str | None] = []
        for number, value in enumerate(values, start=shard.first_row):
            inside = None
            if isinstance(value, Mapping):  # as Hugging Face data sets hold an image
                inside, value = value.get("bytes"), value.get("path")
            elif isinstance(value, bytes):
                inside = value
            if inside is not None:
                sources.append(inside)
                named.append(f"{self._name(shard.file)}#{number}")
            else:
                path = join(folder, value) if isinstance(value, str) and value else None
                sources.append(path)
                # In the output every path is relative to one folder, whichever of the input's files names it.
                moved = path and path != value and folder != self.base
                named.append(self._from_base(path) if path and moved else value if isinstance(value, str) else None)
        return sources, named


def named_images(schema: pyarrow.Schema, image_column: str) -> pyarrow.Schema:
    """The schema of the output: without the notes of whoever wrote the input, and with images as text."""
    pa = arrow()
    place = schema.get_field_index(image_column)
    schema = schema.remove_metadata()
    return schema if place < 0 else schema.set(place, pa.field(image_column, pa.string()))


class _Ids:
    """Looks for ids that occur twice, without holding them."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.rows: list[int] = []
        self.ids: list[str] = []
        self.stack = ExitStack()
        self.database: Any = None

    def __enter__(self) -> _Ids:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def add(self, value: object) -> None:
        """The id of the next row; no value is no id."""
        if value is not None and value != "":
            self.rows.append(self.num_rows)
            self.ids.append(str(value))
            if len(self.rows) >= 65_536:
                self._flush()
        self.num_rows += 1

    def _flush(self) -> None:
        if self.database is None:
            self.database = self.stack.enter_context(database())
            self.database.execute("CREATE TABLE ids (row BIGINT, id VARCHAR)")
        batch = arrow().table({"row": arrow().array(self.rows, arrow().int64()), "id": text_array(self.ids)})
        self.database.from_arrow(batch).insert_into("ids")
        self.rows, self.ids = [], []

    def repeated(self) -> tuple[int, str]:
        """How many ids occur more than once, and where the first of them does."""
        if not self.rows and self.database is None:
            return 0, ""
        self._flush()
        groups = "SELECT id, count(*) AS num, min(row) AS first FROM ids GROUP BY id HAVING num > 1"
        num, first = self.database.execute(f"SELECT count(*), min(first) FROM ({groups})").fetchall()[0]
        if not num:
            return 0, ""
        (second,) = self.database.execute(
            "SELECT min(row) FROM ids WHERE row > ? AND id = (SELECT id FROM ids WHERE row = ?)", [first, first]
        ).fetchall()[0]
        return num, f"that of rows {first + 1:,} and {second + 1:,}"


def _cut(num_rows: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        yield start, stop, stop - start, start


def _cut_records(records: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Records as (first byte, byte after the last) -> shards of so many."""
    first_row = 0
    while piece := list(islice(records, size)):
        yield piece[0][0], piece[-1][1], len(piece), first_row
        first_row += len(piece)


# --- text ----------------------------------------------------------------------------------------------------------------------------


class _LongLineError(csv.Error):
    """A line is longer than any row."""


class _CountedLines:
    """Lines of a file as text, and where the last one ended. Bytes that are not UTF-8 become lone surrogates.

    A line too long to be a row is passed over with a ``_LongLineError``.
    """

    def __init__(self, file: IO[bytes], start: int = 0, stop: int | None = None) -> None:
        file.seek(start)
        self.file, self.end, self.stop = file, start, stop
        self.byte_order_mark = start == 0

    def __iter__(self) -> Iterator[str]:
        return self

    def go_on_after_line(self, start: int) -> None:
        """Let the line after the one that begins at ``start`` be the next."""
        self.file.seek(start)
        self.end = start
        self._skip_line()

    def _skip_line(self) -> None:
        part = b" "
        while part and not part.endswith(b"\n"):
            part = self.file.readline(LARGEST_TEXT)
            self.end += len(part)

    def __next__(self) -> str:
        if self.stop is not None and self.end >= self.stop:
            raise StopIteration
        line = self.file.readline(LARGEST_TEXT)
        if not line:
            raise StopIteration
        self.end += len(line)
        if len(line) == LARGEST_TEXT and not line.endswith(b"\n"):
            self._skip_line()
            raise _LongLineError(f"a line of more than {LARGEST_TEXT:,} bytes")
        if self.byte_order_mark:
            line, self.byte_order_mark = line.removeprefix(b"\xef\xbb\xbf"), False
        return line.decode("utf-8", "surrogateescape")


def _head(stream: IO[bytes], file: str) -> bytes:
    """How a file of text begins, without a byte order mark and white space. Raises ``JobError`` for UTF-16, which spreadsheets save."""
    stream.seek(0)
    head = stream.read(1 << 16)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise JobError(f"{file} is UTF-16; save it as UTF-8")
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()


class CsvInput(Input):
    """CSV with a header. All columns stay text, as they are in the file; an empty cell is no value.

    A quote that is not closed costs the line that it is on. Without ``strict``, it would take the rows after it into its cell.
    """

    kind = "CSV"

    def _header(self, file: IO[bytes]) -> tuple[list[str], int]:
        lines = _CountedLines(file)
        header = next(csv.reader(lines, strict=True), [])
        return header, lines.end

    def _records(self, lines: _CountedLines) -> Iterator[tuple[int, int, list[str] | str]]:
        """First byte, byte after the last, and the cells, or what is wrong with them."""
        reader = csv.reader(lines, strict=True)
        while True:
            start = lines.end
            try:
                cells: list[str] | str = next(reader)
            except StopIteration:
                return
            except _LongLineError as error:
                cells = str(error)
                reader = csv.reader(lines, strict=True)
            except csv.Error as error:
                cells = f"not CSV: {error}; close every quote, and double quotes within a cell"
                lines.go_on_after_line(start)
                reader = csv.reader(lines, strict=True)
            if cells:
                yield start, lines.end, cells

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        with self.access.open(file) as stream:
            _head(stream, file)
            try:
                header, end = self._header(stream)
            except csv.Error as error:
                cause = "its lines end in a carriage return alone" if "new-line character" in str(error) else str(error)
                raise JobError(f"the first line of {file} is not CSV: {cause}; save it as CSV with a row on each line") from None
            if not header or len(set(header)) < len(header) or not all(map(is_clean, header)):
                raise JobError(f"{file} begins with {','.join(header)!r:.80}, which is no header: column names, each once, in UTF-8")
            if len(header) == 1 and (separator := next((sign for sign in ";\t|" if sign in header[0]), "")):
                raise JobError(f"the cells of {file} are separated by {separator!r}; save it with commas")
            pa = arrow()
            schema = pa.schema([(name, pa.string()) for name in header])
            self.schema = self.schema or schema
            if schema != self.schema:
                raise JobError(f"{file} has the columns {', '.join(header)}, and {self.files[0]} {', '.join(self.schema.names)}")
            place = header.index(self.id_column) if self.id_column in header else None

            def records() -> Iterator[tuple[int, int]]:
                for start, stop, cells in self._records(_CountedLines(stream, end)):
                    if place is not None and isinstance(cells, list) and len(cells) == len(header):
                        self._ids.add(cells[place])
                    yield start, stop

            yield from _cut_records(records(), self._size)

    def _read(self, shard: Shard) -> Rows:
        columns = [name for name in self.schema.names if self.prompt is None or name != self.prompt_column]
        rows: list[list[str | None]] = []
        problems: list[str | None] = []
        with self.access.open(shard.file) as stream:
            for number, (_, _, cells) in enumerate(
                self._records(_CountedLines(stream, shard.start, shard.stop)), start=shard.first_row + 1
            ):
                problem = f"row {number} is {cells}" if isinstance(cells, str) else None
                if not problem and len(cells) != len(columns):
                    problem = f"row {number} has {len(cells)} cells and the header {len(columns)}; quote cells that hold commas"
                values = list(cells) if isinstance(cells, list) else []
                if not problem and not all(map(is_clean, values)):
                    problem = f"row {number} is not UTF-8"
                rows.append([value or None for value in [*values, *[""] * len(columns)][: len(columns)]])
                problems.append(problem)
        table = text_table({name: [row[place] for row in rows] for place, name in enumerate(columns)})
        return self._rows(table, shard, problems)


_MOST_COLUMNS = 1000  # of JSONL, where each row may bring new ones: rows times columns would be the square of the rows


class JsonLinesInput(Input):
    """An object on each line. A column that holds different types, or lists or objects, becomes text (JSON)."""

    kind = "JSONL"

    def _records(self, lines: _CountedLines) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
        while True:
            start = lines.end
            try:
                line = next(lines, None)
                if line is None:
                    return
                if not line.strip():
                    continue
                value = _json_row(line)
            except _LongLineError as error:
                value = str(error)
            yield start, lines.end, value

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        kinds: dict[str, set[str]] = self.__dict__.setdefault("_kinds", {})
        with self.access.open(file) as stream:
            if _head(stream, file).startswith(b"["):
                raise JobError(f"{file} is one JSON list; write one object on each line, without brackets and commas around them")

            def records() -> Iterator[tuple[int, int]]:
                for start, stop, row in self._records(_CountedLines(stream)):
                    if isinstance(row, dict):
                        self._ids.add(row.get(self.id_column))
                        for name, value in row.items():
                            kinds.setdefault(name, set()).add(_json_kind(value))
                        if len(kinds) > _MOST_COLUMNS:
                            raise JobError(
                                f"the objects of {file} have more than {_MOST_COLUMNS:,} different keys, such as {list(kinds)[-1]!r:.60}; "
                                "each would be a column: put those that differ from row to row under one key"
                            )
                    yield start, stop

            yield from _cut_records(records(), self._size)
        pa = arrow()
        self.schema = pa.schema([(name, _json_type(pa, found - {"null"})) for name, found in kinds.items()])

    def _read(self, shard: Shard) -> Rows:
        pa = arrow()
        schema = self.schema
        if self.prompt is not None:
            schema = schema.remove(schema.get_field_index(self.prompt_column))
        found: list[dict[str, Any]] = []
        problems: list[str | None] = []
        with self.access.open(shard.file) as stream:
            for number, (_, _, row) in enumerate(self._records(_CountedLines(stream, shard.start, shard.stop)), start=shard.first_row + 1):
                found.append(row if isinstance(row, dict) else {})
                problems.append(None if isinstance(row, dict) else f"row {number} is {row}")
        prompts = [row.get(self.prompt_column) for row in found]
        arrays = [_json_column([row.get(f.name) for row in found], f.type, pa) for f in schema]
        rows = self._rows(pa.table(arrays, schema=schema), shard, problems)
        return rows if self.prompt is not None else Rows(rows.table, prompts, rows.images, rows.problems)  # a number is no prompt


def _json_row(line: str) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with it."""
    if not is_clean(line):
        return "not UTF-8"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError, MemoryError) as error:
        return f"not JSON: {error or type(error).__name__}"
    if not isinstance(value, dict):
        return f"not an object but {value!r:.40}"
    if all(map(is_clean, value)):
        return value
    cleaned = {clean(name): inner for name, inner in value.items()}
    return cleaned if len(cleaned) == len(value) else "an object with keys that differ only in halves of characters"


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:  # beyond what a float holds exactly
        return "long" if -(2**63) <= value < 2**63 else "object"
    return type(value).__name__


def _json_type(pa: Any, kinds: set[str]) -> Any:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds and kinds <= {"int", "long"}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {"int", "float"} else pa.string()


def _json_column(values: Sequence[Any], kind: Any, pa: Any) -> Any:
    if kind != pa.string():
        return pa.array(values, kind)
    return text_array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


# --- Arrow ---------------------------------------------------------------------------------------------------------------------------


class ParquetInput(Input):
    """Parquet files with the same columns."""

    kind = "Parquet"

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        opened = _parquet(file, self.access)
        self._join_schema(opened.schema_arrow, file)
        if self.id_column in opened.schema_arrow.names:
            for batch in opened.iter_batches(columns=[self.id_column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    self._ids.add(value)
        yield from _cut(opened.metadata.num_rows, self._size)

    def _join_schema(self, schema: pyarrow.Schema, file: str) -> None:
        if len(set(schema.names)) < len(schema.names):
            raise JobError(f"{file} has several columns of one name: {', '.join(schema.names)}; rename or drop one")
        if self.image_column in schema.names and not _holds_images(schema.field(self.image_column).type):
            found = schema.field(self.image_column).type
            raise JobError(f"{file}: the column {self.image_column!r} holds {found}; images are paths, bytes, or {{bytes, path}}")
        schema = named_images(schema, self.image_column)
        self.schema = self.schema or schema
        if not schema.equals(self.schema):
            raise JobError(f"{file} has other columns than {self.files[0]}: {_columns(schema)} instead of {_columns(self.schema)}")

    def _read(self, shard: Shard) -> Rows:
        groups = _row_groups(shard.file, self.stamps[shard.file], self.access)
        parts = []
        first = 0
        for number, num_rows in enumerate(groups):
            begin, end = max(shard.start, first), min(shard.stop, first + num_rows)
            if begin < end:
                group = _row_group(shard.file, self.stamps[shard.file], self.access, number)
                parts.append(group.slice(begin - first, end - begin))
            first += num_rows
        return self._arrow_rows(arrow().concat_tables(parts), shard)

    def _arrow_rows(self, table: pyarrow.Table, shard: Shard) -> Rows:
        table, wrong = clean_table(table)
        problems = [
            f"row {shard.first_row + n + 1} is not UTF-8 in the column {wrong[n]!r}" if n in wrong else None for n in range(len(table))
        ]
        return self._rows(table, shard, problems)


def _parquet(file: str, access: Access) -> Any:
    pa = arrow()
    try:
        return pa.parquet.ParquetFile(file if not scheme(file) else access.open(file))
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{file} is not a whole Parquet file: {error}; write or download it again") from None


@lru_cache(maxsize=16)
def _row_groups(file: str, stamp: str, access: Access) -> tuple[int, ...]:
    del stamp  # part of the key: another content is another file
    metadata = _parquet(file, access).metadata
    return tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))


@lru_cache(maxsize=1)  # a row group may be larger than a shard; the shards that follow each other come from the same one
def _row_group(file: str, stamp: str, access: Access, number: int) -> Any:
    del stamp
    pa = arrow()
    try:
        return _parquet(file, access).read_row_group(number, use_threads=False)  # as in ``read_part``; workers share the cores
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{file}, row group {number} cannot be read: {error}; write or download it again") from None


def _holds_images(kind: Any) -> bool:
    types = arrow().types
    if types.is_struct(kind):
        inside = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        wanted = [(name, tests) for name, tests in (("bytes", _BYTES), ("path", _TEXT)) if name in inside]
        return bool(wanted) and all(any(getattr(types, test)(inside[name]) for test in tests) for name, tests in wanted)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(getattr(types, test)(kind) for test in (*_BYTES, *_TEXT))


_BYTES = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view", "is_null")
_TEXT = ("is_string", "is_large_string", "is_string_view", "is_null")


def _columns(schema: pyarrow.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


class ArrowInput(ParquetInput):
    """The .arrow files of a Hugging Face data set on disk, which are Arrow streams."""

    kind = "Hugging Face data set"

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        table = _arrow_stream(file, self.access.stamp(file), self.access)
        self._join_schema(table.schema, file)
        if self.id_column in table.column_names:
            for batch in table.select([self.id_column]).to_batches():
                for value in batch.column(0).to_pylist():
                    self._ids.add(value)
        yield from _cut(table.num_rows, self._size)

    def _read(self, shard: Shard) -> Rows:
        table = _arrow_stream(shard.file, self.stamps[shard.file], self.access)
        return self._arrow_rows(table.slice(shard.start, shard.num_rows), shard)


@lru_cache(maxsize=4)
def _arrow_stream(file: str, stamp: str, access: Access) -> Any:
    del stamp
    pa = arrow()
    try:
        source = access.open(file) if scheme(file) else pa.memory_map(file)  # mapped: nothing is read before it is used
        return pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise JobError(f"{file} is not a whole Arrow stream: {error}; save the data set again") from None


# --- images in tars and folders ------------------------------------------------------------------------------------------------------


class _BoundedReads:
    """A tar whose headers cannot fill the memory: tarfile reads long names and comments whole, whatever size they state."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > LARGEST_TEXT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


class TarInput(Input):
    """WebDataset: files that follow each other with the same name up to the first dot of their last part are a sample.

    A sample has one file of each extension; where one occurs again, the next sample begins.
    """

    kind = "WebDataset"

    def _samples(self, stream: IO[bytes], file: str, start: int = 0) -> Iterator[tuple[int, int, str, dict[str, tarfile.TarInfo]]]:
        """First byte, byte after the last, key, and members by extension. Raises ``JobError`` where the tar is damaged."""
        stream.seek(start)
        place = start
        try:
            with tarfile.open(fileobj=_BoundedReads(stream), mode="r:") as archive:  # type: ignore[call-overload]
                key, members, first = None, dict[str, tarfile.TarInfo](), start
                while member := archive.next():
                    archive.members = []  # a list of every member of a large tar would fill the memory
                    if member.size < 0:
                        raise tarfile.ReadError("a member of negative size")
                    place = archive.offset
                    path = PurePosixPath(member.name)
                    stem, _, extension = path.name.lower().partition(".")
                    if member.isdir() or not stem:  # hidden files, such as the ._NAME that macOS leaves
                        continue
                    this = str(path.with_name(path.name[: len(stem)]))
                    if key is not None and (this != key or extension in members):
                        yield first, member.offset, key, members
                        members, first = {}, member.offset
                    key = this
                    members[extension] = member
                self._check_end(stream, file, archive.offset)
                if key is not None:
                    yield first, archive.offset, key, members
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
            if packed := _compression(stream):
                raise JobError(f"{file} is not a whole, uncompressed tar but {packed}; unpack it first") from None
            raise JobError(f"{file} is not a whole, uncompressed tar: {error}, at byte {place:,}; write or download it again") from None

    def _check_end(self, stream: IO[bytes], file: str, end: int) -> None:
        """Note, or raise ``tarfile.ReadError``, where a tar does not end as it should: tarfile stops without a word at any damage."""
        stream.seek(end)
        block = stream.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            raise tarfile.ReadError("what stands there is not a member")
        note = ""
        if not block:
            note = f"{file} has no mark at its end: it may have been cut there, and rows may be missing"
        elif stream.read(LARGEST_TEXT).strip(b"\0"):
            note = f"{file} goes on after the mark of its end, and what follows is not read; if tars were joined, give them one by one"
        if note and note not in self.notes:
            self.notes.append(note)

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        pa = arrow()
        self.schema = pa.schema(
            [(name, pa.string()) for name in ("id", "image", *(() if self.prompt is not None else (self.prompt_column,)))]
        )
        with self.access.open(file) as stream:

            def records() -> Iterator[tuple[int, int]]:
                for start, stop, key, _ in self._samples(stream, file):
                    self._ids.add(key)
                    yield start, stop

            yield from _cut_records(records(), self._size)

    @property
    def image_column(self) -> str:
        return "image"

    @property
    def id_column(self) -> str:
        return "id"

    def _read(self, shard: Shard) -> Rows:
        keys: list[str] = []
        prompts: list[str | None] = []
        images: list[Any] = []
        named: list[str | None] = []
        problems: list[str | None] = []
        name = self._name(shard.file)
        with self.access.open(shard.file) as stream:
            for _, stop, key, members in self._samples(stream, shard.file, shard.start):
                place = stream.tell()
                prompt, problem = self._prompt(stream, members)
                stream.seek(place)
                pictures = [member for extension, member in members.items() if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES]
                if len(pictures) != 1:
                    problem = f"the sample {key} has {len(pictures)} images; it must have one (its files: {', '.join(sorted(members))})"
                picture = pictures[0] if pictures else None
                keys.append(key)
                prompts.append(prompt)
                images.append(picture and Member(shard.file, picture.offset_data, picture.size))
                named.append(f"{name}#{self._member_name(picture)}" if picture else None)
                problems.append((picture and _not_plain(picture)) or problem)
                if stop >= shard.stop:
                    break
        texts = {} if self.prompt is not None else {self.prompt_column: prompts}
        table = text_table({"id": keys, "image": named, **texts})
        return self._rows(table, shard, problems, images)

    def _member_name(self, member: tarfile.TarInfo) -> str:
        """Where keys repeat, names do not tell members apart: their place does."""
        return f"{member.name}@{member.offset_data}" if self.num_repeated_ids else member.name

    def _prompt(self, stream: IO[bytes], members: Mapping[str, tarfile.TarInfo]) -> tuple[str | None, str | None]:
        if self.prompt is not None:
            return None, None
        try:
            if self.names.prompt is None and "txt" in members:
                return _content(stream, members["txt"]).strip(), None
            if "json" in members:
                values = json.loads(_content(stream, members["json"]))
                if not isinstance(values, dict):
                    return None, f"the sample's json is not an object but {values!r:.40}"
                keys = [self.names.prompt] if self.names.prompt else [key for key in _PROMPT_KEYS if key in values]
                if not keys or keys[0] not in values:
                    found = ", ".join(map(str, values))
                    return None, f"the sample's json has no {self.names.prompt or ' or '.join(_PROMPT_KEYS)}; it has {found:.200}"
                prompt = values[keys[0]]
                if isinstance(prompt, str) and not is_clean(prompt):
                    return prompt, "the prompt in the sample's json holds half of a character (a lone surrogate)"
                if isinstance(prompt, str) or prompt is None:
                    return prompt, None
                return None, f"the prompt in the sample's json is not text but {prompt!r:.40}"
        except (ValueError, RecursionError, MemoryError) as error:
            return None, f"the sample's text cannot be read: {error or type(error).__name__}"
        return None, "the sample has neither a .txt nor a .json with its prompt"


def _content(stream: IO[bytes], member: tarfile.TarInfo) -> str:
    """The text of a member. Raises ``ValueError`` where it cannot be read."""
    if problem := _not_plain(member):
        raise ValueError(problem)
    if member.size > LARGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes; at most {LARGEST_TEXT:,} are read")
    stream.seek(member.offset_data)
    return stream.read(member.size).decode("utf-8-sig")


def _not_plain(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member whose bytes do not stand in the tar one after another."""
    if member.issparse():
        return f"{member.name} is sparse; make the tar again without --sparse"
    if not member.isreg():
        return f"{member.name} is a link or a device; make the tar again with --dereference --hard-dereference"
    return None


def _compression(stream: IO[bytes]) -> str:
    """What a file is compressed with, by its first bytes; empty for nothing that is known."""
    stream.seek(0)
    head = stream.read(6)
    marks = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
    return next((name for mark, name in marks.items() if head.startswith(mark)), "")


class ImageFolder(Input):
    """A folder of images, those in folders within it too; the prompt of NAME.png is in NAME.txt."""

    kind = "folder of images"

    @property
    def base(self) -> str:
        return self.files[0]

    @property
    def image_column(self) -> str:
        return "image"

    def scan(self, shard_size: int) -> list[Shard]:
        self._found = self._list()
        try:
            return super().scan(shard_size)
        finally:
            del self._found

    def resume(self, plan: pyarrow.Table, shard_size: int) -> list[Shard] | None:
        """Never: to see whether images have changed, the folder must be listed, which is the scan."""
        del plan, shard_size
        return None

    def _stamps(self) -> dict[str, str]:
        return {self.files[0]: self._stamp(self._found)}

    def _list(self) -> list[tuple[str, str]]:
        """Names of images relative to the folder, in order, and their stamps."""
        root = Path(self.files[0])
        listing = list_images(root, recursive=True)
        self.notes = [f"{root}: {note}"] if (note := listing.note()) else []
        found = []
        for path in listing.images:
            try:
                status = path.stat()
                stamp = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:  # such as a link to nothing: an error of its row
                stamp = "-"
            found.append((path.relative_to(root).as_posix(), stamp))
        return sorted(found)

    def check_unchanged(self, file: str | None = None) -> None:
        if file is None:  # for a single shard, an image that is gone is an error of its row
            now = self._stamp(self.__dict__.get("_found") or self._list())
            if now != self.stamps[self.files[0]]:
                raise JobError(
                    f"images in {self.files[0]} have changed while they were being read; score the folder again into another one"
                )

    @staticmethod
    def _stamp(found: Sequence[tuple[str, str]]) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for name, stamp in found:
            whole.update(f"{name}\0{stamp}\0".encode("utf-8", "surrogatepass"))
        return f"{len(found)} images, {whole.hexdigest()}"

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        del file  # the only one there is
        pa = arrow()
        self.schema = pa.schema([("image", pa.string())] + ([] if self.prompt is not None else [(self.prompt_column, pa.string())]))
        yield from _cut(len(self._found), self._size)

    def _piece_names(self, start: int, stop: int) -> tuple[str, ...]:
        return tuple(name for name, _ in self._found[start:stop])

    def _read(self, shard: Shard) -> Rows:
        root = Path(shard.file)
        prompts: list[str | None] = []
        problems: list[str | None] = []
        for name in shard.names if self.prompt is None else ():
            try:
                prompts.append(read_regular((root / name).with_suffix(".txt"), LARGEST_TEXT).decode("utf-8-sig").strip())
                problems.append(None)
            except FileNotFoundError:
                prompts.append(None)
                problems.append(f"there is no {Path(name).with_suffix('.txt')} with its prompt")
            except (OSError, ValueError) as error:
                prompts.append(None)
                problems.append(f"{Path(name).with_suffix('.txt')} cannot be read: {error}")
        texts = {} if self.prompt is not None else {self.prompt_column: prompts}
        table = text_table({"image": shard.names, **texts})
        return self._rows(table, shard, problems or None, [str(root / name) for name in shard.names])


# --- which kind it is ----------------------------------------------------------------------------------------------------------------

KINDS: dict[str, type[Input]] = {
    ".csv": CsvInput,
    ".jsonl": JsonLinesInput,
    ".parquet": ParquetInput,
    ".tar": TarInput,
}
"""By suffix."""


def open_input(given: str, names: Names | None = None, prompt: str | None = None, access: Access | None = None) -> Input:
    """The rows that a file, a glob or a folder holds. Raises ``FileNotFoundError``, or ``JobError`` that says what was looked for."""
    names, access = names or Names(), access or Access()
    if prompt is not None and names.prompt is not None:
        raise JobError("one prompt for all rows, or a column of prompts, not both")
    arrow()
    if not scheme(given) and (folder := Path(given)).is_dir():
        if (folder / "dataset_dict.json").exists():
            splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
            raise JobError(f"{given} is a Hugging Face data set of several splits; give one of them: {', '.join(splits)}")
        if (folder / "state.json").exists():
            return ArrowInput(given, _arrow_files(folder), access, names, prompt)
    listed = access.listing(given)
    files = tuple(file for file in listed if PurePosixPath(file).suffix.lower() in KINDS)
    is_folder = not scheme(given) and Path(given).is_dir()
    if not files and is_folder:
        return ImageFolder(given, (given,), access, names, prompt)
    if not files:
        if not listed:
            raise FileNotFoundError(f"no such file of rows: {given}")
        raise JobError(
            f"{given} is of no known kind of rows: {', '.join(KINDS)} (an uncompressed WebDataset), the folder of a Hugging Face data set, "
            "or a folder of images"
        )
    others = [PurePosixPath(file).name for file in listed if file not in files]
    suffixes = sorted({PurePosixPath(file).suffix.lower() for file in files})
    if len(suffixes) > 1:
        raise JobError(
            f"{given} holds rows of several kinds ({', '.join(suffixes)}); give one kind, such as {given.rstrip('/')}/*{suffixes[0]}"
        )
    if is_folder and (pictures := [file for file in listed if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES]):
        raise JobError(
            f"{given} holds both {Path(files[0]).name} and images such as {Path(pictures[0]).name}; "
            f"give {files[0]}, or a folder of images alone"
        )
    notes = [_passed_over(rows, given)] if (rows := [name for name in others if _may_hold_rows(name)]) else []
    if is_folder and (folders := [path.name for path in Path(given).iterdir() if path.is_dir() and not path.name.startswith(".")]):
        notes.append(f"folders in {given} are not read: {_names(folders)}; give {given.rstrip('/')}/**/*{suffixes[0]} to read them too")
    return KINDS[suffixes[0]](given, files, access, names, prompt, notes=notes)


def _may_hold_rows(name: str) -> bool:
    """Whether a file that is not read could have been meant to be: other forms of the same, and what is compressed."""
    forms = {".json", ".ndjson", ".tsv", ".arrow", ".feather", ".xlsx", ".ods", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4"}
    return PurePosixPath(name).suffix.lower() in forms


def _passed_over(names: Sequence[str], given: str) -> str:
    number = "1 file was" if len(names) == 1 else f"{len(names):,} files were"
    return f"{number} passed over in {given}: {_names(names)}"


def _names(names: Sequence[str]) -> str:
    """The first of them.

    >>> _names(["b", "a"]), _names("abcdef")
    ('a, b', 'a, b, c, …')
    """
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")


def _arrow_files(folder: Path) -> tuple[str, ...]:
    try:
        state = json.loads(read_regular(folder / "state.json", LARGEST_TEXT))
        names = [entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{folder / 'state.json'} is not that of a Hugging Face data set: {error!r}; save it again with save_to_disk"
        ) from None
    if state.get("_indices_data_files") or (folder / "indices.arrow").exists():
        raise JobError(f"{folder} selects or orders its rows by a list of indices; call flatten_indices() and save it again")
    if not names:
        raise JobError(f"{folder} holds no rows")
    return tuple(str(folder / name) for name in names)


_INSIDE = re.compile(r"(.+?(\.arrow|\.parquet|\.tar))#(.+)", re.IGNORECASE | re.DOTALL)


def image_named(base: str, name: str, image_column: str, access: Access) -> Any:
    """What the image column of a result names: a path, or the content of an image inside a file (FILE#ROW, or FILE#MEMBER of a tar)."""
    path = join(base, name)
    found = _INSIDE.fullmatch(name)
    if found is None or (not scheme(path) and Path(path).exists()):
        return path
    container, suffix, inside = join(base, found[1]), found[2].lower(), found[3]
    if suffix == ".tar":
        with access.open(container) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if inside in (clean(member.name), clean(f"{member.name}@{member.offset_data}")):
                    return access.read(Member(container, member.offset_data, member.size))
        raise FileNotFoundError(f"{container} has no member {inside}")
    row, stamp = int(inside), access.stamp(container)
    if suffix == ".arrow":
        table = _arrow_stream(container, stamp, access)
    else:
        group, groups = 0, _row_groups(container, stamp, access)
        while row >= groups[group]:
            row -= groups[group]
            group += 1
        table = _row_group(container, stamp, access, group)
    value = table.column(image_column)[row].as_py()
    return value["bytes"] if isinstance(value, Mapping) else value
