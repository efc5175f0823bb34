"""Files of rows -> rows with their place: JSON, JSONL, CSV, TSV, Parquet, Arrow streams or lines of text, recognised by their first bytes.

A name decides only what the content leaves open: whether text without a known header is a table, and whether strings are JSON.

Files come from anywhere, so nothing here trusts them: only regular files are opened, one row at a time is in memory and its length is
bounded, and what is not read rightly is an error that names the file, the row and the cause, never a row less.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import IO, Any

from image_reward.addresses import Address, PathLike, scheme
from image_reward.errors import FileKindError, ImageReadError, RowsError, StoreError
from image_reward.files import distinct_keys

LONGEST_ROW = 1 << 24
"""Bytes of a line, or characters of an object in a JSON list. A row of a thousand images has some hundred thousand; what is longer is not
one row, and would fill the memory."""
_LONGEST_SKIPPED = 1 << 28  # bytes: a file of zeros, or one that does not end, need not be read to its end
_LINE_ENDS = (b"\n", b"\r")

_CHUNK = 1 << 16
_BLANK = b" \t\r\n"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_UTF16 = "is UTF-16 text; save it as UTF-8 (in Excel: CSV UTF-8)"
_OTHER_KINDS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the data; fetch it with `git lfs pull`",
    b"\x1f\x8b": "is compressed with gzip; unpack it with gunzip",
    b"BZh": "is compressed with bzip2; unpack it with bunzip2",
    b"\x28\xb5\x2f\xfd": "is compressed with Zstandard; unpack it with unzstd",
    b"\xfd7zXZ\x00": "is compressed with xz; unpack it with unxz",
    b"PK\x03\x04": "is a ZIP archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8",
    b"ARROW1": "is an Arrow file; save it as Parquet",
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"<": "is an HTML or XML page, not data; download the file itself, not the page about it",
}


def other_kind(start: bytes) -> str | None:
    """What a file that begins so is, if it does not hold rows, and what to do about it; None where that is not known.

    >>> other_kind(b"version https://git-lfs.github.com/spec/v1")
    'is a Git LFS pointer, not the data; fetch it with `git lfs pull`'
    """
    return next((problem for signature, problem in _OTHER_KINDS.items() if start.startswith(signature)), None)


_one_reader = threading.Lock()  # threads that miss the same row group read it once, not once each


@dataclass(frozen=True)
class Row:
    where: str
    """Its place in the file, for messages."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ParquetImage:
    """An image whose bytes are in a Parquet file, or in an Arrow stream; called, it returns them. Small and picklable."""

    path: str
    row_group: int
    """Of an Arrow stream: the number of the record batch."""
    row: int
    """Within the row group."""
    column: str
    index: int | None = None
    """Within the row's list, where the column holds lists of images."""

    def __call__(self) -> bytes:
        """Raises ``FileNotFoundError``, or ``ImageReadError`` that names the place."""
        try:
            with _one_reader:
                column = _column(self.path, self.row_group, self.column)
            cell = column[self.row].as_py()
            if self.index is not None:
                cell = cell[self.index]
        except (FileNotFoundError, StoreError):
            raise
        except _parquet_errors() as error:
            raise ImageReadError(f"{self} cannot be read: {_one_line(error)}") from None
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise ImageReadError(f"{self} holds no bytes but {type(content).__name__}")
        return content

    def __str__(self) -> str:
        place = f"{self.path}, row group {self.row_group}, row {self.row + 1}, {self.column}"
        return place if self.index is None else f"{place}, image {self.index + 1}"


