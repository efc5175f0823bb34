"""Files of rows from anywhere: what they hold is read or refused by name, and nothing hangs, fills the memory or is left out."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import signal
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from image_reward.comparisons import ParquetImage, read, records, write
from image_reward.errors import ImageReadError, RowsError
from image_reward.rows import LONGEST_ROW, LongLineError, TextLines, is_address, read_rows


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """What hangs or fills the memory fails."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), limit[1]))
    signal.alarm(300)
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limit)


ROW = {"prompt": "a cat", "images": ["1.png", "2.png"], "ranks": [1, 2]}
LINE = json.dumps(ROW)
CAFE = json.dumps(ROW | {"prompt": "a café"}, ensure_ascii=False)
TABLE = "prompt,image,rank\na cat,1.png,1\na cat,2.png,2\n"


def rows(path: Path) -> list[Any]:
    return [row.values for row in read_rows(path, ("prompt", "image", "rank"), ("image",))]


def archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    return content.getvalue()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.json", LINE)
    return content.getvalue()


# --- what is read ---


@pytest.mark.parametrize(
    "content",
    [
        LINE,
        f"\n\r\n  \n{LINE}\n\n",
        f"\ufeff\n{LINE}",
        f"[{LINE}]",
        f"\ufeff \n[\n{LINE}\n]\n",
        json.dumps([ROW], indent=4),
        TABLE,
        TABLE.replace(",", "\t"),
        "\ufeff\n\n" + TABLE,
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        TABLE + ",,\n,,\n",
        TABLE.replace("\n", ",,\n"),
        TABLE.replace("a cat", '"a cat"').rstrip(),
    ],
)
def test_one_comparison_however_it_is_written(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.txt").write_text(content, encoding="utf-8", newline="")
    (found,) = read(tmp_path / "mine.txt")
    assert (found.prompt, found.ranks) == ("a cat", (1, 2))
    assert found.images == (str(tmp_path / "1.png"), str(tmp_path / "2.png"))


def test_a_list_is_read_entry_by_entry_wherever_its_text_is_cut(tmp_path: Path) -> None:
    draw = random.Random(0)
    entries = [{"n": n, "text": "ü漢\\\"'[{" * draw.randrange(3000), "more": [1.5, {"a": [None, True]}]} for n in range(300)]
    (tmp_path / "list").write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    found = list(read_rows(tmp_path / "list", (), ()))
    assert [row.values for row in found] == entries
    assert found[41].where == "entry 42"


def test_a_list_larger_than_the_memory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "list"
    with path.open("w") as file:
        file.write("[" + '{"prompt": "' + "a" * 1000 + '"}')
        for _ in range(20_000):
            file.write(',{"prompt": "' + "a" * 1000 + '"}')
        file.write("]")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (10 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
    assert sum(1 for _ in read_rows(path, (), ())) == 20_001


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(["a", "b"], pyarrow.large_string()),
        pyarrow.array(["a", "b"]).dictionary_encode(),
        pyarrow.array(["a", None]),
        pyarrow.array([Decimal(1), Decimal(2)]),
        pyarrow.array([1, 2], pyarrow.uint64()),
        pyarrow.array([[1], [2, 3]]),
        pyarrow.array([{"x": 1}, None]),
        pyarrow.array([b"a", b"b"]),
        pyarrow.array([datetime(2020, 1, 1), None]),
        pyarrow.array([None, None]),
    ],
)
def test_columns_of_odd_types_are_read_as_they_are(tmp_path: Path, column: Any) -> None:
    write_table(pyarrow.table({"prompt": column, "image": ["1.png", "2.png"]}), tmp_path / "odd")
    assert [row["prompt"] for row in rows(tmp_path / "odd")] == column.to_pylist()


def test_columns_that_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    odd = pyarrow.array([1, 2], pyarrow.timestamp("ns"))  # which Python has no type for
    write_table(pyarrow.table({"prompt": ["a", "b"], "time": odd}), tmp_path / "odd")
    assert rows(tmp_path / "odd") == [{"prompt": "a", "time": None}, {"prompt": "b", "time": None}]


