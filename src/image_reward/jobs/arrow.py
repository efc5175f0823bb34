"""The one way into Arrow and out of it: text that UTF-8 cannot hold is cleaned, and times that Python cannot hold become text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from image_reward.errors import JobError

if TYPE_CHECKING:
    import pyarrow

_SURROGATES = re.compile("[\ud800-\udfff]")


def arrow() -> Any:
    """pyarrow. Raises ``JobError`` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise JobError("jobs over files of rows need pyarrow: pip install 'image-reward[jobs]'") from None
    return pyarrow


def clean(text: str) -> str:
    """Text as UTF-8 can hold it: lone surrogates, which stand for bytes of names and halves of characters, become U+FFFD.

    >>> clean("caf\\udce9"), clean("café")
    ('caf\ufffd', 'café')
    """
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def is_clean(text: str) -> bool:
    """Whether UTF-8 can hold this."""
    return text.isascii() or not _SURROGATES.search(text)


def text_array(values: Sequence[str | None]) -> pyarrow.Array:
    """Text as a column, cleaned."""
    pa = arrow()
    return pa.array([value if value is None else clean(value) for value in values], pa.string())


def text_table(columns: Mapping[str, Sequence[str | None]]) -> pyarrow.Table:
    """Columns of text, cleaned, names included."""
    return arrow().table({clean(name): text_array(values) for name, values in columns.items()})


def clean_table(table: pyarrow.Table) -> tuple[pyarrow.Table, dict[int, str]]:
    """A table from a file, whose text nobody checked -> the same with clean text, and which rows were not UTF-8, with the column's name.

    Text within lists and structs cannot be mended, so the whole value goes.
    """
    pa = arrow()
    found: dict[int, str] = {}
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if _is_valid(column):
            continue
        if pa.types.is_dictionary(field.type):
            column = column.combine_chunks().dictionary_decode()
        bad = {row for row in range(len(column)) if not _is_valid(column.take([row]))}  # a slice would hold what is beside it too
        found |= dict.fromkeys(bad, field.name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = [value and value.decode("utf-8", "replace") for value in column.cast(pa.large_binary()).to_pylist()]
        else:
            values = [None if row in bad else column[row].as_py() for row in range(len(column))]
        table = table.set_column(place, field, pa.array(values, field.type))
    return table, found


def _is_valid(column: pyarrow.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except arrow().ArrowInvalid:
        return False
    return True


def python_rows(table: pyarrow.Table) -> list[dict[str, Any]]:
    """Rows as Python's values. Times in nanoseconds, and those before year 1 or after 9999, are text: Python's have neither.

    Times of a zone that this machine does not know are in UTC.
    """
    table = table.cast(_changed(table.schema, _in_known_zone))
    try:
        return table.cast(_changed(table.schema, partial(_pythonic, units=("ns",)))).to_pylist()
    except (ValueError, OverflowError):
        return table.cast(_changed(table.schema, partial(_pythonic, units=("s", "ms", "us", "ns")))).to_pylist()


def as_text(table: pyarrow.Table) -> pyarrow.Array:
    """The one column of a table as text."""
    pa = arrow()
    try:
        return table.column(0).cast(pa.string()).combine_chunks()
    except pa.ArrowException:  # bytes that are not UTF-8, lists, structs
        return text_array([None if value is None else str(value) for row in python_rows(table) for value in row.values()])


def without_views(schema: pyarrow.Schema) -> pyarrow.Schema:
    """The schema with text and bytes in place of views of them, of which Arrow cannot take rows."""
    pa = arrow()
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    changed = _changed(schema, lambda kind: plain.get(kind, kind))
    return pa.schema([new if "_view" in str(old.type) else old for old, new in zip(schema, changed, strict=True)])


def _changed(schema: pyarrow.Schema, change: Callable[[Any], Any]) -> pyarrow.Schema:
    """The columns with what ``change`` makes of their types, and of those within lists, maps, structs and dictionaries."""
    pa = arrow()

    def inner(kind: Any) -> Any:
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(kind.field(i).name, inner(kind.field(i).type)) for i in range(kind.num_fields)])
        if pa.types.is_list(kind):
            return pa.list_(inner(kind.value_type))
        if pa.types.is_large_list(kind):
            return pa.large_list(inner(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(inner(kind.value_type), kind.list_size)
        if pa.types.is_map(kind):
            return pa.map_(inner(kind.key_type), inner(kind.item_type))
        if pa.types.is_dictionary(kind):
            return inner(kind.value_type)
        return change(kind)

    return pa.schema([pa.field(field.name, inner(field.type)) for field in schema])


def _in_known_zone(kind: Any) -> Any:
    pa = arrow()
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        return kind
    try:
        pa.scalar(0, pa.timestamp("s", kind.tz)).as_py()
    except (ValueError, KeyError):  # ZoneInfoNotFoundError, which older versions of pyarrow let through, is a KeyError
        return pa.timestamp(kind.unit, "UTC")
    return kind


def _pythonic(kind: Any, units: tuple[str, ...]) -> Any:
    """A type with text in place of times in some units, and numbers in place of durations."""
    pa = arrow()
    types = pa.types
    if (types.is_timestamp(kind) or types.is_time(kind)) and kind.unit in units:
        return pa.string()
    if types.is_duration(kind) and kind.unit in units:
        return pa.int64()
    return pa.string() if types.is_date(kind) and "us" in units else kind