def read_rows(
    place: PathLike | Address, columns: Collection[str], images: Collection[str] = (), line: str = "", key: str = ""
) -> Iterator[Row]:
    """The rows of a file, in their order.

    Args:
        columns: those to read of a Parquet file or an Arrow stream; others are None. A text whose first line has one of them is a table.
        images: columns that, where they hold bytes, structures with bytes as ``datasets`` writes them, or lists of either, are a
            ``ParquetImage`` that reads them later, or a list of these.
        line: the column that a line of plain text, or a JSON string, is the value of; where it is "", there are no such rows.
        key: the one key of an object that holds all rows as its list; where it is "", no object does.

    Raises ``FileNotFoundError``, or ``RowsError`` that names the file, the place in it and what is wrong there.
    """
    path = Address.parse(place)
    with _opened(path) as stream:
        start = _start(stream, path)
    if start.startswith(b"PAR1"):
        return _parquet_rows(path, columns, images)
    if start.startswith(_ARROW_STREAM):
        return _arrow_rows(path, columns, images)
    if key and re.match(rb'\{\s*"%s"\s*:\s*\[' % re.escape(key.encode()), start):
        return _json_rows(path, line, inside=True)
    if problem := other_kind(start):
        raise RowsError(f"{path} {problem}")
    if start[257:262] == b"ustar":
        raise RowsError(f"{path} is a tar archive; unpack it")
    return _text_kind(start, path, columns, line)(path, line)


def _text_kind(start: bytes, path: Address, columns: Collection[str], line: str) -> Callable[[Address, str], Iterator[Row]]:
    """What reads a text that begins so."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl" and line:
        return _jsonl_rows
    # A prompt may begin with a bracket too, [cat:1.2] or {red|green}, but not like an object or a list of objects or strings.
    if re.match(rb"\{\s*[\"}]" if line else rb"\{", start):
        return _jsonl_rows
    if re.match(rb"\[\s*([{\"\]]|$)" if line else rb"\[", start) or suffix == ".json":
        return _json_rows
    first = re.split(rb"[\r\n]", start, maxsplit=1)[0].decode("utf-8", errors="replace")
    cells = {cell.strip().strip('"') for cell in re.split(r"[,;\t]", first)}
    if line and suffix not in (".csv", ".tsv") and not cells & set(columns):
        return _line_rows
    return _csv_rows


@contextmanager
def _opened(path: Address) -> Iterator[IO[bytes]]:
    try:
        stream = path.open()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except FileKindError as error:
        raise RowsError(str(error)) from None
    except OSError as error:
        raise RowsError(f"{path} cannot be read: {error.strerror or error}") from None
    with stream:
        try:
            yield stream
        except OSError as error:
            raise RowsError(f"{path} cannot be read: {error.strerror or error}") from None


def is_address(text: str) -> bool:
    """Whether a text is of the form s3://…, https://… or data:…, or what a path makes of the first two.

    >>> is_address("https://example.org/1.png"), is_address("C:/images/1.png")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:[\w/;]", text) is not None


def _size(stream: IO[bytes]) -> int:
    try:
        return os.fstat(stream.fileno()).st_size
    except io.UnsupportedOperation:  # in an object store
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        return size


def _start(stream: IO[bytes], path: Address) -> bytes:
    """The first bytes that are not blank."""
    if not _size(stream):  # also those of /proc, which may block
        raise RowsError(f"{path} is empty")
    start = stream.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip(_BLANK)
    while not start:
        chunk = stream.read(_CHUNK)
        if not chunk or stream.tell() > LONGEST_ROW:
            raise RowsError(f"{path} is empty")
        start = chunk.lstrip(_BLANK)
    return start


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- text ----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _text(path: Address) -> Iterator[io.TextIOWrapper]:
    """The file as text, in which a byte that is not UTF-8 stands as a surrogate: ``_check_text`` can say where."""
    with _opened(path) as stream:
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _check_text(text: str, path: Address, line: int) -> None:
    """Raise for what is not UTF-8 in ``text``, which begins on a line of that number."""
    problem = None
    if "\0" in text:
        place, problem = text.index("\0"), "holds a NUL byte: the file is not text, or is UTF-16; save it as UTF-8"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place, byte = error.start, ord(text[error.start]) - 0xDC00
            problem = (
                f"is not UTF-8 (byte 0x{byte:02x}), but perhaps Latin-1 or Windows-1252; save it as UTF-8, "
                "for example with iconv -f WINDOWS-1252 -t UTF-8"
            )
    if problem:
        raise RowsError(f"{path}, line {line + text.count(chr(10), 0, place)} {problem}")