@pytest.mark.parametrize("wrap", [bytes, lambda content: {"bytes": content, "path": "1.png"}])
def test_images_in_parquet_are_referred_to_and_read_when_called(tmp_path: Path, wrap: Any) -> None:
    table = pyarrow.table({"prompt": ["a"] * 5, "image": [wrap(bytes([i])) for i in range(5)]})
    write_table(table, tmp_path / "images", row_group_size=3)
    images = [row["image"] for row in rows(tmp_path / "images")]
    assert [(image.row_group, image.row) for image in images] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [image() for image in images] == [bytes([i]) for i in range(5)]


# --- what is not ---


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n", "is empty"),
        (b"\n" * 100_000, "is empty"),
        (gzip.compress(LINE.encode(), mtime=0), "is compressed with gzip; unpack it with gunzip"),
        (zipped(), "is a ZIP archive or an Excel workbook"),
        (archive(), "is a tar archive"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is an HTML or XML page"),
        (TABLE.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (TABLE.encode("utf-16-be"), "line 1 holds a NUL byte: the file is not text, or is UTF-16"),
        (LINE.encode("utf-32"), "is UTF-16 text"),
        (bytes(1 << 20), "line 1 "),
        (
            f"{LINE}\n{CAFE}\n".encode("latin-1"),
            r"line 2 is not UTF-8 \(byte 0xe9\), but perhaps Latin-1 or Windows-1252; save it as UTF-8",
        ),
        (f"[{LINE},\n\n{CAFE}]".encode("latin-1"), "line 3 is not UTF-8"),
        (TABLE.replace("cat,2", "café,2").encode("latin-1"), "line 3 is not UTF-8"),
        (TABLE.replace("a cat", "a\0cat").encode(), "line 2 holds a NUL byte"),
    ],
)
def test_files_of_another_kind_are_refused_with_the_remedy(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "rankings.json").write_bytes(content)
    with pytest.raises(RowsError, match=f"rankings.json,? {problem}"):
        read(tmp_path / "rankings.json")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (TABLE.replace(",", ";").replace(";rank", "\trank"), "separated by ';'; save it as CSV with commas"),
        (TABLE.replace(",", ";") + "a; dog;1.png;1\n", "line 4 has 4 cells; the header has 3: quote cells that hold semicolons"),
        (TABLE.replace(",", "|"), r"separated by '\|'"),
        ("sep=;\r\n" + TABLE.replace(",", ";"), "begins with 'sep=;', which only Excel understands"),
        ('\ufeff"sep=,"\n' + TABLE, "begins with 'sep=,'"),
        ("prompt,image,image,rank\na,b,c,1\n", "has 2 columns called 'image'"),
        (TABLE + "a dog\n", "line 4 has 1 cells; the header has 3"),
        (TABLE + "a, dog,1.png,1\n", "line 4 has 4 cells; the header has 3: quote cells that hold commas"),
        ('image,rank,prompt\n1.png,1,"a cat\n2.png,2,a cat\n', "line 3 is the last, and a quote that was opened before is not closed"),
        (
            f'prompt,image,rank\n"{"a" * 200_000}",1.png,1\n',
            "line 2 has a cell of more than 131,072 characters: close its quote, or use JSONL",
        ),
    ],
)
def test_exports_of_spreadsheets_that_are_not_read_name_the_cause(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "rankings.csv").write_text(content, encoding="utf-8", newline="")
    with pytest.raises(RowsError, match=problem) as caught:
        read(tmp_path / "rankings.csv")
    assert "rankings.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (json.dumps(ROW, indent=1), r"line 1 is not JSON: .*: join its lines, or write \[ and \] round the objects"),
        ("[" * 200_000, "entry 1 .line 1. is nested too deeply"),
        ('{"a":' * 100_000, "line 1 is nested too deeply"),
        (f'[{LINE},\n{{"prompt": {"[" * 100_000}', "entry 2 .line 2. is nested too deeply"),
        (f"[{LINE}", "after entry 1: the list does not end: it was cut off"),
        (f"[{LINE},", "entry 2 .line 1. is not JSON"),
        (f"[{LINE} {LINE}]", "after entry 1: a comma is missing"),
        (f"[{LINE}]\n[{LINE}]", "goes on after the end of its list, at line 2"),
        (
            "[" + f"{LINE},\n" * 2000 + "{'prompt': 1}," + f"{LINE}," * 2000 + "]",
            "entry 2001 .line 2001. is not JSON: Expecting property name",
        ),
        (LINE.replace("[1, 2]", f"[1, {'9' * 5000}]"), "line 1 is not JSON"),
        (LINE.replace('"ranks"', '"images"'), "line 1 is not JSON: the key 'images' occurs twice in one object"),
        ('{"prompt": "' + "a" * (LONGEST_ROW + 1) + '"}', "line 1 is a line of more than 16,777,216 bytes"),
        ('[{"prompt": "' + "a" * (2 * LONGEST_ROW) + '"}]', "entry 1 .line 1. has more than 16,777,216 characters"),
    ],
    ids=str.__len__,
)
def test_json_that_is_not_read_is_refused_at_its_place(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "rankings.json").write_text(content)
    with pytest.raises(RowsError, match=f"rankings.json,? {problem}"):
        read(tmp_path / "rankings.json")


