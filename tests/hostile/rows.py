"""Malformed files of rows: every row comes out, scored rightly or with an error, or the file is refused by name."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import image_reward as ir
from hostile import (
    CLOSE,
    EMPTY,
    GIB,
    PROMPTS,
    SPECIAL,
    Case,
    FaultError,
    attempt,
    command,
    deep,
    encoded,
    flips,
    pictures,
    refused,
    rewards,
    scorer,
    sparse,
    write,
)

GROUP = "rows"

# --- a job within this process ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What came of a job: its rows, of the one file that it writes at the end, and what it told."""

    rows: list[dict[str, Any]]
    notes: list[str]


def run_job(rows: Path | str, output: Path, **options: Any) -> Job:
    notes: list[str] = []
    result = ir.score_files(rows, output, lambda _: [scorer()], workers=0, format="jsonl", on_note=notes.append, **options)
    lines = (output / "rewards.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    found = [json.loads(line) for line in lines]
    if len(found) != result.num_rows or sum(row["error"] is not None for row in found) != result.num_errors:
        raise FaultError(f"the job tells of {result.num_rows} rows and {result.num_errors} errors, and wrote {found}")
    return Job(found, notes)


# --- what must come of rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What must come of a file.

    ``verdicts``: what may come out, alternatives split by ``|``. Each has a sign for every row, in order: ``+`` scored, ``-`` an error,
    ``?`` either, ``*`` anything; row i is of prompt i and picture i, counted round, and a reward must be theirs. ``++:WORD`` is right only
    if a note of the job has the word. ``refused``: the file may be refused by name; without verdicts it must be.
    """

    verdicts: str = ""
    refused: bool = False


PLUS = Rows("++++")
NONE = Rows(refused=True)
EITHER = Rows("++++", refused=True)
"""Read rightly, or refused by name; nothing between."""
SECOND_BAD = Rows("+-++")
SECOND_ANY = Rows("+?++")


def rows_case(
    name: str,
    content: bytes | str | Callable[[Path], None],
    expected: Rows,
    file: str = "hostile.csv",
    says: Sequence[str] = (),
    **options: Any,
) -> Case:
    return Case(GROUP, name, functools.partial(_use, content, expected, file, tuple(says), options))


def _use(
    content: bytes | str | Callable[[Path], None], expected: Rows, file: str, says: tuple[str, ...], options: dict[str, Any], folder: Path
) -> None:
    draw(folder)
    path = write(folder / file, content)
    job = attempt(lambda: run_job(path, folder / "job", **options))
    if isinstance(job, Exception):
        if not expected.refused:
            raise FaultError(f"the file is refused: {type(job).__name__}: {job}") from job
        return refused(job, Path(file).name, *says)
    if not expected.verdicts:
        raise FaultError(f"the file is scored: {job.rows}"[:500])
    faults = [_fault(job, verdict) for verdict in expected.verdicts.split("|")]
    if all(faults):
        raise FaultError(f"{faults[0]}: {job}"[:800])
    for form in ("csv", "parquet"):
        if (
            ended := command("filter", str(folder / "job"), "--best-per-prompt", "1", "--output", str(folder / f"best.{form}"))
        ).code not in (0, 1):
            raise FaultError(f"`filter` ends with {ended}")
    if (ended := command("report", str(folder / "job"))).code:
        raise FaultError(f"`report` ends with {ended}")
    return None


def _fault(job: Job, verdict: str) -> str:
    signs, _, told = verdict.partition(":")
    if len(job.rows) != len(signs):
        return f"{len(job.rows)} rows came out, and not {len(signs)}"
    if told and not any(told in note for note in job.notes):
        return f"no note tells of {told}"
    for number, (row, sign) in enumerate(zip(job.rows, signs, strict=True)):
        reward, error, expected = row["reward"], row["error"], rewards()[number % len(PROMPTS)]
        if (reward is None) == (error is None):
            return f"row {number} has both or neither of reward and error"
        if reward is None and (sign == "+" or "Quarantined" in error):
            return f"row {number} has an error"
        if reward is not None and sign == "-":
            return f"row {number} is scored"
        if reward is not None and sign in "+?" and abs(reward - expected) > CLOSE:
            return f"row {number} is scored {reward}, and not {expected}"
    return ""


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures()):
        picture.save(folder / f"{number}.png")


def cases() -> Iterator[Case]:
    yield from tables()
    yield from cells()
    yield from json_lines()
    yield from parquet()
    yield from hugging_face()
    yield from tars()
    yield from folders()
    yield from outputs()


# --- CSV -----------------------------------------------------------------------------------------------------------------------------

LINES = [f"{PROMPTS[number]},{number}.png" for number in range(4)]


def table(*lines: str, header: str = "prompt,image", end: str = "\n") -> str:
    return end.join([header, *(lines or LINES), ""])


def second(line: str) -> str:
    """Four lines, of which the second is another."""
    return table(LINES[0], line, LINES[2], LINES[3])


def json_table(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows or objects())


def objects(count: int = 4) -> list[dict[str, Any]]:
    return [{"prompt": PROMPTS[n % 6], "image": f"{n % 6}.png"} for n in range(count)]


def arrow(count: int = 4, **columns: Any) -> pa.Table:
    plain = {"prompt": [PROMPTS[n % 6] for n in range(count)], "image": [f"{n % 6}.png" for n in range(count)]}
    return pa.table(plain | columns)


def parquet_bytes(rows: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(rows, file, **options)
    return file.getvalue()


def is_written(column: pa.Array) -> bool:
    """Whether this pyarrow writes a type to Parquet: 17 writes no views."""
    try:
        parquet_bytes(pa.table({"a": column}))
    except pa.ArrowNotImplementedError:
        return False
    return True


def tables() -> Iterator[Case]:
    plain = table()
    four_types = {
        "an HTML page": "<!DOCTYPE html><html><body>Sign in</body></html>",
        "a Git LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "gzip": gzip.compress(plain.encode()),
        "a zip archive": b"PK\x03\x04" + bytes(200),
        "an image": encoded("PNG"),
        "noise": np.random.RandomState(1).bytes(3000),
        "zeros": bytes(5000),
        "nothing": b"",
        "white space": " \n \n",
        "only a header": "prompt,image\n",
        "rows without a header": table(*LINES[1:], header=LINES[0]),
        "other columns": table(header="caption,file_name"),
        "columns in other letters": table(header="Prompt,IMAGE"),
        "two columns of prompts": table(*(f"{line},again" for line in LINES), header="prompt,image,prompt"),
        "a column of rewards": table(*(f"{line},1" for line in LINES), header="prompt,image,reward"),
        "a column of errors": table(*(f"{line},1" for line in LINES), header="prompt,image,error"),
        "a header that is not UTF-8": b"prompt,image,caf\xe9\n" + b"a red square,0.png,1\n",
        "a header of 100,000 commas": "," * 100_000 + "\n",
        "a header that is an open quote": '"prompt,image\n' + plain,
    }
    for kind in (".csv", ".jsonl"):
        for name, content in four_types.items():
            if kind == ".csv" or name in (
                "an HTML page",
                "a Git LFS pointer",
                "gzip",
                "a zip archive",
                "an image",
                "noise",
                "nothing",
                "white space",
            ):
                says = ("LFS",) if "LFS" in name else ()
                yield rows_case(f"{kind}: {name}", content, NONE, f"hostile{kind}", says)
    yield rows_case(".csv: a Parquet file", parquet_bytes(arrow()), EITHER)
    yield rows_case(".csv: JSONL", json_table(), EITHER)
    yield rows_case(".csv: a JSON list", json.dumps(objects()), EITHER)
    for name, content in (
        ("UTF-16", plain.encode("utf-16")),
        ("UTF-16 without a mark", plain.encode("utf-16-be")),
        ("UTF-32", plain.encode("utf-32")),
        ("semicolons", plain.replace(",", ";")),
        ("tabs", plain.replace(",", "\t")),
        ("a line that names the separator", "sep=,\n" + plain),
        ("semicolons, and a line that names them", "sep=;\n" + plain.replace(",", ";")),
        ("an end of line of old Macs", plain.replace("\n", "\r")),
        ("empty columns at the end", "\n".join(f"{line},," for line in plain.splitlines()) + "\n"),
        ("spaces after commas", plain.replace(",", ", ")),
        ("an empty line first", "\n" + plain),
        ("a comment first", "# exported by hand\n" + plain),
    ):
        yield rows_case(f".csv: {name}", content, EITHER)
    for name, content in (
        ("a byte order mark", b"\xef\xbb\xbf" + plain.encode()),
        ("an end of line of Windows", plain.replace("\n", "\r\n")),
        ("both ends of line", plain.replace("\n", "\r\n", 2)),
        ("no end of line at the end", plain.rstrip()),
        ("empty lines between", plain.replace("\n", "\n\n")),
        ("every cell in quotes", table(*(f'"{PROMPTS[n]}","{n}.png"' for n in range(4)), header='"prompt","image"')),
        ("ids that occur twice", table(*(f"{line},7" for line in LINES), header="prompt,image,id")),
        ("empty ids", table(*(f"{line}," for line in LINES), header="prompt,image,id")),
        ("cells that spreadsheets run", table(*(f"{line},=cmd|'/c calc'!A1" for line in LINES), header="prompt,image,note")),
        (
            "a column that is called as the table of a query",
            table(*(f"{line},x" for line in LINES), header='prompt,image,"a""; DROP TABLE rows; --"'),
        ),
        ("columns that differ in case", table(*(f"{line},x,y" for line in LINES), header="prompt,image,Image,PROMPT")),
        ("columns of Windows' names", table(*(f"{line},x,y" for line in LINES), header="prompt,image,file,rowid")),
    ):
        yield rows_case(f".csv: {name}", content, PLUS)
    yield rows_case(
        ".csv: named ids that occur twice", table(*(f"{line},7" for line in LINES), header="prompt,image,id"), NONE, id_column="id"
    )
    yield rows_case(".csv: a column that is not there", plain, NONE, image_column="picture")
    yield rows_case(".csv: a prompt and prompts", plain, NONE, prompt=PROMPTS[0])
    for suffix in ("csv", "jsonl", "parquet", "tar"):
        for name, make in SPECIAL.items():
            yield rows_case(f".{suffix}: {name}", make, NONE, f"special.{suffix}")
        yield Case(GROUP, f".{suffix}: a folder", functools.partial(_use_folder, suffix))
    for file in ("rows.xlsx", "rows.csv.gz", "rows.json", "rows", "rows.tar.gz", "rows.zip", "rows.png", "rows.npz", "rows.csv.part"):
        yield rows_case(f"a kind that is not read: {file}", plain, EITHER, file)


def _use_folder(suffix: str, folder: Path) -> None:
    (folder / f"special.{suffix}").mkdir()
    job = attempt(lambda: run_job(folder / f"special.{suffix}", folder / "job"))
    if not isinstance(job, Exception):
        raise FaultError(f"it is scored: {job}")
    refused(job, f"special.{suffix}")


def cells() -> Iterator[Case]:
    good = PROMPTS[1]
    for name, line, expected in (
        ("a cell too few", good, SECOND_BAD),
        ("a cell too many", f"{good},1.png,more", SECOND_BAD),
        ("a quote that is not closed", f'"{good},1.png', SECOND_BAD),
        ("a quote within a cell", f'{good},"1".png', SECOND_ANY),
        ("a quote of two lines", '"two red circles\non a white background",1.png', SECOND_ANY),
        ("a zero byte", f"{good}\0,1.png", SECOND_ANY),
        ("a zero byte in the name", f"{good},1\0.png", SECOND_BAD),
        ("an empty prompt", ",1.png", SECOND_BAD),
        ("a prompt of spaces", '"   ",1.png', Rows("+*++")),
        ("an empty name", f"{good},", SECOND_BAD),
        ("a name of spaces", f"{good},   ", SECOND_BAD),
        ("spaces round a name", f"{good}, 1.png ", SECOND_ANY),
        ("an image that is not there", f"{good},gone.png", SECOND_BAD),
        ("a folder as an image", f"{good},.", SECOND_BAD),
        ("a device as an image", f"{good},/dev/zero", SECOND_BAD),
        ("a file of the system without an end as an image", f"{good},/proc/self/pagemap", SECOND_BAD),
        ("a web address", f"{good},https://127.0.0.1:1/1.png", SECOND_BAD),
        ("a web address without a lock", f"{good},http://169.254.169.254/latest", SECOND_BAD),
        ("a file address", f"{good},file:///etc/passwd", SECOND_BAD),
        ("an FTP address", f"{good},ftp://127.0.0.1/1.png", SECOND_BAD),
        ("a chain of addresses", f"{good},zip://1.png::https://127.0.0.1:1/a.zip", SECOND_BAD),
        ("a data address", f'{good},"data:image/png;base64,iVBORw0KGgo="', SECOND_BAD),
        ("base64 in place of a name", f"{good},{'iVBORw0KGgo' * 5000}", SECOND_BAD),
        ("a name of Windows", f"{good},C:\\images\\1.png", SECOND_ANY),
        ("a name of 5,000 letters", f"{good},{'x' * 5000}.png", SECOND_BAD),
        ("a wildcard", f"{good},1*.png", SECOND_BAD),
        ("a home", f"{good},~/1.png", SECOND_BAD),
        ("the table itself as an image", f"{good},hostile.csv", SECOND_BAD),
        ("a way round to it", f"{good},./../input/./1.png", SECOND_ANY),
        ("a prompt of 200,000 letters", f"{good} {'white ' * 35_000},1.png", Rows("+*++")),
        ("an escape in the prompt", f"{good}\x1b]0;title\x07,1.png", Rows("+*++")),
        ("a prompt in every script", "\u0928\u0940 \u202e\U0001f469\u200d\U0001f680,1.png", Rows("+*++")),
    ):
        yield rows_case(f"a cell: {name}", second(line), expected)
    for name, line in (
        ("Latin-1", b"caf\xe9,1.png"),
        ("half of a letter", "a 猫".encode()[:-1] + b",1.png"),
        ("lone surrogates", b"a \xed\xa0\xbd,1.png"),
        ("an overlong letter", b"a \xc0\xaf,1.png"),
    ):
        content = table(LINES[0]).encode() + line + b"\n" + "\n".join(LINES[2:]).encode() + b"\n"
        yield rows_case(f"a cell: {name}", content, SECOND_BAD)
    many = table(*(LINES[number] for number in range(4)))
    yield rows_case("a line of 300 MB among others", lambda p: _stretched(p, many), Rows("++++*|++++-", refused=True))
    yield rows_case(
        "a whole line of 40 MB", lambda p: p.write_text(second(f"{PROMPTS[1]} {'white ' * 7_000_000},1.png")), Rows("+*++", refused=True)
    )
    yield rows_case("cut within a line", table()[:-12], Rows("+++-"))


def _stretched(path: Path, content: str) -> None:
    path.write_text(content)
    os.truncate(path, 300 << 20)


# --- JSONL ---------------------------------------------------------------------------------------------------------------------------


def json_lines() -> Iterator[Case]:
    file = "hostile.jsonl"
    plain = json_table()
    lines = plain.splitlines()
    listed = json.dumps(objects())
    pretty = json.dumps(objects(), indent=1)
    for name, content in (
        ("a JSON list", listed),
        ("a JSON list after a mark", "\ufeff" + listed),
        ("a JSON list after a line", "\n" + listed),
        ("a JSON list over several lines", pretty),
        ("a JSON list over several lines after a mark", "\ufeff" + pretty),
        ("objects over several lines", "\n".join(json.dumps(row, indent=1) for row in objects())),
        ("UTF-16", plain.encode("utf-16")),
        ("a CSV file", table()),
        ("other keys", json_table(*({"text": row["prompt"], "img": row["image"]} for row in objects()))),
        ("a Parquet file", parquet_bytes(arrow())),
    ):
        yield rows_case(f".jsonl: {name}", content, EITHER, file)
    columns = json.dumps({"prompt": PROMPTS[:4], "image": [f"{n}.png" for n in range(4)]})
    yield rows_case(".jsonl: columns of columns", columns, Rows("-|++++", refused=True), file)
    for name, content in (
        ("a mark", "\ufeff" + plain),
        ("an end of line of Windows", plain.replace("\n", "\r\n")),
        ("empty lines", "\n \n" + plain.replace("\n", "\n\n")),
        ("line separators within text", json_table(*(row | {"x": "a\u2028b\x85c"} for row in objects())).replace("\\u2028", "\u2028")),
        (
            "a large number beside a fraction",
            json_table(*(row | {"seed": s} for row, s in zip(objects(), (2**62, 0.5, 1, None), strict=True))),
        ),
        ("a number beyond 64 bits", json_table(*(row | {"seed": 2**70} for row in objects()))),
        ("a number of 400 digits", json_table(*(row | {"seed": 10**400} for row in objects()))),
        ("numbers that are none", json_table(*(row | {"x": float("nan"), "y": float("-inf")} for row in objects()))),
        ("a column of many types", json_table(*(row | {"x": x} for row, x in zip(objects(), (1, "1", [1], {"1": True}), strict=True)))),
        ("ids of many types", json_table(*(row | {"id": x} for row, x in zip(objects(), (1, "1", [1], {"1": 1}), strict=True)))),
        ("values with lone surrogates", json_table(*(row | {"x": "\ud83d"} for row in objects()))),
        ("an empty key", json_table(*(row | {"": 1} for row in objects()))),
        ("keys in other letters", json_table(*(row | {"PROMPT": 1, "Image": 2} for row in objects()))),
        ("keys that change from line to line", json_table(*(row | {f"k{n}": n} for n, row in enumerate(objects())))),
        ("zero bytes in text", json_table(*(row | {"x": "a\0b"} for row in objects()))),
        ("an object of 100 levels", json_table(*(row | {"x": json.loads(deep(100))} for row in objects()))),
    ):
        yield rows_case(f".jsonl: {name}", content, PLUS, file)
    surrogates = json_table(*(row | {"\ud800": 1, "?": 2} for row in objects()))
    yield rows_case(".jsonl: keys with lone surrogates", surrogates, EITHER, file)
    surrogates = json_table(*(row | {chr(0xD800): 1, chr(0xD801): 2, chr(0xFFFD): 3} for row in objects()))
    yield rows_case(".jsonl: keys that become one", surrogates, EITHER, file)
    for name, line, expected in (
        ("cut", lines[1][:-9], SECOND_BAD),
        ("not JSON", "{prompt: 'a'}", SECOND_BAD),
        ("Python", str(objects()[1]), SECOND_BAD),
        ("a comma at its end", lines[1] + ",", SECOND_BAD),
        ("two objects", lines[1] + lines[1], SECOND_BAD),
        ("a list", "[1, 2]", SECOND_BAD),
        ("a word", '"a red square"', SECOND_BAD),
        ("null", "null", SECOND_BAD),
        ("an empty object", "{}", SECOND_BAD),
        ("100,000 brackets", deep(), SECOND_BAD),
        ("100,000 brackets in a value", lines[1][:-1] + ', "x": ' + deep() + "}", SECOND_ANY),
        ("100,000 braces", '{"a":' * 100_000, SECOND_BAD),
        ("a number of 5,000 digits", lines[1][:-1] + ', "x": ' + "9" * 5000 + "}", SECOND_ANY),
        ("a key twice", '{"prompt": "a cross", ' + lines[1][1:], SECOND_ANY),
        ("a lone surrogate in the prompt", json.dumps({"prompt": "a cat \ud83d", "image": "1.png"}), Rows("+*++")),
        ("a lone surrogate in the name", json.dumps({"prompt": PROMPTS[1], "image": "\ud83d.png"}), SECOND_BAD),
        ("a zero byte in the name", json.dumps({"prompt": PROMPTS[1], "image": "1.png\0"}), SECOND_BAD),
        ("zero bytes", "\0" * 4096, SECOND_BAD),
    ):
        yield rows_case(f".jsonl: a line of {name}", "\n".join([lines[0], line, *lines[2:], ""]), expected, file)
    for key in ("prompt", "image"):
        for value in (7, 0.5, True, None, [], ["0.png"], {}, {"a": 1}, "", [[]]):
            row = objects()[1] | {key: value}
            expected = Rows("+*++") if (key, value) == ("prompt", "") else SECOND_BAD
            yield rows_case(f".jsonl: {key} {value!r}", json_table(objects()[0], row, *objects()[2:]), expected, file)
    yield rows_case(".jsonl: not UTF-8", plain.encode() + b'{"prompt": "caf\xe9", "image": "4.png"}\n', Rows("++++-"), file)
    yield rows_case(
        ".jsonl: zeros at the end, as after a loss of power", plain.encode() + bytes(8192), Rows("++++-|++++", refused=True), file
    )
    yield rows_case(".jsonl: a line of 300 MB", lambda p: _stretched(p, plain), Rows("++++-", refused=True), file)
    many = json_table(*(row | {f"k{n}": n} for n, row in enumerate(objects(3000))))
    yield rows_case(".jsonl: 3,000 keys", many, Rows("+" * 3000, refused=True), file)


# --- Parquet -------------------------------------------------------------------------------------------------------------------------


def parquet() -> Iterator[Case]:
    file = "hostile.parquet"
    whole = parquet_bytes(arrow())
    content = [encoded("PNG", picture) for picture in pictures()[:4]]
    names = [f"{number}.png" for number in range(4)]
    for part in (3, 8, len(whole) // 4, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        yield rows_case(f".parquet: cut after {part} of {len(whole)} bytes", whole[:part], NONE, file)
    for number, copy in enumerate(flips(whole, 12)):
        yield rows_case(f".parquet: a bit turned, {number}", copy, Rows("****", refused=True), file)
    for name, data in (
        ("the length of its footer is a lie", whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:]),
        ("the length of its footer is nothing", whole[:-8] + bytes(4) + whole[-4:]),
        ("the end is encrypted", whole[:-4] + b"PARE"),
        ("an HTML page", b"<html></html>"),
        ("CSV", table().encode()),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        ("Feather", _feather()),
        ("nothing", b""),
        ("no rows", parquet_bytes(arrow().slice(0, 0))),
        ("no columns", parquet_bytes(pa.table({}))),
        ("a column of rewards", parquet_bytes(arrow(reward=[1, 2, 3, 4]))),
        ("columns of one name", parquet_bytes(pa.table([names, names, names], names=["prompt", "image", "image"]))),
    ):
        yield rows_case(f".parquet: {name}", data, NONE, file, ("LFS",) if "LFS" in name else ())
    bytes_of = pa.array(content, pa.binary())
    for name, column, expected in (
        ("bytes", bytes_of, PLUS),
        ("large bytes", bytes_of.cast(pa.large_binary()), PLUS),
        ("views of bytes", pa.array(content, pa.binary_view()), EITHER),
        ("bytes of one size", pa.array([data[:100] for data in content], pa.binary(100)), Rows("----", refused=True)),
        ("{bytes, path}", pa.array([{"bytes": data, "path": None} for data in content]), PLUS),
        ("{path}", pa.array([{"path": name} for name in names]), EITHER),
        (
            "{bytes, path} of nothing",
            pa.array([{"bytes": None, "path": None}] * 4, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            Rows("----"),
        ),
        ("{bytes} of numbers", pa.array([{"bytes": list(data[:50])} for data in content]), Rows("----", refused=True)),
        ("{bytes} of text", pa.array([{"bytes": name, "path": name} for name in names]), Rows("----|++++", refused=True)),
        ("{path} of numbers", pa.array([{"path": 1}] * 4), Rows("----", refused=True)),
        ("lists of bytes", pa.array([[data] for data in content]), Rows("++++", refused=True)),
        ("lists of names", pa.array([[name] for name in names]), Rows("++++", refused=True)),
        ("numbers", pa.array([1, 2, 3, 4]), Rows("----", refused=True)),
        ("nulls", pa.nulls(4), Rows("----", refused=True)),
        ("empty bytes", pa.array([content[0], b"", content[2], content[3]]), SECOND_BAD),
        ("bytes, one cut", pa.array([content[0], content[1][:99], content[2], content[3]]), SECOND_BAD),
        ("words of a dictionary", pa.array(names).dictionary_encode(), PLUS),
        ("numbers of a dictionary", pa.array([1, 1, 2, 2]).dictionary_encode(), Rows("----", refused=True)),
        ("large words", pa.array(names, pa.large_string()), PLUS),
        ("views of words", pa.array(names, pa.string_view()), EITHER),
    ):
        if is_written(column):
            yield rows_case(f".parquet: images as {name}", parquet_bytes(arrow(image=column)), expected, file)
    for name, column, expected in (
        ("numbers", pa.array([1, 2, 3, 4]), Rows("----", refused=True)),
        ("lists", pa.array([[prompt] for prompt in PROMPTS[:4]]), Rows("----", refused=True)),
        ("bytes", pa.array([prompt.encode() for prompt in PROMPTS[:4]]), Rows("????", refused=True)),
        ("words of a dictionary", pa.array(PROMPTS[:4]).dictionary_encode(), PLUS),
        ("large words", pa.array(PROMPTS[:4], pa.large_string()), PLUS),
        ("views of words", pa.array(PROMPTS[:4], pa.string_view()), EITHER),
        ("nulls", pa.nulls(4), Rows("----", refused=True)),
        ("words, one null", pa.array([PROMPTS[0], None, *PROMPTS[2:4]]), SECOND_BAD),
        ("structures", pa.array([{"text": prompt} for prompt in PROMPTS[:4]]), Rows("----", refused=True)),
        ("words that are not UTF-8", pa.array([b"caf\xe9"] * 4).view(pa.string()), Rows("----", refused=True)),
    ):
        if is_written(column):
            yield rows_case(f".parquet: prompts as {name}", parquet_bytes(arrow(prompt=column)), expected, file)
    time = 1_700_000_000_123_456_789
    for name, column in (
        ("nanoseconds", pa.array([time] * 4, pa.timestamp("ns"))),
        ("nanoseconds of a zone", pa.array([time] * 4, pa.timestamp("ns", tz="Asia/Kathmandu"))),
        ("a zone that nobody knows", pa.array([time] * 4, pa.timestamp("us", tz="Mars/Olympus"))),
        ("years beyond any calendar", pa.array([2**62] * 4, pa.timestamp("us"))),
        ("days beyond any calendar", pa.array([2**31 - 1] * 4, pa.date32())),
        ("durations", pa.array([time] * 4, pa.duration("ns"))),
        ("times of day", pa.array([86_399_999_999_999] * 4, pa.time64("ns"))),
        ("decimals", pa.array([10**37] * 4, pa.decimal128(38, 0))),
        ("decimals of 76 digits", pa.array([10**75] * 4, pa.decimal256(76, 0))),
        ("half floats", pa.array(np.float16([1, np.nan, np.inf, 0]))),
        ("floats that are none", pa.array([float("nan"), float("inf"), float("-inf"), -0.0])),
        ("unsigned numbers", pa.array([2**64 - 1] * 4, pa.uint64())),
        ("maps", pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int32()))),
        ("maps of bytes", pa.array([[(b"a", b"\xff")]] * 4, pa.map_(pa.binary(), pa.binary()))),
        ("lists of structures", pa.array([[{"a": [1, None]}]] * 4)),
        ("empty structures' lists", pa.array([[]] * 4, pa.list_(pa.struct([("a", pa.int8())])))),
        ("bytes", pa.array([b"\xff\xfe"] * 4)),
        ("nulls", pa.nulls(4)),
        ("views of bytes", pa.array([b"a"] * 4, pa.binary_view())),
    ):
        if is_written(column):
            yield rows_case(f".parquet: a column of {name}", parquet_bytes(arrow(other=column)), PLUS, file)
    latin = parquet_bytes(arrow(other=pa.array([b"caf\xe9"] * 4).view(pa.string())))
    yield rows_case(".parquet: a column of words that are not UTF-8", latin, Rows("????"), file)
    for name, label in (
        ("a quote", 'a"b'),
        ("nothing", ""),
        ("an escape", "\x1b[2J"),
        ("a query", "x'); DROP TABLE rows; --"),
        ("a zero byte", "a\0b"),
    ):
        yield rows_case(f".parquet: a column named by {name}", parquet_bytes(arrow(**{label: [1, 2, 3, 4]})), EITHER, file)
    yield rows_case(".parquet: a row group for each of 300 rows", parquet_bytes(arrow(300), row_group_size=1), Rows("+" * 300), file)
    yield rows_case(
        ".parquet: a million rows in a few bytes",
        parquet_bytes(pa.table({"prompt": pa.nulls(10**6, pa.string()), "text": pa.nulls(10**6)})),
        NONE,
        file,
    )
    yield rows_case(
        ".parquet: notes of junk", parquet_bytes(arrow().replace_schema_metadata({"pandas": "{", "huggingface": deep(5000)})), PLUS, file
    )


def _feather() -> bytes:
    import pyarrow.feather

    file = io.BytesIO()
    pyarrow.feather.write_feather(arrow(), file, compression="uncompressed")
    return file.getvalue()


def hugging_face() -> Iterator[Case]:
    def dataset(state: object = None, change: Callable[[bytes], Any] = lambda whole: whole, **more: object) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            draw(folder)
            sink = io.BytesIO()
            with pa.ipc.new_stream(sink, arrow().schema) as writer:
                writer.write_table(arrow())
            write(folder / "data.arrow", change(sink.getvalue()))
            content = {"_data_files": [{"filename": "data.arrow"}]} if state is None else state
            write(folder / "state.json", content if isinstance(content, bytes | str) or callable(content) else json.dumps(content))
            for name, value in more.items():
                write(folder / name.replace("__", "."), value)  # type: ignore[arg-type]

        return make

    yield rows_case("data set: whole", dataset(), PLUS, "hostile")
    for name, make in (
        ("state that is not JSON", dataset(state="{")),
        ("state of 100,000 brackets", dataset(state=deep())),
        ("state that is a list", dataset(state="[]")),
        ("state that is nothing", dataset(state="")),
        ("state of numbers", dataset(state={"_data_files": 7})),
        ("state of numbers as names", dataset(state={"_data_files": [{"filename": 7}]})),
        ("state without names", dataset(state={"_data_files": [{}]})),
        ("state of null", dataset(state={"_data_files": None})),
        ("state of no files", dataset(state={"_data_files": []})),
        ("a file that is not there", dataset(state={"_data_files": [{"filename": "gone.arrow"}]})),
        ("a file that is the folder", dataset(state={"_data_files": [{"filename": "."}]})),
        ("a file of a name of zero bytes", dataset(state={"_data_files": [{"filename": "a\0b"}]})),
        ("no content", dataset(change=lambda _: b"")),
        ("content of noise", dataset(change=lambda _: np.random.RandomState(2).bytes(4000))),
        ("content that is cut", dataset(change=lambda whole: whole[: len(whole) // 2])),
        ("content that says it is of 2 GB", dataset(change=lambda whole: whole[:4] + b"\xff\xff\xff\x7f" + whole[8:])),
        ("rows by a list of indices", dataset(indices__arrow=b"")),
        ("several splits", dataset(dataset_dict__json="{}")),
        ("state that is a pipe", dataset(state=os.mkfifo)),
        ("state without an end", dataset(state=SPECIAL["a link to /dev/zero"])),
        ("state of 50 GB", dataset(state=sparse(50 * GIB))),
        ("content of which nothing follows", dataset(change=lambda _: b"\xff\xff\xff\xff\x10\0\0\0")),
        ("content that is a pipe", dataset(change=lambda _: os.mkfifo)),
        ("content without an end", dataset(change=lambda _: SPECIAL["a link to /dev/zero"])),
        ("content of 50 GB", dataset(change=lambda _: sparse(50 * GIB))),
    ):
        yield rows_case(f"data set: {name}", make, NONE, "hostile")


# --- tars ----------------------------------------------------------------------------------------------------------------------------


def member(name: str, data: bytes | str = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    data = data.encode() if isinstance(data, str) else data
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def sample(number: int, suffix: str = "txt", text: bytes | str | None = None, key: str = "") -> list[tuple[tarfile.TarInfo, bytes]]:
    picture = encoded("PNG", pictures()[number])
    return [member(f"{key or number}.png", picture), member(f"{key or number}.{suffix}", PROMPTS[number] if text is None else text)]


def tar(
    *members: tuple[tarfile.TarInfo, bytes] | list[tuple[tarfile.TarInfo, bytes]], ended: bool = True, form: int = tarfile.GNU_FORMAT
) -> bytes:
    """Members, and samples of several, as a tar."""
    flat = [one for many in members for one in (many if isinstance(many, list) else [many])]
    blocks = []
    for info, data in flat:
        blocks.append(info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512))
    return b"".join(blocks) + bytes(1024 * ended)


def header(name: str, size: bytes, data: bytes = b"", kind: bytes = b"0") -> bytes:
    """A member whose header says of its size what it likes, with a right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def sparse_member(name: str, size: int, start: bytes = b"") -> bytes:
    """An old GNU sparse member: ``start`` and then nothing, up to ``size``."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % len(start)
    block[156:157] = b"S"
    block[386:410] = b"%011o\0%011o\0" % (0, len(start))
    block[410:434] = b"%011o\0%011o\0" % (min(size, 8 * GIB - 1), 0)
    block[483:495] = b"%011o\0" % size if size < 8 * GIB else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + start + bytes(-len(start) % 512)


def holes(name: str, picture: bytes, begin: int, end: int) -> bytes:
    """A GNU sparse member that lacks the zeros of ``picture[begin:end]``."""
    stored = picture[:begin] + picture[end:]
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"%011o\0" % len(stored)
    block[156:157] = b"S"
    block[386:434] = b"".join(b"%011o\0" % part for part in (0, begin, end, len(picture) - end))
    block[483:495] = b"%011o\0" % len(picture)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + stored + bytes(-len(stored) % 512)


def tars() -> Iterator[Case]:
    file = "hostile.tar"
    whole = tar(*(sample(number) for number in range(4)))
    sizes = [len(tar(*(sample(n) for n in range(count)), ended=False)) for count in range(5)]
    yield rows_case(".tar: whole", whole, PLUS, file)
    for name, cut, verdicts in (
        ("at a sample", sizes[2], f"++:{file}"),
        ("at a member", sizes[3] - 1024, f"++-:{file}"),
        ("within a header", sizes[2] + 200, f"++:{file}"),
        ("within an image", sizes[2] + 700, f"++-:{file}"),
        ("within the last text", sizes[3] - 500, f"++-:{file}"),
        ("within its end", sizes[4] + 100, "++++"),
    ):
        yield rows_case(f".tar: cut {name}", whole[:cut], Rows(verdicts, refused=True), file)
    yield rows_case(".tar: no end, but whole", whole[:-1024], Rows("++++", refused=True), file)
    for name, data in (
        ("gzip", gzip.compress(whole)),
        ("a zip archive", _zip()),
        ("nothing", b""),
        ("only its end", bytes(10_240)),
        ("an HTML page", b"<html></html>"),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        ("noise", np.random.RandomState(3).bytes(5000)),
        ("letters", b"a" * 5000),
        ("a negative size first", header("a.png", b"\xff" * 12) + whole),
        ("a size of words first", header("a.png", b"words") + whole),
    ):
        yield rows_case(f".tar: {name}", data, NONE, file, ("LFS",) if "LFS" in name else ())
    begin = tar(sample(0), ended=False)
    rest = tar(sample(2), sample(3))
    # What follows a header that lies about its size cannot be told from its content: the file is refused, or says what it lacks.
    for name, data in (
        ("a negative size", header("1.png", b"\xff" * 12)),
        ("a size of 2^80", header("1.png", b"\x80" + (2**80).to_bytes(11, "big"))),
        ("a size of 8 GB", header("1.png", b"77777777777")),
        ("a size of words", header("1.png", b"words")),
        ("a wrong checksum", bytes(148) + b"x" + header("1.png", b"0" * 11)[149:]),
        ("a long name of 8 GB", header("././@LongLink", b"77777777777", kind=b"L")),
        ("notes of 8 GB", header("x", b"77777777777", kind=b"x")),
        ("notes with a size of junk", header("x", b"%011o" % 13, b"13 size=junk\n", kind=b"x")),
        ("notes with a negative size", header("x", b"%011o" % 12, b"12 size=-99\n", kind=b"x")),
    ):
        yield rows_case(f".tar: {name} between", begin + data + rest, NONE, file)
    junk = header("x", b"%011o" % 10, b"junk junk\n", kind=b"x")
    yield rows_case(".tar: notes of junk between", begin + junk + rest, Rows("+**", refused=True), file)
    text = member("1.txt", PROMPTS[1])
    picture = encoded("PNG", pictures()[1])
    bitmap = encoded("BMP", pictures()[1])
    apart = bitmap[:10] + struct.pack("<I", 54 + 8192) + bitmap[14:54] + bytes(8192) + bitmap[54:]
    for name, data, expected in (
        ("an image of 50 GB", tar(text, ended=False) + sparse_member("1.png", 50 * GIB, picture), SECOND_BAD),
        ("a text of 50 GB", tar(member("1.png", picture), ended=False) + sparse_member("1.txt", 50 * GIB, b"a"), SECOND_BAD),
        ("an image with holes", tar(text, ended=False) + holes("1.bmp", apart, 512, 8192), SECOND_ANY),
        ("a text of 2 MB", tar(member("1.png", picture), member("1.txt", "white " * (2 << 18)), ended=False), Rows("+*++")),
        ("no text", tar(member("1.png", picture), ended=False), SECOND_BAD),
        ("no image", tar(text, ended=False), SECOND_BAD),
        ("two images", tar(member("1.png", picture), member("1.jpg", picture), text, ended=False), SECOND_BAD),
        ("an empty image", tar(member("1.png"), text, ended=False), SECOND_BAD),
        ("an empty text", tar(member("1.png", picture), member("1.txt"), ended=False), Rows("+*++")),
        ("a text with a mark", tar(member("1.png", picture), member("1.txt", "\ufeff" + PROMPTS[1]), ended=False), PLUS),
        ("a text in Latin-1", tar(member("1.png", picture), member("1.txt", b"caf\xe9"), ended=False), SECOND_BAD),
        ("a text in UTF-16", tar(member("1.png", picture), member("1.txt", PROMPTS[1].encode("utf-16")), ended=False), SECOND_ANY),
        ("a text with zero bytes", tar(member("1.png", picture), member("1.txt", b"a\0b"), ended=False), Rows("+*++")),
        ("a link for an image", tar(member("1.png", type=tarfile.SYMTYPE, linkname="0.png"), text, ended=False), SECOND_BAD),
        (
            "a link to a file of this machine",
            tar(member("1.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), text, ended=False),
            SECOND_BAD,
        ),
        ("a hard link for an image", tar(member("1.png", type=tarfile.LNKTYPE, linkname="0.png"), text, ended=False), SECOND_BAD),
        ("a device for an image", tar(member("1.png", type=tarfile.CHRTYPE), text, ended=False), SECOND_BAD),
        ("a pipe for a text", tar(member("1.png", picture), member("1.txt", type=tarfile.FIFOTYPE), ended=False), SECOND_BAD),
        ("a folder between", tar(member("d", type=tarfile.DIRTYPE), sample(1), ended=False), PLUS),
        ("a hidden file between", tar(member("._1.png", b"x"), sample(1), ended=False), PLUS),
        ("a name that is not UTF-8", tar(sample(1, key="caf\udce9"), ended=False), SECOND_ANY),
        ("a name that leads out", tar(sample(1, key="../../out"), ended=False), PLUS),
        ("a name from the root", tar(sample(1, key="/etc/cat"), ended=False), PLUS),
        ("a name with a line end", tar(sample(1, key="a\nb"), ended=False), PLUS),
        ("a name with a hash", tar(sample(1, key="a#b"), ended=False), PLUS),
        ("a name of 3,000 letters", tar(sample(1, key="x" * 3000), ended=False), PLUS),
        ("upper case", tar(member("1.PNG", picture), member("1.TXT", PROMPTS[1]), ended=False), PLUS),
        ("an owner that is not UTF-8", tar(*[member(i.name, d, uname="caf\udce9") for i, d in sample(1)], ended=False), PLUS),
        ("a time of the far future", tar(*[member(i.name, d, mtime=2**40) for i, d in sample(1)], ended=False), PLUS),
    ):
        yield rows_case(f".tar: {name}", begin + data + rest, expected, file)
    for name, values, expected in (
        ("100,000 brackets", deep(), SECOND_BAD),
        ("100,000 brackets in a value", json.dumps({"prompt": PROMPTS[1]})[:-1] + ', "x": ' + deep() + "}", SECOND_ANY),
        ("junk", "{", SECOND_BAD),
        ("nothing", "", SECOND_BAD),
        ("a list", "[]", SECOND_BAD),
        ("a list of keys", '["prompt"]', SECOND_BAD),
        ("a word", '"prompt"', SECOND_BAD),
        ("a number", "7", SECOND_BAD),
        ("null", "null", SECOND_BAD),
        ("no prompt", '{"url": "x"}', SECOND_BAD),
        ("keys that are none", '{"1": 2}', SECOND_BAD),
        ("a prompt of numbers", '{"prompt": 7}', SECOND_BAD),
        ("a prompt of null", '{"prompt": null}', SECOND_BAD),
        ("half a letter", '{"caption": "a cat \\ud83d"}', Rows("+*++")),
        ("a number of 400 digits", json.dumps({"prompt": PROMPTS[1], "x": 10**400}), PLUS),
        ("a number of 5,000 digits", json.dumps({"prompt": PROMPTS[1]})[:-1] + ', "x": ' + "9" * 5000 + "}", SECOND_ANY),
        ("numbers that are none", json.dumps({"prompt": PROMPTS[1], "x": float("nan")}), PLUS),
        ("a mark", "\ufeff" + json.dumps({"prompt": PROMPTS[1]}), PLUS),
        ("Latin-1", b'{"prompt": "caf\xe9"}', SECOND_BAD),
    ):
        yield rows_case(f".tar: .json of {name}", begin + tar(sample(1, "json", values), ended=False) + rest, expected, file)
    twice = tar(sample(0), sample(1, key="a"), sample(2, key="a"), sample(3))
    yield rows_case(".tar: one name twice in a row", twice, Rows("++++|+--+|+-+", refused=True), file)
    yield rows_case(
        ".tar: one name three times in a row",
        tar(sample(0, key="a"), sample(1, key="a"), sample(2, key="a")),
        Rows("+++|---|++-|+--", refused=True),
        file,
    )
    yield rows_case(".tar: one name twice, apart", tar(sample(0, key="a"), sample(1), sample(2, key="a")), Rows("+++", refused=True), file)
    yield rows_case(".tar: a text twice", tar(*sample(0), member("0.txt", "another"), sample(1)), Rows("-+|+-*", refused=True), file)
    yield rows_case(".tar: names that differ in case", tar(sample(0, key="a"), sample(1, key="A")), Rows("++"), file)
    yield rows_case(
        ".tar: two tars in one file", tar(sample(0), sample(1)) + tar(sample(2), sample(3)), Rows("++++|++:not read", refused=True), file
    )
    yield rows_case(".tar: junk after its end", tar(sample(0), sample(1)) + b"junk" * 1000, Rows("++", refused=True), file)
    yield rows_case(".tar: a tar in a tar", tar(sample(0), member("x.tar", whole)), Rows("+-", refused=True), file)
    yield rows_case(
        ".tar: notes for all",
        tar(member("pax_global_header", b"52 comment=" + b"a" * 40 + b"\n", type=tarfile.XGLTYPE), sample(0)),
        Rows("+"),
        file,
    )
    yield rows_case(".tar: one prompt for all", tar(sample(0), sample(0, key="b")), Rows("+*"), file, prompt=PROMPTS[0])


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("0.png", encoded("PNG"))
        archive.writestr("0.txt", PROMPTS[0])
    return file.getvalue()


# --- folders of images ---------------------------------------------------------------------------------------------------------------


def folders() -> Iterator[Case]:
    def pictures_in(change: Callable[[Path], object] = lambda _: None, count: int = 4) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            folder.mkdir()
            for number in range(count):
                pictures()[number].save(folder / f"{number}.png")
                (folder / f"{number}.txt").write_text(PROMPTS[number])
            change(folder)

        return make

    def replaced(name: str, content: bytes | str | Callable[[Path], None]) -> Callable[[Path], object]:
        def change(folder: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            write(folder / name, content)

        return change

    for name, make in SPECIAL.items():
        expected = Rows("+*++") if name in EMPTY else SECOND_BAD
        yield rows_case(f"folder: {name} as a text", pictures_in(replaced("1.txt", make)), expected, "hostile")
        yield rows_case(f"folder: {name} as an image", pictures_in(replaced("1.png", make)), SECOND_BAD, "hostile")
    for name, content, expected in (
        ("a mark", "\ufeff" + PROMPTS[1], PLUS),
        ("Latin-1", b"caf\xe9", SECOND_BAD),
        ("UTF-16", PROMPTS[1].encode("utf-16"), SECOND_ANY),
        ("nothing", "", Rows("+*++")),
        ("white space", " \n", Rows("+*++")),
        ("zero bytes", bytes(100), Rows("+*++")),
        ("2 MB", "white " * (2 << 18), Rows("+*++")),
        ("several lines", PROMPTS[1] + "\n\n", PLUS),
    ):
        yield rows_case(f"folder: a text of {name}", pictures_in(replaced("1.txt", content)), expected, "hostile")
    yield rows_case(
        "folder: a text that is a folder", pictures_in(lambda f: ((f / "1.txt").unlink(), (f / "1.txt").mkdir())), SECOND_BAD, "hostile"
    )
    yield rows_case(
        "folder: an image that is a folder",
        pictures_in(lambda f: ((f / "1.png").unlink(), (f / "1.png").mkdir())),
        Rows("+-++|+**"),
        "hostile",
    )
    for name, content in (
        ("photo.heic", b"x"),
        ("photo.jxl", b"x"),
        ("photo.jp2", b"x"),
        ("photo.tga", b"x"),
        ("photo.jpe", encoded("JPEG")),
        ("photo", encoded("PNG")),
        ("photo.gif.part", encoded("GIF")[:500]),
    ):
        passed_over = Rows(f"++++-|++++:{name.rpartition('.')[2]}")
        yield rows_case(f"folder: beside them {name}", pictures_in(replaced(name, content)), passed_over, "hostile")
    yield rows_case("folder: a folder within that leads to itself", pictures_in(lambda f: (f / "loop").symlink_to(".")), PLUS, "hostile")
    yield rows_case("folder: a link to another", pictures_in(_linked), Rows("+++++|++++:more"), "hostile")
    yield rows_case("folder: a name that is not UTF-8", pictures_in(_latin), Rows("++++?"), "hostile")
    yield rows_case("folder: a name of a line end", pictures_in(lambda f: _renamed(f, 3, "3\nx")), PLUS, "hostile")
    yield rows_case("folder: a name of a hash", pictures_in(lambda f: _renamed(f, 3, "3.tar#x")), PLUS, "hostile")
    yield rows_case("folder: a name in capitals", pictures_in(lambda f: (f / "3.png").rename(f / "3.PNG")), PLUS, "hostile")
    yield rows_case("folder: 100 folders deep", pictures_in(lambda f: _deeper(f, 100)), PLUS, "hostile")
    yield rows_case("folder: nothing", lambda f: f.mkdir(), NONE, "hostile")
    yield rows_case("folder: only texts", lambda f: (f.mkdir(), (f / "a.txt").write_text("a")), NONE, "hostile")  # type: ignore[arg-type,return-value]
    yield rows_case("folder: images and a table", pictures_in(replaced("rows.csv", table())), NONE, "hostile")
    yield rows_case(
        "folder: tables of two kinds", lambda f: (write(f / "a.csv", table()), write(f / "b.jsonl", json_table())), NONE, "hostile"
    )  # type: ignore[arg-type,return-value]
    yield Case(GROUP, "folder: tables of other columns", _use_other_columns)


def _use_other_columns(folder: Path) -> None:
    draw(folder)
    write(folder / "a.csv", table())
    write(folder / "b.csv", table("a,1.png,x", header="prompt,image,z"))
    job = attempt(lambda: run_job(str(folder / "*.csv"), folder / "job"))
    if not isinstance(job, Exception):
        raise FaultError(f"it is scored: {job}")
    refused(job, "b.csv")


def _linked(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    pictures()[4].save(other / "z.png")
    (other / "z.txt").write_text(PROMPTS[4])
    (folder / "more").symlink_to(other)


def _latin(folder: Path) -> None:
    (folder / "caf\udce9.png").write_bytes(encoded("PNG", pictures()[4]))
    (folder / "caf\udce9.txt").write_text(PROMPTS[4])


def _renamed(folder: Path, number: int, name: str) -> None:
    for suffix in ("png", "txt"):
        (folder / f"{number}.{suffix}").rename(folder / f"{name}.{suffix}")


def _deeper(folder: Path, levels: int) -> None:
    inner = folder.joinpath(*["z"] * levels)
    inner.mkdir(parents=True)
    for suffix in ("png", "txt"):
        (folder / f"3.{suffix}").rename(inner / f"3.{suffix}")


# --- where rows go to ------------------------------------------------------------------------------------------------------------------


def outputs() -> Iterator[Case]:
    """A folder that is no job's is refused by name; one that was damaged is refused, or the job goes on and is whole."""
    for name, make in {**SPECIAL, "a text": lambda p: p.write_text("x")}.items():
        if name != "a link to nothing":
            yield Case(GROUP, f"output: {name}", functools.partial(_use_output, make))  # type: ignore[arg-type]
    yield Case(GROUP, "output: a folder of other things", functools.partial(_use_output, lambda p: write(p / "holiday.txt", "x")))
    for file in ("manifest.json", "tries.json", "quarantine.jsonl", "summary.json", "part-000000.parquet"):
        for name, content in (
            ("junk", "junk"),
            ("nothing", ""),
            ("zeros", bytes(4096)),
            ("100,000 brackets", deep()),
            ("a list", "[]\n"),
            ("an object", "{}\n"),
            ("a number of 5,000 digits", '{"0": ' + "9" * 5000 + "}\n"),
            ("not UTF-8", b'{"a": "\xe9"}\n'),
        ):
            yield Case(GROUP, f"output: {file} of {name}", functools.partial(_use_damaged, file, content))


def _use_output(make: Callable[[Path], object], folder: Path) -> None:
    draw(folder)
    write(folder / "rows.csv", table())
    make(folder / "special")
    job = attempt(lambda: run_job(folder / "rows.csv", folder / "special"))
    if not isinstance(job, Exception):
        raise FaultError(f"it is written to: {job}")
    refused(job, "special")


def _use_damaged(file: str, content: bytes | str, folder: Path) -> None:
    draw(folder)
    write(folder / "rows.csv", table())
    run_job(folder / "rows.csv", folder / "job", shard_size=2)
    write(folder / "job" / file, content)
    for verb in (("report",), ("filter", "--best-per-prompt", "1", "--output", str(folder / "best.csv"))):
        ended = command(verb[0], str(folder / "job"), *verb[1:])
        if ended.code and (len(ended.error.splitlines()) != 1 or file not in ended.error):
            raise FaultError(f"`{verb[0]}` does not name {file}: {ended.error}")
    again = attempt(lambda: run_job(folder / "rows.csv", folder / "job"))
    if isinstance(again, Exception):
        return refused(again, file)
    if fault := _fault(again, "++++"):
        raise FaultError(f"the job that goes on: {fault}: {again}")
    return None