class LongLineError(RowsError):
    """A line is longer than any row. The message is the end of a sentence about it."""


class TextLines:
    """The lines of a file as text, each with its end, and the byte where the last one ended.

    A line ends with LF, CR LF or CR, or where the file does. A byte order mark at the beginning is left out, and bytes that are not UTF-8
    become lone surrogates. A ``csv.reader`` over it takes the lines of a quoted cell together.

    Iterating raises ``LongLineError`` for a line of more than ``LONGEST_ROW`` bytes; ``skip_line`` gets past it.
    """

    def __init__(self, file: IO[bytes], start: int = 0, stop: int | None = None) -> None:
        """The lines that begin at the bytes from ``start``, where one must, to ``stop``, or to the end."""
        self.file, self.stop = file, stop
        self._go_to(start)

    def _go_to(self, start: int) -> None:
        self.file.seek(start)
        self.end = start
        self._chunk, self._at = b"", 0  # read from the file, and how much of it has been returned

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.stop is not None and self.end >= self.stop:
            raise StopIteration
        line = self._part()
        if not line:
            raise StopIteration
        is_first = self.end == 0
        self.end += len(line)
        if len(line) >= LONGEST_ROW and not line.endswith(_LINE_ENDS):
            raise LongLineError(f"is a line of more than {LONGEST_ROW:,} bytes, which is too long for a row")
        return (line.removeprefix(b"\xef\xbb\xbf") if is_first else line).decode("utf-8", "surrogateescape")

    def skip_line(self, start: int) -> None:
        """Let the line after the one that begins at byte ``start`` be the next. Raises ``RowsError`` where that one does not end."""
        self._go_to(start)
        while (part := self._part()) and not part.endswith(_LINE_ENDS):
            self.end += len(part)
            if self.end - start > _LONGEST_SKIPPED:
                raise RowsError(f"is not text of rows: at byte {start:,} begins a line of more than {_LONGEST_SKIPPED:,} bytes")
        self.end += len(part)

    def _part(self) -> bytes:
        """The next line, or, of one that is too long, the next ``LONGEST_ROW`` bytes."""
        if self._at == len(self._chunk):
            self._chunk, self._at = self.file.readline(LONGEST_ROW), 0  # to the next LF; there may be any number of CR before it
        place = self._chunk.find(b"\r", self._at)
        if place < 0 and self._at and not self._chunk.endswith(b"\n"):  # the beginning of a line whose rest is still in the file
            rest = self._chunk[self._at :]
            self._chunk, self._at = rest + self.file.readline(LONGEST_ROW - len(rest)), 0
            place = self._chunk.find(b"\r")
        stop = len(self._chunk)
        if place + 1 == stop and place >= 0 and (following := self.file.read(1)):
            if following == b"\n":
                self._chunk += following
                stop += 1
            else:
                self.file.seek(-1, os.SEEK_CUR)
        elif place >= 0 and self._chunk[place + 1 : place + 2] != b"\n":
            stop = place + 1
        start, self._at = self._at, stop
        return self._chunk[start:stop]


def _lines(path: Address) -> Iterator[str]:
    with _opened(path) as stream:
        number = 1
        try:
            for line in TextLines(stream):
                _check_text(line, path, number)
                yield line
                number += 1
        except LongLineError as error:
            raise RowsError(f"{path}, line {number} {error}") from None


# --- JSON ----------------------------------------------------------------------------------------------------------------------------


_decoder = json.JSONDecoder(object_pairs_hook=distinct_keys)


def json_object(text: str) -> dict[str, Any]:
    """The object that a row of JSON is, with each key once. Raises ``RowsError`` with the end of a sentence about the row."""
    try:
        return _object(_decoder.decode(text))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, RowsError) else RowsError(_json_problem(error)) from None


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowsError(f"is not an object with keys but {type(value).__name__}")
    return value


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply for a row"
    return f"is not JSON: {error.msg if isinstance(error, json.JSONDecodeError) else error}"