def test_lines_are_those_of_pythons_universal_newlines_with_the_byte_where_each_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_reward.rows.LONGEST_ROW", 4)  # so that reads end within lines, and between CR and LF
    draw = random.Random(0)
    path = tmp_path / "lines"
    for _ in range(500):
        parts = [draw.choice(["", "a", "bc", "é"]) + draw.choice(["\n", "\r", "\r\n"]) for _ in range(draw.randrange(8))]
        text = "".join(parts) + draw.choice(["", "end"])
        path.write_bytes(text.encode())
        with path.open(encoding="utf-8", newline="") as file:
            expected = list(file)
        with path.open("rb") as stream:
            lines, ends = TextLines(stream), []
            assert [(line, ends.append(lines.end))[0] for line in lines] == expected
            assert ends == [len("".join(expected[: n + 1]).encode()) for n in range(len(expected))]
            if len(ends) > 2:
                assert list(TextLines(stream, ends[0], ends[-2])) == expected[1:-1]
                lines.skip_line(ends[0])
                assert list(lines) == expected[2:]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b""])
def test_a_long_line_is_an_error_and_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    monkeypatch.setattr("image_reward.rows.LONGEST_ROW", 100)
    monkeypatch.setattr("image_reward.rows._LONGEST_SKIPPED", 1000)
    path = tmp_path / "lines"
    for length in (100, 101, 200, 999):
        path.write_bytes(b"a\r" + b"x" * length + end + (b"b" if end else b""))
        with path.open("rb") as stream:
            lines = TextLines(stream)
            assert next(lines) == "a\r"
            with pytest.raises(LongLineError, match="is a line of more than 100 bytes"):
                next(lines)
            lines.skip_line(2)
            assert lines.end == 2 + length + len(end)
            assert list(lines) == (["b"] if end else [])
    path.write_bytes(b"x" * 2000)
    with path.open("rb") as stream, pytest.raises(RowsError, match="at byte 0 begins a line of more than 1,000 bytes"):
        TextLines(stream).skip_line(0)


