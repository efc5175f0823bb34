"""Rows, each a prompt and an image, cut into shards that can be read alone: what every kind of input shares."""

from __future__ import annotations

import base64
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from image_reward.addresses import join, parent, scheme
from image_reward.errors import JobError
from image_reward.jobs.arrow import arrow, text_array, without_views
from image_reward.jobs.database import ROW_NUMBER, database
from image_reward.jobs.files import Access, ImageSource

if TYPE_CHECKING:
    import pyarrow

_PLAN = b"image_reward.plan.2"  # key of the metadata of a plan; plans of another form are as none


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
    """None where the row has no prompt, or nothing but white space."""
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

    path: str
    """The file, glob or folder that was asked for."""
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
            raise JobError(". ".join([f"{self.path} holds no rows", *self.notes]))
        self._check_columns()
        self.check_unchanged()
        return shards

    def plan(self, shards: Sequence[Shard], shard_size: int) -> pyarrow.Table:
        """What a scan found, for ``resume``."""
        pa = arrow()
        fields = ("file", "start", "stop", "num_rows", "first_row")
        columns = {name: [getattr(shard, name) for shard in shards] for name in fields}
        names = pa.array([[os.fsencode(name) for name in shard.names] for shard in shards], pa.list_(pa.binary()))
        return pa.table(columns | {"names": names}).replace_schema_metadata({_PLAN: json.dumps(self._facts(shard_size))})

    def _facts(self, shard_size: int) -> dict[str, Any]:
        """What a scan found beside the shards."""
        return {
            "of": self._identity(shard_size),
            "schema": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "num_repeated_ids": self.num_repeated_ids,
            "repeated_id": self.repeated_id,
            "notes": self.notes,
        }

    def resume(self, plan: pyarrow.Table, shard_size: int) -> list[Shard] | None:
        """Take over what an earlier scan found, instead of a scan; None where that was of other files, or cut otherwise."""
        pa = arrow()
        facts = json.loads((plan.schema.metadata or {}).get(_PLAN, b"{}"))
        self.stamps = self._stamps(facts)
        if facts.get("of") != self._identity(shard_size):
            return None
        self.schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(facts["schema"])))
        self.num_repeated_ids, self.repeated_id, self.notes = facts["num_repeated_ids"], facts["repeated_id"], facts["notes"]
        rows = zip(*plan.to_pydict().values(), strict=True)
        return [
            Shard(number, file, start, stop, num_rows, first_row, tuple(map(os.fsdecode, names)))
            for number, (file, start, stop, num_rows, first_row, names) in enumerate(rows)
        ]

    def _identity(self, shard_size: int) -> dict[str, Any]:
        """What the result of a scan depends on."""
        files = [[file, self.stamps[file]] for file in self.files]
        return {"kind": self.kind, "files": files, "names": asdict(self.names), "prompt": self.prompt, "shard_size": shard_size}

    def read(self, shard: Shard) -> Rows:
        """Raises ``JobError`` if the file is not what it was when it was scanned."""
        self.check_unchanged(shard.file)
        rows = self._read(shard)
        if self.prompt is None:  # CSV cannot tell an empty text from none, so in no format does either count as a prompt
            prompts = [None if isinstance(prompt, str) and not prompt.strip() else prompt for prompt in rows.prompts]
            rows = Rows(rows.table, prompts, rows.images, rows.problems)
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

    def place(self, shard: Shard, rows: Rows, number: int) -> str:
        """Where a row of a shard is, for a person, with its id where it has one."""
        named = f"{shard.file}, row {shard.first_row + number + 1:,}"
        if self.id_column not in rows.table.column_names:
            return named
        return f"{named} ({self.id_column} {rows.table.column(self.id_column)[number]})"

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

    def _stamps(self, facts: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Those of the files as they are; ``facts``: what an earlier scan found, where there was one."""
        del facts
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
                found = ", ".join(name if name == name.strip() else repr(name) for name in columns) or "none at all"
                raise JobError(f"{self.path} has no column {column!r}; it has {found}. Name it with {option}{text}")
        if self.image_column == self.prompt_column:
            raise JobError(f"the column {self.image_column!r} cannot hold both images and prompts; name two columns")
        if self.prompt is not None and self.prompt_column in columns:
            raise JobError(f"{self.path} has a column {self.prompt_column!r} of prompts; leave --prompt out")
        if self.names.id is not None and self.names.id not in columns:
            raise JobError(f"{self.path} has no column {self.names.id!r}; it has {', '.join(columns)}. Name it with --id-column")
        if taken := [name for name in columns if name in ("error", "reward") or name.startswith("reward:") or name.lower() == ROW_NUMBER]:
            raise JobError(f"{self.path} has a column {taken[0]!r} already, which the result would hide; rename or drop it")
        if self.prompt is not None:
            self.schema = self.schema.append(arrow().field(self.prompt_column, arrow().string()))

    def _finish_ids(self) -> None:
        self.num_repeated_ids, self.repeated_id = self._ids.repeated()
        if self.num_repeated_ids and self.names.id is not None:
            num, column = self.num_repeated_ids, self.names.id
            ids = f"1 id in the column {column!r} occurs" if num == 1 else f"{num:,} ids in the column {column!r} occur"
            raise JobError(f"{self.path}: {ids} more than once, such as {self.repeated_id}; make them unique, or leave --id-column out")

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
        folder, base = parent(shard.file), self.base
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
                moved = path and path != value and folder != base
                named.append(self._from_base(path) if path and moved else value if isinstance(value, str) else None)
        return sources, named


def named_images(schema: pyarrow.Schema, image_column: str) -> pyarrow.Schema:
    """The schema of the output: without the notes of whoever wrote the input, and with images as text."""
    pa = arrow()
    place = schema.get_field_index(image_column)
    schema = without_views(schema)
    return schema if place < 0 else schema.set(place, pa.field(image_column, pa.string()))


class _Ids:
    """Looks for ids that occur twice, without holding them."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.ids: list[str | None] = []
        self.stack = ExitStack()
        self.database: Any = None

    def __enter__(self) -> _Ids:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def add(self, value: object) -> None:
        """The id of the next row; where there is no value there is no id."""
        self.ids.append(None if value is None else str(value))
        if len(self.ids) >= 65_536:
            self._flush()

    def _flush(self) -> None:
        ids, self.ids = self.ids, []
        self.add_column(text_array(ids))

    def add_column(self, ids: pyarrow.Array) -> None:
        """The ids of the next rows, as text."""
        rows = arrow().array(np.arange(self.num_rows, self.num_rows + len(ids)))
        self.num_rows += len(ids)
        if ids.null_count == len(ids):
            return
        if self.database is None:
            self.database = self.stack.enter_context(database())
            self.database.execute("CREATE TABLE ids (row BIGINT, id VARCHAR)")
        batch = arrow().table({"row": rows, "id": ids})
        self.database.from_arrow(batch).filter("id <> ''").insert_into("ids")

    def repeated(self) -> tuple[int, str]:
        """How many ids occur more than once, and where the first of them does."""
        self._flush()
        if self.database is None:
            return 0, ""
        groups = "SELECT id, count(*) AS num, min(row) AS first FROM ids GROUP BY id HAVING num > 1"
        num, first = self.database.execute(f"SELECT count(*), min(first) FROM ({groups})").fetchall()[0]
        if not num:
            return 0, ""
        (second,) = self.database.execute(
            "SELECT min(row) FROM ids WHERE row > ? AND id = (SELECT id FROM ids WHERE row = ?)", [first, first]
        ).fetchall()[0]
        return num, f"that of rows {first + 1:,} and {second + 1:,}"


def cut(num_rows: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        yield start, stop, stop - start, start


def cut_records(records: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int, int, int]]:
    """Records as (first byte, byte after the last) -> shards of ``size`` of them."""
    first_row = 0
    while piece := list(islice(records, size)):
        yield piece[0][0], piece[-1][1], len(piece), first_row
        first_row += len(piece)