def _jsonl_rows(path: Address, line: str) -> Iterator[Row]:
    for number, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        try:
            values = _decoder.decode(text)
        except (ValueError, RecursionError) as error:
            cut = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip())
            remedy = "; JSONL has one whole object on each line" + (": join its lines, or write [ and ] round the objects" if cut else "")
            raise RowsError(f"{path}, line {number} {_json_problem(error)}{remedy}") from None
        yield _json_row(path, f"line {number}", values, line)


def _json_row(path: Address, where: str, values: object, line: str) -> Row:
    if line and isinstance(values, str):
        return Row(where, {line: values})
    try:
        return Row(where, _object(values))
    except RowsError as error:
        raise RowsError(f"{path}, {where} {error}") from None


def _json_rows(path: Address, line: str, inside: bool = False) -> Iterator[Row]:
    """``inside``: the list is the value of an object's only key."""
    with _text(path) as text:
        window = _Window(text, path)
        if inside:
            window.take()
            window.value(0)
            window.take()
        if window.take() != "[":
            raise RowsError(f"{path} is not JSON: it has neither a list of objects nor an object on each line; name plain text .txt")
        number = 0
        while window.peek() != "]":
            if number and (separator := window.take()) != ",":
                problem = "a comma is missing" if separator else "the list does not end: it was cut off; download it again"
                raise RowsError(f"{path}, after entry {number}: {problem}")
            number += 1
            yield _json_row(path, f"entry {number}", window.value(number), line)
        window.take()
        if inside and (end := window.take()) != "}":
            raise RowsError(f"{path} {'has more keys' if end else 'is cut off'} after its list of rows; keep the list, and all of it")
        if window.peek():
            raise RowsError(f"{path} goes on after the end of its list, at line {window.line_at(window.at)}")


class _Window:
    """A part of a long JSON text: values are taken from its start, and it is read as far as the next value needs."""

    def __init__(self, text: io.TextIOWrapper, path: Address) -> None:
        self.text, self.path = text, path
        self.buffer, self.at, self.line = "", 0, 1

    def line_at(self, position: int) -> int:
        return self.line + self.buffer.count("\n", 0, position)

    def _more(self) -> bool:
        self.line = self.line_at(self.at)
        rest = self.buffer[self.at :]
        chunk = self.text.read(max(_CHUNK, len(rest)))  # as much again, so that a long value is tried a few times only
        _check_text(chunk, self.path, self.line + rest.count("\n"))
        self.buffer, self.at = rest + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self.at < len(self.buffer):
                if not self.buffer[self.at].isspace():
                    return self.buffer[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self) -> str:
        character = self.peek()
        self.at += len(character)
        return character

    def value(self, number: int) -> object:
        self.peek()
        while True:
            try:
                value, self.at = _decoder.raw_decode(self.buffer, self.at)
                return value
            except (ValueError, RecursionError) as error:
                if _may_go_on(error, self.buffer) and len(self.buffer) - self.at <= LONGEST_ROW and self._more():
                    continue
                line = self.line_at(getattr(error, "pos", self.at))
                problem = _json_problem(error)
                if len(self.buffer) - self.at > LONGEST_ROW:
                    problem = f"has more than {LONGEST_ROW:,} characters, which is too long for a row"
                raise RowsError(f"{self.path}, entry {number} (line {line}) {problem}") from None


def _may_go_on(error: ValueError | RecursionError, text: str) -> bool:
    """Whether JSON that cannot be read may be only cut off: strings are reported at their start, all else within one literal of the end."""
    return isinstance(error, json.JSONDecodeError) and ("Unterminated" in error.msg or error.pos > len(text) - 16)


# --- CSV -----------------------------------------------------------------------------------------------------------------------------


def _line_rows(path: Address, line: str) -> Iterator[Row]:
    for number, text in enumerate(_lines(path), start=1):
        if text.strip():
            yield Row(f"line {number}", {line: text.strip()})


