"""Rows as text: CSV and JSONL. A shard is read by seeking to the byte where it begins."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

from image_reward.errors import JobError, RowsError
from image_reward.jobs.arrow import arrow, clean, is_clean, text_array, text_table
from image_reward.jobs.rows import Input, Rows, Shard, cut_records
from image_reward.rows import (
    LongLineError,
    TextLines,
    csv_cells,
    csv_header,
    csv_misfit,
    csv_problem,
    csv_separator,
    is_header,
    json_object,
    other_kind,
)


def _skip_line(lines: TextLines, start: int, file: str) -> None:
    try:
        lines.skip_line(start)
    except RowsError as error:
        raise JobError(f"{file} {error}") from None


def _head(stream: IO[bytes], file: str) -> bytes:
    """How a file of text begins, without a byte order mark and white space. Raises ``JobError`` for what is known to be something else."""
    stream.seek(0)
    head = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if problem := other_kind(head):
        raise JobError(f"{file} {problem}")
    return head


def _separator(stream: IO[bytes], file: str) -> str:
    """What separates the cells of a CSV file, which its header shows."""
    try:
        return csv_separator(TextLines(stream), file)
    except LongLineError:
        return ","  # and whoever reads the header says what is wrong


class CsvInput(Input):
    """CSV with a header, its cells separated as ``csv_separator`` says.

    All columns stay text, as they are in the file; an empty cell is null.

    A quote that is not closed costs the line that it is on. Without ``strict``, it would take the rows after it into its cell.
    """

    kind = "CSV"

    def _header(self, stream: IO[bytes], file: str) -> tuple[list[str], int, str]:
        """The columns, the byte after them, and what separates cells. Raises ``JobError``."""
        _head(stream, file)
        separator = _separator(stream, file)
        lines = TextLines(stream)
        try:
            cells = next(filter(is_header, csv_cells(lines, separator)), [])
            header = csv_header(cells, file) if cells else []
        except (csv.Error, LongLineError) as error:
            raise JobError(f"the first line of {file} is not CSV: {error}; save it as CSV with a row on each line") from None
        except RowsError as error:
            raise JobError(str(error)) from None
        if not cells:
            raise JobError(f"{file} holds no rows, and no header with the names of columns")
        if not header or not all(map(is_clean, header)):
            raise JobError(f"{file} begins with {','.join(cells)!r:.80}, which is not a header: column names, in UTF-8")
        return header, lines.end, separator

    def _records(self, file: str, lines: TextLines, separator: str) -> Iterator[tuple[int, int, list[str] | str]]:
        """First byte, byte after the last, and the cells, or what is wrong with them."""
        reader = csv_cells(lines, separator)
        while True:
            start = lines.end
            try:
                cells: list[str] | str = next(reader)
            except StopIteration:
                return
            except (csv.Error, LongLineError) as error:  # of this record, however far it was read
                cells = csv_problem(error) if isinstance(error, csv.Error) else str(error)
                _skip_line(lines, start, file)
                reader = csv_cells(lines, separator)
            if cells:
                yield start, lines.end, cells

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        with self.access.open(file) as stream:
            header, end, separator = self._header(stream, file)
            pa = arrow()
            schema = pa.schema([(name, pa.string()) for name in header])
            self.schema = self.schema or schema
            if schema != self.schema:
                raise JobError(f"{file} has the columns {', '.join(header)}, and {self.files[0]} {', '.join(self.schema.names)}")
            place = header.index(self.id_column) if self.id_column in header else None

            def records() -> Iterator[tuple[int, int]]:
                for start, stop, cells in self._records(file, TextLines(stream, end), separator):
                    if place is not None and isinstance(cells, list) and not csv_misfit(cells, header, separator):
                        self._ids.add(cells[place])
                    yield start, stop

            yield from cut_records(records(), self._size)

    def _read(self, shard: Shard) -> Rows:
        columns = [name for name in self.schema.names if self.prompt is None or name != self.prompt_column]
        rows: list[list[str | None]] = []
        problems: list[str | None] = []
        with self.access.open(shard.file) as stream:
            separator = _separator(stream, shard.file)
            lines = TextLines(stream, shard.start, shard.stop)
            for number, (_, _, cells) in enumerate(self._records(shard.file, lines, separator), start=shard.first_row + 1):
                values = cells if isinstance(cells, list) else []
                problem = csv_misfit(values, columns, separator) if isinstance(cells, list) else cells
                if not problem and not all(map(is_clean, values)):
                    problem = "is not UTF-8"
                rows.append([value or None for value in [*values, *[""] * len(columns)][: len(columns)]])
                problems.append(f"row {number} {problem}" if problem else None)
        table = text_table({name: [row[place] for row in rows] for place, name in enumerate(columns)})
        return self._rows(table, shard, problems)


_MOST_COLUMNS = 1000  # of JSONL, where each row may bring new ones: rows times columns would be the square of the rows


class JsonLinesInput(Input):
    """An object on each line. A column that holds different types, or lists or objects, becomes text (JSON)."""

    kind = "JSONL"
    _first_problem = ""

    def _check_columns(self) -> None:
        if not self.schema.names and self._first_problem:
            raise JobError(f"no line of {self.path} is an object with columns: {self._first_problem}")
        super()._check_columns()

    def _records(self, file: str, lines: TextLines) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
        while True:
            start = lines.end
            try:
                line = next(lines, None)
                if line is None:
                    return
                if not line.strip():
                    continue
                value = _json_row(line)
            except LongLineError as error:
                value = str(error)
                _skip_line(lines, start, file)
            yield start, lines.end, value

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        kinds: dict[str, set[str]] = self.__dict__.setdefault("_kinds", {})
        with self.access.open(file) as stream:
            if _head(stream, file).startswith(b"["):
                raise JobError(f"{file} is one JSON list; write one object on each line, without brackets and commas around them")

            def records() -> Iterator[tuple[int, int]]:
                for start, stop, row in self._records(file, TextLines(stream)):
                    if isinstance(row, dict):
                        self._ids.add(row.get(self.id_column))
                        for name, value in row.items():
                            kinds.setdefault(name, set()).add(_json_kind(value))
                        if len(kinds) > _MOST_COLUMNS:
                            raise JobError(
                                f"the objects of {file} have more than {_MOST_COLUMNS:,} different keys, such as {list(kinds)[-1]!r:.60}; "
                                "each would be a column: put those that differ from row to row under one key"
                            )
                    elif not self._first_problem:
                        self._first_problem = f"that at byte {start:,} of {file} {row}"
                    yield start, stop

            yield from cut_records(records(), self._size)
        pa = arrow()
        self.schema = pa.schema([(name, _json_type(pa, seen - {"null"})) for name, seen in kinds.items()])

    def _read(self, shard: Shard) -> Rows:
        pa = arrow()
        schema = self.schema
        if self.prompt is not None:
            schema = schema.remove(schema.get_field_index(self.prompt_column))
        objects: list[dict[str, Any]] = []
        problems: list[str | None] = []
        with self.access.open(shard.file) as stream:
            for number, (_, _, row) in enumerate(
                self._records(shard.file, TextLines(stream, shard.start, shard.stop)), start=shard.first_row + 1
            ):
                objects.append(row if isinstance(row, dict) else {})
                problems.append(None if isinstance(row, dict) else f"row {number} {row}")
        prompts = [row.get(self.prompt_column) for row in objects]
        arrays = [_json_column([row.get(f.name) for row in objects], f.type, pa) for f in schema]
        rows = self._rows(pa.table(arrays, schema=schema), shard, problems)
        return rows if self.prompt is not None else Rows(rows.table, prompts, rows.images, rows.problems)  # a number is not a prompt


def _json_row(line: str) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with it."""
    if not is_clean(line):
        return "is not UTF-8"
    try:
        value = json_object(line)
    except RowsError as error:
        return str(error)
    if all(map(is_clean, value)):
        return value
    cleaned = {clean(name): inner for name, inner in value.items()}
    return cleaned if len(cleaned) == len(value) else "is an object with keys that differ only in halves of characters"


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