def test_parquet_that_is_cut_off_or_turned_around_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a cat"] * 100, "image": [f"{i}.png" for i in range(100)], "rank": range(100)})
    write_table(table, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in (4, 8, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "rankings").write_bytes(content[:length])
        with pytest.raises(RowsError, match="rankings is not a whole Parquet file"):
            list(read_rows(tmp_path / "rankings", ("prompt",), ()))
    draw = random.Random(0)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[draw.randrange(4, len(content))] ^= 1 << draw.randrange(8)
        (tmp_path / "rankings").write_bytes(damaged)
        try:
            list(read_rows(tmp_path / "rankings", ("prompt", "image", "rank"), ()))
        except RowsError as error:
            assert "rankings" in str(error)  # noqa: PT017 - Parquet has no checksums, so not every damage is seen


def test_text_in_parquet_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    prompts = pyarrow.array([b"ok", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    write_table(pyarrow.table({"prompt": prompts}), tmp_path / "rankings")
    with pytest.raises(RowsError, match=r"rankings, after row 0, cannot be read: .*utf-8"):
        rows(tmp_path / "rankings")


def test_a_repeated_column_of_parquet_is_refused(tmp_path: Path) -> None:
    write_table(pyarrow.Table.from_arrays([["a"], ["b"]], names=["prompt", "prompt"]), tmp_path / "rankings")
    with pytest.raises(RowsError, match="rankings has several columns called 'prompt'"):
        rows(tmp_path / "rankings")


def test_an_image_in_parquet_that_cannot_be_read_names_its_place(tmp_path: Path) -> None:
    write_table(pyarrow.table({"jpg_0": ["text"]}), tmp_path / "images")
    for image, problem in [
        (ParquetImage(str(tmp_path / "images"), 0, 0, "jpg_0"), "holds no bytes but str"),
        (ParquetImage(str(tmp_path / "images"), 0, 9, "jpg_0"), "row group 0, row 10, jpg_0 cannot be read"),
        (ParquetImage(str(tmp_path / "images"), 7, 0, "jpg_0"), "cannot be read"),
        (ParquetImage(str(tmp_path / "images"), 0, 0, "jpg_9"), "cannot be read"),
        (ParquetImage(str(tmp_path), 0, 0, "jpg_0"), "is a folder, not a file"),
    ]:
        with pytest.raises(ImageReadError, match=problem):
            image()
    with pytest.raises(FileNotFoundError, match="nothing"):
        ParquetImage(str(tmp_path / "nothing"), 0, 0, "jpg_0")()


# --- what is not a file ---


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.parquet").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for path, problem in [
            (tmp_path / "pipe.parquet", "pipe.parquet is a named pipe, not a file"),
            (tmp_path, "pipe.parquet is a named pipe, not a file"),
            (tmp_path / "device", "device is a device, not a file"),
            ("/dev/null", "/dev/null is a device, not a file"),
            (tmp_path / "socket", "socket is a socket or a device, not a file"),
            (tmp_path / "folder", "train.parquet is a folder, not a file"),
            (tmp_path / "loop", "loop cannot be read"),
            (tmp_path / ("a" * 300), "cannot be read: File name too long"),
            ("/proc/self/environ", "is empty"),  # a file of /proc has no size, and reading some of them waits
        ]:
            with pytest.raises(RowsError, match=problem):
                read(path)


@pytest.mark.parametrize("path", ["s3://bucket/train.parquet", "https://example.org/train.json", "hdfs://a/b", "data:text/csv;base64,QQ=="])
def test_addresses_differ_from_paths(path: str) -> None:
    assert is_address(path)
    assert not any(map(is_address, ("C:\\images\\1.png", "C:/images/1.png", "a: b", "images/a:b.png", "1:2/3.png")))


def test_file_names_that_are_not_utf8_are_written_and_read_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "one.jsonl").write_text(json.dumps(ROW | {"images": [name, "漢.png"], "prompt": "漢字"}))
    given = read(tmp_path / "one.jsonl")
    write(given, tmp_path / "two.jsonl")
    assert read(tmp_path / "two.jsonl") == given
    assert "漢字" in (tmp_path / "two.jsonl").read_text(encoding="utf-8")


def test_every_row_is_a_comparison_or_a_problem(tmp_path: Path) -> None:
    table = {"prompt": "a dog", "image": "1.png", "rank": 1}
    lines = [ROW, ROW | {"prompt": 3}, table, {"prompt": "a dog"}, ROW | {"images": [["a"], ["b"]]}, ROW]
    (tmp_path / "mixed").write_text("\n".join(map(json.dumps, lines)))
    found = list(records(tmp_path / "mixed"))
    assert [record.where for record in found] == [f"line {n}" for n in (1, 2, 3, 4, 5, 6)]
    assert [record.comparison is not None for record in found] == [True, False, False, False, False, True]
    lines = [table, ROW, table | {"rank": 2, "image": "2.png"}, table | {"prompt": ["a", "dog"]}, table | {"id": [1]}]
    (tmp_path / "mixed").write_text("\n".join(map(json.dumps, lines)))
    found = list(records(tmp_path / "mixed"))
    assert sorted(record.where for record in found) == ["line 1", "line 2", "line 4", "line 5"]
    assert sum(record.comparison is not None for record in found) == 1


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_spreadsheets_with_decimal_commas_are_read(tmp_path: Path, separator: str) -> None:
    lines = [["prompt", "image", "note"], ['"a cat, asleep"', "1.png", "0,5"], ['"cats; dogs"', "2.png", ""]]
    text = "\ufeff" + "\r\n".join(separator.join(line) for line in lines) + "\r\n"
    (tmp_path / "rows.csv").write_bytes(text.encode())
    assert [row.values for row in read_rows(tmp_path / "rows.csv", ("prompt",))] == [
        {"prompt": "a cat, asleep", "image": "1.png", "note": "0,5"},
        {"prompt": "cats; dogs", "image": "2.png", "note": ""},
    ]