def _csv_rows(path: Address, line: str) -> Iterator[Row]:  # noqa: ARG001 - every reader of text takes it
    header: list[str] | None = None
    number = 0

    def numbered() -> Iterator[str]:
        nonlocal number
        for number, text in enumerate(_lines(path), start=1):  # noqa: B007
            yield text

    separator = csv_separator(_lines(path), path.name)
    reader = csv_cells(numbered(), separator)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = "is the last, and a quote that was opened before is not closed" if _at_end(error) else csv_problem(error)
            raise RowsError(f"{path}, line {number} {problem}") from None
        if cells is None:
            return
        if not any(cells):
            continue  # a blank line, or the empty rows below a sheet
        if header is None:
            header = csv_header(cells, str(path)) if is_header(cells) else None
            continue
        if problem := csv_misfit(cells, header, separator):
            raise RowsError(f"{path}, line {number} {problem}")
        yield Row(f"line {number}", dict(zip(header, cells, strict=True)))


_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def csv_separator(lines: Iterable[str], name: str = "") -> str:
    """What separates the cells of a table with these lines: a comma, unless its header holds none and holds tabs or semicolons, as
    spreadsheets write where numbers have decimal commas. A file called .tsv has tabs if its header has any.

    >>> csv_separator(["prompt;image"]), csv_separator(['"cats; dogs",image']), csv_separator(["prompt;a\\tb"])
    (';', ',', ',')
    """
    header: list[str] = []
    for line in lines:
        if header or line.strip():
            header.append(line)
        if sum(map(len, header)) > _CHUNK or (sum(part.count('"') for part in header) % 2 == 0 and header):
            break
    first = "".join(header)
    if first.count('"') % 2:  # not closed within reason
        first = header[0]
    if first.strip().strip('"').lower().startswith("sep="):  # what ``csv_header`` refuses
        return ","
    held = {separator for separator in _SEPARATORS if separator in re.sub('"[^"]*"', "", first.strip())}
    if "\t" in held and name.lower().endswith(".tsv"):
        return "\t"
    return held.pop() if len(held) == 1 else ","


