"""Rows as columns: Parquet, and the Arrow streams of Hugging Face data sets. A shard is read by its row groups or record batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from image_reward.addresses import scheme
from image_reward.errors import JobError
from image_reward.jobs.arrow import arrow, as_text, clean_table
from image_reward.jobs.files import Access
from image_reward.jobs.rows import Input, Rows, Shard, cut, named_images
from image_reward.rows import other_kind

if TYPE_CHECKING:
    import pyarrow


class ParquetInput(Input):
    """Parquet files with the same columns."""

    kind = "Parquet"

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        opened = _parquet(file, self.access)
        self._join_schema(opened.schema_arrow, file)
        if self.id_column in opened.schema_arrow.names:
            with _readable(f"{file}, column {self.id_column!r} cannot be read"):
                self._add_ids(opened.iter_batches(columns=[self.id_column], use_threads=False))
        yield from cut(opened.metadata.num_rows, self._size)

    def _add_ids(self, batches: Iterable[pyarrow.RecordBatch]) -> None:
        for batch in batches:
            table, _ = clean_table(arrow().Table.from_batches([batch]))
            self._ids.add_column(as_text(table))

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


@contextmanager
def _readable(problem: str, remedy: str = "write or download it again") -> Iterator[None]:
    """Turn what Arrow raises for damage, ``UnicodeDecodeError`` included, into a ``JobError`` that says what cannot be read."""
    try:
        yield
    except JobError:
        raise
    except (arrow().ArrowException, OSError, ValueError) as error:
        raise JobError(f"{problem}: {error}; {remedy}") from None


def _parquet(file: str, access: Access) -> Any:
    try:
        with _readable(f"{file} is not a whole Parquet file"):
            return arrow().parquet.ParquetFile(file if not scheme(file) else access.open(file))
    except JobError:
        with access.open(file) as stream:
            if kind := other_kind(stream.read(64)):
                raise JobError(f"{file} {kind}") from None
        raise


@lru_cache(maxsize=16)
def _row_groups(file: str, stamp: str, access: Access) -> tuple[int, ...]:
    del stamp  # part of the key: another content is another file
    metadata = _parquet(file, access).metadata
    return tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))


@lru_cache(maxsize=1)  # a row group may be larger than a shard; the shards that follow each other come from the same one
def _row_group(file: str, stamp: str, access: Access, number: int) -> Any:
    del stamp
    with _readable(f"{file}, row group {number} cannot be read"):
        return _parquet(file, access).read_row_group(number, use_threads=False)  # as in ``read_part``; workers share the cores


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
            self._add_ids(table.select([self.id_column]).to_batches())
        yield from cut(table.num_rows, self._size)

    def _read(self, shard: Shard) -> Rows:
        table = _arrow_stream(shard.file, self.stamps[shard.file], self.access)
        return self._arrow_rows(table.slice(shard.start, shard.num_rows), shard)


@lru_cache(maxsize=4)
def _arrow_stream(file: str, stamp: str, access: Access) -> Any:
    del stamp
    pa = arrow()
    with _readable(f"{file} is not a whole Arrow stream", "save the data set again"):
        source = access.open(file) if scheme(file) else pa.memory_map(file)  # mapped: nothing is read before it is used
        return pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()


def image_in_table(path: str, number: int, image_column: str, access: Access) -> Any:
    """The image in a row of a Parquet or Arrow file, counted from 0: bytes, or a path. Raises ``JobError`` where there is none."""
    stamp, row = access.stamp(path), number
    if path.lower().endswith(".arrow"):
        table = _arrow_stream(path, stamp, access)
    else:
        group, groups = 0, _row_groups(path, stamp, access)
        while group < len(groups) - 1 and row >= groups[group]:
            row -= groups[group]
            group += 1
        table = _row_group(path, stamp, access, group)
    if image_column not in table.column_names or row >= len(table):
        raise JobError(f"{path} has no row {number} with an {image_column!r}; it is not the file that was scored")
    value = table.column(image_column)[row].as_py()
    return value["bytes"] if isinstance(value, Mapping) else value