def csv_cells(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """The cells of each row of a table. Raises ``csv.Error``, after which it is of no more use.

    Strict, because a quote that is never closed would take the rest of the file into its cell.
    """
    return _tab_cells(iter(lines)) if separator == "\t" else csv.reader(lines, delimiter=separator, strict=True)


def _tab_cells(lines: Iterator[str]) -> Iterator[list[str]]:
    """Between tabs quotes are often just text. A quoted cell of several lines has no tabs: it is rows, after a quote that is one, too.

    >>> list(_tab_cells(iter(['"a ""red"" cat"\\t1', '"red" cat\\t1', '"a\\n', 'cat"\\t2'])))
    [['a "red" cat', '1'], ['"red" cat', '1'], ['a\\ncat', '2']]
    """
    for line in lines:
        try:
            cells = next(csv.reader([line], delimiter="\t", strict=True), [])
        except csv.Error as error:
            if "expected after" in str(error):
                cells = line.rstrip("\r\n").split("\t")
            elif _at_end(error):
                cells = next(csv.reader(chain([line], lines), delimiter="\t", strict=True))
                if any("\t" in cell and re.search(r"[\r\n]", cell) for cell in cells):
                    raise csv.Error("a quote is opened and not closed on its line") from None
            else:
                raise
        yield cells


def is_header(cells: list[str]) -> bool:
    """Whether the first row that is not empty names columns; a row of spaces does not."""
    return any(map(str.strip, cells))


def csv_header(cells: list[str], path: str) -> list[str]:
    """The names of columns that a first line has, each once. Raises ``RowsError``."""
    first = cells[0].strip()
    if first.lower().startswith("sep="):
        raise RowsError(
            f"{path} begins with {first!r}, which only Excel understands; delete this line: commas, semicolons and tabs are recognised"
        )
    for separator, name in ((";", "';'"), ("|", "'|'")):
        if len(cells) == 1 and separator in first:
            raise RowsError(f"the cells of {path} are separated by {name}; save it as CSV with commas")
    header = list(cells)
    while not header[-1]:
        header.pop()
    for name in header:
        if header.count(name) > 1:
            raise RowsError(f"{path} has {header.count(name)} columns called {name!r}; rename or delete all but one")
    return header


def csv_misfit(cells: list[str], header: list[str], separator: str) -> str:
    """Take empty cells beyond the header away, which sheets have. What is wrong if the cells do not go with it; empty if they do."""
    while len(cells) > len(header) and not cells[-1]:
        cells.pop()
    if len(cells) == len(header):
        return ""
    return f"has {len(cells)} cells; the header has {len(header)}: quote cells that hold {_SEPARATORS[separator]}"


def csv_problem(error: csv.Error) -> str:
    """What strict ``csv`` found in a row, as the end of a sentence about it."""
    text = str(error)
    if "field larger" in text:
        return f"has a cell of more than {csv.field_size_limit():,} characters: close its quote, or use JSONL or Parquet for such texts"
    return (
        "opens a quote that is not closed" if _at_end(error) else f"is not CSV: {text}; close every quote, and double quotes within a cell"
    )


def _at_end(error: csv.Error) -> bool:
    return "unexpected end" in str(error)


# --- Parquet and Arrow ---------------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Address, columns: Collection[str], images: Collection[str]) -> Iterator[Row]:
    parquet = _open_parquet(str(path))
    table = _Table(path, parquet.schema_arrow, columns, images)
    leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
    # Of lists of images only the lengths are read, from whatever stands beside the bytes.
    beside = {name: [leaf for leaf in leaves if leaf.startswith(f"{name}.") and not leaf.endswith(".bytes")] for name in table.lists}

    def batches() -> Iterator[_Batch]:
        for group in range(parquet.num_row_groups):
            first = 0
            paths = {name for name in table.pictures if _has_only_paths(parquet.metadata.row_group(group), name)}
            lists = [leaf for name in table.lists if name not in paths for leaf in beside[name] or [name]]
            size = 256 if all(beside.values()) else 16
            for batch in parquet.iter_batches(size, [group], [*table.plain, *paths, *lists], use_threads=path.is_local):
                yield group, first, batch, paths
                first += batch.num_rows

    return table.rows(batches())


def _has_only_paths(group: Any, name: str) -> bool:
    """Whether the structures of a column have no bytes, so that their paths say where the images are."""
    leaves = [group.column(i) for i in range(group.num_columns)]
    of_bytes = [leaf for leaf in leaves if leaf.path_in_schema.startswith(f"{name}.") and leaf.path_in_schema.endswith(".bytes")]
    return bool(of_bytes) and all(leaf.statistics and leaf.statistics.null_count == leaf.num_values for leaf in of_bytes)


def _arrow_rows(path: Address, columns: Collection[str], images: Collection[str]) -> Iterator[Row]:
    whole = _open_arrow(str(path))
    table = _Table(path, whole.schema, columns, images)

    def batches() -> Iterator[_Batch]:
        for number, batch in enumerate(whole.to_batches()):
            batch.validate(full=True)  # offsets of a damaged file lead anywhere
            yield number, 0, batch, {name for name in table.pictures if _holds_only_paths(batch.column(name))}

    return table.rows(batches())


def _holds_only_paths(array: Any) -> bool:
    from pyarrow import types

    array = array.flatten() if _is_list(array.type) else array
    return types.is_struct(array.type) and array.field("bytes").null_count == len(array) > array.null_count


_Batch = tuple[int, int, Any, set[str]]
"""The number of a row group, how many of its rows came before, the next ones, and which pictures have paths there and no bytes."""


class _Table:
    """Which columns of a schema are read, and how: values, or images whose bytes are left where they are."""

    def __init__(self, path: Address, schema: Any, columns: Collection[str], images: Collection[str]) -> None:
        if repeated := {name for name in schema.names if schema.names.count(name) > 1}:
            raise RowsError(f"{path} has several columns called {min(repeated)!r}; rename or delete all but one")
        kinds = {name: schema.field(name).type for name in schema.names}
        self.path, self.names = path, schema.names
        self.lists = [name for name in kinds if name in images and _is_list(kinds[name]) and _holds_bytes(kinds[name].value_type)]
        self.pictures = [*self.lists, *(name for name in kinds if name in images and _holds_bytes(kinds[name]))]
        self.plain = [name for name in kinds if name in columns and name not in self.pictures]

    def rows(self, batches: Iterator[_Batch]) -> Iterator[Row]:
        number = 0
        try:
            for group, first, batch, paths in batches:
                read = [*self.plain, *paths]
                lengths = {name: _lengths(batch.column(name)) for name in self.lists if name not in paths}
                for row, values in enumerate(batch.select(read).to_pylist() if read else [{} for _ in range(batch.num_rows)]):
                    place = str(self.path), group, first + row
                    for name in self.pictures:
                        if name in paths:
                            values[name] = _paths(values[name])
                        elif name in lengths:
                            values[name] = [ParquetImage(*place, name, index) for index in range(lengths[name][row] or 0)]
                        else:
                            values[name] = ParquetImage(*place, name)
                    number += 1
                    yield Row(f"row {number}", dict.fromkeys(self.names) | values)
        except _parquet_errors() as error:
            raise RowsError(f"{self.path}, after row {number}, cannot be read: {_one_line(error)}") from None


def _paths(cell: Any) -> Any:
    return [_paths(item) for item in cell] if isinstance(cell, list) else cell.get("path") if cell else None


def _lengths(lists: Any) -> list[int | None]:
    from pyarrow import compute

    return list(compute.list_value_length(lists).to_pylist())


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _open_parquet(path: str) -> Any:
    with _opened(Address.parse(path)):
        pass
    try:
        import pyarrow  # noqa: F401
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise RowsError(f"{path} is a Parquet file, and reading it needs pyarrow: pip install 'image-reward[data]'") from None
    try:
        return ParquetFile(path if not scheme(path) else Address.parse(path).open())
    except _parquet_errors() as error:
        raise RowsError(f"{path} is not a whole Parquet file: {_one_line(error)}; download it again") from None


def _open_arrow(path: str) -> Any:
    """The table of an Arrow stream. Nothing is copied: its columns are read from the file when they are looked at."""
    with _opened(Address.parse(path)) as stream:
        stream.seek(max(0, _size(stream) - 8))
        whole = stream.read() == _ARROW_STREAM + bytes(4)  # how a writer ends it; one that was cut between two batches would look whole
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError:
        raise RowsError(f"{path} is an Arrow file, and reading it needs pyarrow: pip install 'image-reward[data]'") from None
    try:
        source = Address.parse(path).open() if scheme(path) else pyarrow.memory_map(path)
        table = ipc.open_stream(source).read_all()
    except _parquet_errors() as error:
        raise RowsError(f"{path} is not a whole Arrow file: {_one_line(error)}; save or download it again") from None
    if not whole:
        raise RowsError(f"{path} is not a whole Arrow file: its end is missing; save or download it again")
    return table


def _parquet_errors() -> tuple[type[Exception], ...]:
    """What Arrow raises for damaged files and for values that Python has nothing for."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return (ValueError,)
    return (ArrowException, ArithmeticError, ImportError, LookupError, OSError, TypeError, ValueError)


@lru_cache(maxsize=4)  # both images of a row, and of its neighbours, come from the same row group
def _column(path: str, row_group: int, column: str) -> Any:
    with _opened(Address.parse(path)) as stream:
        is_stream = stream.read(4) == _ARROW_STREAM
    if is_stream:
        array = _open_arrow(path).column(column).chunk(row_group)
        array.validate(full=True)
        return array
    return _open_parquet(path).read_row_group(row_group, columns=[column], use_threads=not scheme(path)).column(0)
