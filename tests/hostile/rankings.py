"""Malformed files of human rankings and of prompts: read rightly, or refused with the file and the row; no row is lost."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hostile import MODEL, PROMPTS, SPECIAL, Case, FaultError, attempt, command, deep, encoded, flips, pictures, refused, write
from hostile.rows import draw, parquet_bytes
from image_reward import comparisons, prompt_sets
from image_reward.evaluation.generators.human import read_ranking
from image_reward.evaluation.generators.results import read_results

GROUP = "rankings"

Content = bytes | str | Callable[[Path], None]


def cases() -> Iterator[Case]:
    yield from forms()
    yield from containers()
    yield from values()
    yield from pictures_of_rankings()
    yield from parquet()
    yield from arrow()
    yield from prompts()
    yield from results()


def ranking(
    name: str, content: Content, num: int = 0, *says: str, file: str = "hostile.jsonl", may_refuse: bool = False, sound: bool | None = True
) -> Case:
    """A file of ``num`` comparisons that are all right, or, where it is 0, one that must be refused with words of ``says``."""
    return Case(GROUP, name, functools.partial(_use, content, num, says, file, may_refuse or not num, sound))


def _use(content: Content, num: int, says: Sequence[str], file: str, may_refuse: bool, sound: bool | None, folder: Path) -> None:
    draw(folder)
    path = write(folder / file, content)
    found = attempt(lambda: comparisons.read(path))
    if isinstance(found, Exception):
        if not may_refuse:
            raise FaultError(f"it is refused: {type(found).__name__}: {found}") from found
        refused(found, file.split(".")[0], *says)
    elif len(found) != num:
        raise FaultError(f"{len(found)} comparisons are read, and not {num}: {found}"[:500])
    audit = attempt(lambda: comparisons.audit([path]))
    if isinstance(audit, Exception):
        if not isinstance(found, Exception):
            raise FaultError(f"it is read, and its audit fails: {type(audit).__name__}: {audit}")
        refused(audit, file.split(".")[0])
    elif isinstance(found, Exception) and audit.sound:
        raise FaultError(f"it is refused ({found}), and its audit finds nothing wrong")
    elif not isinstance(found, Exception) and sound is not None and audit.sound is not sound:
        raise FaultError(f"its audit gives {audit.findings}")
    ended = command("data", "check", str(path))
    bad = isinstance(audit, Exception) or not audit.sound
    if ended.code != int(bad) or len(ended.error.splitlines()) != int(isinstance(audit, Exception)):
        raise FaultError(f"`data check` ends with {ended}"[:600])


def one_bad(name: str, row: object, *says: str, file: str = "hostile.jsonl") -> Case:
    """Three comparisons, of which the second is wrong: it is named, and the other two are still there for the audit."""
    lines = [json.dumps(comparison(0)), row if isinstance(row, str) else json.dumps(row), json.dumps(comparison(2))]

    def use(folder: Path) -> None:
        _use("\n".join(lines) + "\n", 0, ("2", *says), file, True, None, folder)
        audit = attempt(lambda: comparisons.audit([folder / file]))
        if isinstance(audit, Exception):
            return refused(audit, file, "2")
        problems = sum(finding.num for finding in audit.findings if finding.level == "error")
        if audit.files[0].num_prompts != 2 or problems < 1:
            raise FaultError(f"of three comparisons, one wrong, {audit.files[0].num_prompts} are left, with {audit.findings}")
        return None

    return Case(GROUP, name, use)


def comparison(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"c{number}", "prompt": PROMPTS[number], "images": [f"{number}.png", f"{number + 1}.png"], "ranks": [1, 2]} | changes


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


# --- forms -------------------------------------------------------------------------------------------------------------------------------


def published() -> dict[str, list[dict[str, Any]]]:
    """Two comparisons in every form that is read."""
    by_image = [
        {"image_path": f"{n + k}.png", "prompt_id": f"p{n}", "prompt": PROMPTS[n], "rank": k + 1} for n in range(2) for k in range(2)
    ]
    return {
        "ImageRewardDB": by_image,
        "ImageRewardDB list": [
            {"id": f"p{n}", "prompt": PROMPTS[n], "generations": [f"{n}.png", f"{n + 1}.png"], "ranking": [1, 2]} for n in range(2)
        ],
        "HPDv2 train": [{"prompt": PROMPTS[n], "file_path": [f"{n}.png", f"{n + 1}.png"], "human_preference": [0, 1]} for n in range(2)],
        "HPDv2 test": [{"prompt": PROMPTS[n], "image_path": [f"{n}.png", f"{n + 1}.png"], "rank": [0, 1]} for n in range(2)],
        "HPDv3": [
            {"prompt": PROMPTS[n], "path1": f"{n}.png", "path2": f"{n + 1}.png", "choice_dist": [9, 3], "confidence": 0.9} for n in range(2)
        ],
        "ImageRewardDB pair": [{"prompt": PROMPTS[n], "img_better": f"{n}.png", "img_worse": f"{n + 1}.png"} for n in range(2)],
        "ImageRewardDB group": [
            {"prompt_id": f"p{n}", "prompt": PROMPTS[n], "image": [f"{n}.png", f"{n + 1}.png"], "rank": [1, 2]} for n in range(2)
        ],
        "chosen and rejected": [{"prompt": PROMPTS[n], "chosen": f"{n}.png", "rejected": f"{n + 1}.png"} for n in range(2)],
        "GenAI-Bench": [
            {"prompt": PROMPTS[n], "left_image": f"{n}.png", "right_image": f"{n + 1}.png", "vote_type": "leftvote"} for n in range(2)
        ],
        "MMRB2": [
            {
                "id": f"p{n}",
                "prompt_content": [["text", PROMPTS[n]]],
                "response_a": {"response_content": [["image", f"{n}.png"]]},
                "response_b": {"response_content": [["image", f"{n + 1}.png"]]},
                "chosen": "A",
            }
            for n in range(2)
        ],
        "MMRB2 hub": [
            {
                "pair_id": f"p{n}",
                "prompt_text": PROMPTS[n],
                "response_a_images": [f"{n}.png"],
                "response_b_images": [f"{n + 1}.png"],
                "chosen": "b",
            }
            for n in range(2)
        ],
        "ratings": [{"prompt": PROMPTS[n], "image": f"{n + k}.png", "rating": k, "annotator": "x"} for n in range(2) for k in range(2)],
        "ours, by comparison": [comparison(n) for n in range(2)],
        "ours, by image": [
            {"id": f"p{n}", "prompt": PROMPTS[n], "image": f"{n + k}.png", "rank": k + 1} for n in range(2) for k in range(2)
        ],
    }


ODD = ("x", "", None, True, [], {}, -1, 0, 1.5, 10**400, float("nan"), float("inf"), [[]], [None, None], {"a": 1}, "\ud800")


def forms() -> Iterator[Case]:
    for form, rows in published().items():
        yield ranking(f"{form}: whole, JSON", json.dumps(rows), 2, file="hostile.json")
        yield ranking(f"{form}: whole, JSONL", lines(*rows), 2)
        if not any(isinstance(value, list) for value in rows[0].values()):
            yield ranking(f"{form}: whole, CSV", table(rows), 2, file="hostile.csv")
        yield Case(GROUP, f"{form}: every key missing, odd or of another type", functools.partial(_use_odd, rows))
        for part in (0.3, 0.6, 0.95):
            yield ranking(f"{form}: JSON cut after {part}", json.dumps(rows)[: int(len(json.dumps(rows)) * part)], file="hostile.json")
            text = lines(*rows)
            yield ranking(f"{form}: JSONL cut after {part}", text[: int(len(text) * part)])
    big = [encoded("PNG", picture) for picture in pictures()[:2]]
    pair = {"caption": [PROMPTS[0]], "jpg_0": [big[0]], "jpg_1": [big[1]], "label_0": [1.0], "label_1": [0.0]}
    yield ranking("Pick-a-Pic: whole", parquet_bytes(pa.table(pair)), 1, file="hostile.parquet")
    for name, changes in (
        ("labels that are words", {"label_0": ["a"], "label_1": ["b"]}),
        ("labels of NaN", {"label_0": [float("nan")], "label_1": [float("nan")]}),
        ("labels that do not sum to one", {"label_0": [1.0], "label_1": [1.0]}),
        ("labels of null", {"label_0": pa.nulls(1), "label_1": pa.nulls(1)}),
        ("a caption of numbers", {"caption": [7]}),
        ("a caption of null", {"caption": pa.nulls(1)}),
    ):
        yield ranking(f"Pick-a-Pic: {name}", parquet_bytes(pa.table(pair | changes)), file="hostile.parquet")
    for name, changes in (
        ("images of numbers", {"jpg_0": [7]}),
        ("images of null", {"jpg_0": pa.nulls(1)}),
        ("images of text", {"jpg_0": ["a"]}),
        ("images cut", {"jpg_0": [big[0][:99]]}),
        ("images of nothing", {"jpg_0": [b""]}),
        ("images of lists", {"jpg_0": [[1, 2]]}),
    ):
        data = parquet_bytes(pa.table(pair | changes))
        yield ranking(f"Pick-a-Pic: {name}", data, 1, file="hostile.parquet", may_refuse=True, sound=False)
    without = {key: value for key, value in pair.items() if key != "jpg_1"}
    yield ranking("Pick-a-Pic: one image", parquet_bytes(pa.table(without)), file="hostile.parquet")
    yield ranking("Pick-a-Pic: as JSONL", lines({key: str(value[0])[:9] for key, value in pair.items()} | {"label_0": 1, "label_1": 0}))


def _use_odd(rows: list[dict[str, Any]], folder: Path) -> None:
    """Whatever stands at a key, in the first row or in a later one, the file is read, or refused by name; the audit says as much."""
    draw(folder)
    faults = []
    for key in rows[0]:
        for value in (*ODD, ...):
            for number in (0, -1):
                changed = [dict(row) for row in rows]
                if value is ...:
                    del changed[number][key]
                else:
                    changed[number][key] = value
                path = write(folder / "hostile.jsonl", lines(*changed))
                found = attempt(lambda path=path: comparisons.read(path))
                audit = attempt(lambda path=path: comparisons.audit([path], fast=True))
                try:
                    if isinstance(found, Exception):
                        refused(found, "hostile.jsonl")
                    if isinstance(audit, Exception):
                        refused(audit, "hostile.jsonl")
                    if isinstance(found, Exception) and not isinstance(audit, Exception) and audit.sound:
                        raise FaultError(f"it is refused, and its audit finds nothing: {found}")
                    if not isinstance(found, Exception) and isinstance(audit, Exception):
                        raise FaultError("it is read, and its audit is refused")
                except FaultError as error:
                    faults.append(f"{key} of {value!r:.20}: {str(error)[:150]}")
    if faults:
        raise FaultError(f"{len(faults)}: " + "; ".join(dict.fromkeys(faults)))


# --- containers --------------------------------------------------------------------------------------------------------------------------


def containers() -> Iterator[Case]:
    plain = lines(*(comparison(n) for n in range(3)))
    listed = json.dumps([comparison(n) for n in range(3)])
    by_image = table(published()["ours, by image"])
    for name, make in SPECIAL.items():
        yield ranking(f"{name} for rankings", make)
    yield Case(GROUP, "a folder for rankings", _use_folder)
    for name, content, says in (
        ("nothing", b"", ()),
        ("white space", b" \n\n", ()),
        ("an HTML page", b"<html><body>404</body></html>", ()),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", ("LFS",)),
        ("gzip", gzip.compress(plain.encode()), ()),
        ("a zip archive", b"PK\3\4" + bytes(300), ()),
        ("noise", np.random.RandomState(6).bytes(3000), ()),
        ("zeros", bytes(3000), ()),
        ("an image", encoded("PNG"), ()),
        ("JSON that is null", b"null", ()),
        ("JSON that is a number", b"7", ()),
        ("an empty list", b"[]", ()),
        ("a list of numbers", b"[1, 2]", ()),
        ("a list of lists", b"[[1]]", ()),
        ("a list of words", b'["a"]', ()),
        ("a list in an object", json.dumps({"data": [comparison(0)]}), ()),
        ("100,000 brackets", deep(), ()),
        ("100,000 braces", '{"a":' * 100_000, ()),
        ("100,000 brackets in an object", '{"prompt": "a", "images": ' + deep() + ', "ranks": [1, 2]}', ()),
        ("UTF-16", plain.encode("utf-16"), ()),
        ("UTF-16, a table", by_image.encode("utf-16"), ()),
        ("Latin-1", plain.replace("large", "caf\xe9").encode("latin-1"), ("line 1",)),
        ("Latin-1, a list", listed.replace("large", "caf\xe9").encode("latin-1"), ()),
        ("Latin-1, a table", by_image.replace("large", "caf\xe9").encode("latin-1"), ()),
        ("a table of semicolons", by_image.replace(",", ";"), ()),
        ("a table of tabs", by_image.replace(",", "\t"), ()),
        ("a table that names its separator", "sep=,\n" + by_image, ()),
        ("a table of only a header", "prompt,image,rank\n", ()),
        ("a table without a header", by_image.split("\n", 1)[1], ()),
        ("a table of ragged rows", by_image.replace("1.png,2", "1.png"), ()),
        ("a table of rows too long", by_image.replace("1.png,2", "1.png,2,3"), ()),
        ("a table with a quote that is not closed", by_image.replace("1.png", '"1.png', 1), ()),
        (
            "a table of two columns of ranks",
            by_image.replace("rank\n", "rank,rank\n").replace(".png,1", ".png,1,2").replace(".png,2", ".png,2,1"),
            (),
        ),
        ("a table of zero bytes", by_image.replace("1.png", "1.png\0"), ()),
    ):
        may_read = name in ("a table of semicolons", "a table of tabs", "a table that names its separator", "UTF-16, a table")
        yield ranking(f"rankings of {name}", content, 2 if may_read else 3 if name == "UTF-16" else 0, *says, may_refuse=True)
    for name, content, num in (
        ("JSONL after a mark", "\ufeff" + plain, 3),
        ("JSONL with empty lines", "\n\n" + plain.replace("\n", "\n\n"), 3),
        ("JSONL of Windows' lines", plain.replace("\n", "\r\n"), 3),
        ("a list after a mark", "\ufeff" + listed, 3),
        ("a list called .txt", listed, 3),
        ("a table after a mark", "\ufeff" + by_image, 2),
        ("a table of Windows' lines", by_image.replace("\n", "\r\n"), 2),
        ("2,000 spaces first", " " * 2000 + plain, 3),
        ("keys that nobody knows", lines(*(comparison(n, seed=10**30, model={"a": [1]}) for n in range(3))), 3),
    ):
        yield ranking(f"rankings as {name}", content, num, file="hostile.txt")
    long = by_image.replace(PROMPTS[0], PROMPTS[0] + " white" * 30_000)
    yield ranking("rankings as a table with a cell of 200,000 letters", long, 2, file="hostile.csv", may_refuse=True)
    yield ranking("rankings with a line of 300 MB", lambda path: _stretched(path, plain), file="hostile.jsonl")
    yield ranking("a table with a line of 300 MB", lambda path: _stretched(path, by_image), file="hostile.csv")
    yield ranking("a key twice", lines(comparison(0)).replace('"ranks": [1, 2]', '"ranks": [1, 2], "ranks": [2, 1]'), 1, may_refuse=True)


def _stretched(path: Path, content: str) -> None:
    import os

    path.write_text(content)
    os.truncate(path, 300 << 20)


def _use_folder(folder: Path) -> None:
    (folder / "hostile").mkdir()
    for action in (comparisons.read, lambda path: comparisons.audit([path])):
        result = attempt(lambda action=action: action(folder / "hostile"))
        if not isinstance(result, Exception):
            raise FaultError(f"it is read: {result}")
        refused(result, "hostile")


# --- values ------------------------------------------------------------------------------------------------------------------------------


def values() -> Iterator[Case]:
    for name, changes in (
        ("one image", {"images": ["0.png"], "ranks": [1]}),
        ("no images", {"images": [], "ranks": []}),
        ("a rank too few", {"ranks": [1]}),
        ("a rank too many", {"ranks": [1, 2, 3]}),
        ("ranks from zero", {"ranks": [0, 1]}),
        ("negative ranks", {"ranks": [-1, -2]}),
        ("ranks of fractions", {"ranks": [1.5, 2.5]}),
        ("ranks of truth", {"ranks": [True, False]}),
        ("ranks of NaN", {"ranks": [float("nan"), 1]}),
        ("ranks of infinity", {"ranks": [float("inf"), 1]}),
        ("ranks of 400 digits", {"ranks": [10**400, 1]}),
        ("ranks of words", {"ranks": ["first", "second"]}),
        ("ranks of nothing", {"ranks": [None, None]}),
        ("ranks of lists", {"ranks": [[1], [2]]}),
        ("a text of ranks", {"ranks": "[1, 2]"}),
        ("ranks of objects", {"ranks": [{}, {}]}),
        ("images of numbers", {"images": [1, 2]}),
        ("images of nothing", {"images": [None, None]}),
        ("images of empty text", {"images": ["", ""]}),
        ("images of lists", {"images": [["0.png"], ["1.png"]]}),
        ("images of objects", {"images": [{"a": 1}, {"b": 2}]}),
        ("a text of images", {"images": "0.png,1.png"}),
        ("a prompt of numbers", {"prompt": 7}),
        ("a prompt of nothing", {"prompt": None}),
        ("an empty prompt", {"prompt": "  "}),
        ("a prompt of lists", {"prompt": ["a"]}),
        ("shares that are words", {"shares": ["a", "b"]}),
        ("shares of NaN", {"shares": [float("nan"), 1]}),
        ("shares that do not sum to one", {"shares": [0.9, 0.9]}),
        ("shares of 400 digits", {"shares": [10**400, 0]}),
        ("one share", {"shares": [1.0]}),
        ("an id twice", {"id": "c0"}),
    ):
        yield one_bad(f"rankings: {name}", comparison(1, **changes))
    for name, line in (
        ("cut", json.dumps(comparison(1))[:40]),
        ("not JSON", "{prompt: a}"),
        ("a list", "[1]"),
        ("null", "null"),
        ("two objects", json.dumps(comparison(1)) * 2),
        ("100,000 brackets", deep()),
        ("100,000 brackets in a value", json.dumps(comparison(1))[:-1] + ', "x": ' + deep() + "}"),
        ("a number of 5,000 digits", json.dumps(comparison(1))[:-1] + ', "x": ' + "9" * 5000 + "}"),
        ("zero bytes", "\0" * 100),
        ("other keys", json.dumps({"text": "a", "left": "0.png", "right": "1.png"})),
    ):
        yield one_bad(f"rankings: a line of {name}", line)
    for name, changes in (
        ("ranks of text", {"ranks": ["1", "2"]}),
        ("ranks of whole fractions", {"ranks": [1.0, 2.0]}),
        ("annotations of junk", {"annotations": [[1], "x", None, 7, [1, 2], {"rank": []}]}),
        ("annotations of a number", {"annotations": 7}),
        ("annotations of text", {"annotations": "none"}),
        ("annotations of 400 digits", {"annotations": [[10**400, 1]]}),
        ("a category of lists", {"category": [1]}),
        ("an id of numbers", {"id": 7}),
        ("an escape in the prompt", {"prompt": "a cat\x1b]0;title\x07"}),
        ("a prompt of 200,000 letters", {"prompt": "white " * 33_000}),
    ):
        yield ranking(f"rankings: {name}, which is odd", lines(comparison(0, **changes)), 1)
    for name, changes in (
        ("ranks far apart", {"ranks": [1, 10**15]}),
        ("an id of lists", {"id": [7]}),
        ("half a letter in the prompt", {"prompt": "a cat \ud83d"}),
        ("half a letter in an image", {"images": ["\ud83d.png", "1.png"]}),
        ("half a letter in the id", {"id": "\ud83d"}),
    ):
        yield ranking(f"rankings: {name}", lines(comparison(0, **changes)), 1, may_refuse=True, sound=None)
    many = [{"prompt": PROMPTS[0], "image": "0.png", "rank": n + 1} for n in range(1500)]
    yield ranking("rankings: 1,500 images of one prompt", lines(*many), 1, may_refuse=True, sound=False)


def pictures_of_rankings() -> Iterator[Case]:
    """An image of a comparison that cannot be opened is an error of the audit, and names the image."""
    for name, make in (*SPECIAL.items(), ("a folder", lambda path: path.mkdir())):
        yield Case(GROUP, f"{name} as an image of a comparison", functools.partial(_use_picture, make, "special.png"))
    for name, content in (("an empty file", b""), ("an HTML page", b"<html></html>"), ("half an image", encoded("PNG")[:300])):
        yield Case(GROUP, f"{name} as an image of a comparison", functools.partial(_use_picture, content, "special.png"))
    for image in (
        "/dev/zero",
        "/proc/self/pagemap",
        "https://127.0.0.1:1/special.png",
        "a\0b",
        "x" * 5000,
        "~/special.png",
        "\ud800.png",
        ".",
    ):
        yield Case(GROUP, f"{image[:20]!r} as an image of a comparison", functools.partial(_use_picture, None, image))
    for name, image in (
        ("a file that is not there", {"parquet": "gone.parquet", "row_group": 0, "row": 0, "column": "jpg"}),
        ("a file that is a device", {"parquet": "/dev/zero", "row_group": 0, "row": 0, "column": "jpg"}),
        ("a file that is no Parquet", {"parquet": "0.png", "row_group": 0, "row": 0, "column": "jpg"}),
        ("a row that is not there", {"parquet": "good.parquet", "row_group": 0, "row": 99, "column": "jpg"}),
        ("a negative row", {"parquet": "good.parquet", "row_group": 0, "row": -1, "column": "jpg"}),
        ("a row group that is not there", {"parquet": "good.parquet", "row_group": 99, "row": 0, "column": "jpg"}),
        ("a row of 400 digits", {"parquet": "good.parquet", "row_group": 0, "row": 10**400, "column": "jpg"}),
        ("a row of words", {"parquet": "good.parquet", "row_group": 0, "row": "a", "column": "jpg"}),
        ("a row of nothing", {"parquet": "good.parquet", "row_group": None, "row": None, "column": "jpg"}),
        ("a column that is not there", {"parquet": "good.parquet", "row_group": 0, "row": 0, "column": "png"}),
        ("a column of numbers", {"parquet": "good.parquet", "row_group": 0, "row": 0, "column": "n"}),
        ("a name of numbers", {"parquet": 7, "row_group": 0, "row": 0, "column": "jpg"}),
        ("a name of lists", {"parquet": [], "row_group": 0, "row": 0, "column": "jpg"}),
    ):
        yield Case(GROUP, f"an image in Parquet: {name}", functools.partial(_use_reference, image))


def _use_picture(content: Any, image: str, folder: Path) -> None:
    draw(folder)
    if content is not None:
        write(folder / image, content)
    path = write(folder / "hostile.jsonl", lines(comparison(0, images=["0.png", image]), comparison(1)))
    named = folder.name if image == "." else image
    _check_audit(path, named[:10] if named.isprintable() and named.isascii() else "")


def _use_reference(image: dict[str, Any], folder: Path) -> None:
    draw(folder)
    (folder / "good.parquet").write_bytes(parquet_bytes(pa.table({"jpg": [encoded("PNG")], "n": [7]})))
    _check_audit(write(folder / "hostile.jsonl", lines(comparison(0, images=["0.png", image]), comparison(1))), "")


def _check_audit(path: Path, names: str) -> None:
    for fast in (True, False):
        audit = attempt(lambda fast=fast: comparisons.audit([path], fast=fast))
        if isinstance(audit, Exception):
            refused(audit, path.name)
        elif not fast and (audit.sound or not any(names in example for finding in audit.findings for example in finding.examples)):
            raise FaultError(f"the audit does not name the image: {audit.findings}")
    ended = command("data", "check", str(path))
    if ended.code != 1 or len(ended.error.splitlines()) > 1:
        raise FaultError(f"`data check` ends with {ended}"[:500])
    ended = command("evaluate", str(path), "--model", MODEL, "--resamples", "10")
    if len(ended.error.splitlines()) > 1 or ended.code != 1:
        raise FaultError(f"`evaluate` ends with {ended}"[:500])


# --- Parquet ------------------------------------------------------------------------------------------------------------------------------


def parquet() -> Iterator[Case]:
    file = "hostile.parquet"
    rows = pa.Table.from_pylist([comparison(n) for n in range(3)])
    whole = parquet_bytes(rows)
    yield ranking("Parquet: whole", whole, 3, file=file)
    for part in (4, 50, len(whole) // 2, len(whole) - 1):
        yield ranking(f"Parquet: cut after {part}", whole[:part], file=file)
    for number, copy in enumerate(flips(whole, 8)):
        yield ranking(f"Parquet: a bit turned, {number}", copy, 3, file=file, may_refuse=True, sound=None)
    for name, changes in (
        ("ranks of fractions", {"ranks": [[0.5, 1.5]] * 3}),
        ("ranks of text", {"ranks": ["[1, 2]"] * 3}),
        ("ranks of nulls", {"ranks": pa.nulls(3)}),
        ("ranks of lists of nulls", {"ranks": [[None, None]] * 3}),
        ("prompts of numbers", {"prompt": [1, 2, 3]}),
        ("prompts of nulls", {"prompt": pa.nulls(3)}),
        ("prompts that are not UTF-8", {"prompt": pa.array([b"caf\xe9"] * 3).view(pa.string())}),
        ("images of numbers", {"images": [[1, 2]] * 3}),
        ("ids of nanoseconds", {"id": pa.array([1_700_000_000_123_456_789] * 3, pa.timestamp("ns"))}),
    ):
        changed = rows
        for key, value in changes.items():
            changed = changed.set_column(changed.schema.get_field_index(key), key, pa.array(value) if isinstance(value, list) else value)
        yield ranking(f"Parquet: {name}", parquet_bytes(changed), file=file)
    for name, column in (
        ("nanoseconds", pa.array([1_700_000_000_123_456_789] * 3, pa.timestamp("ns"))),
        ("years beyond any calendar", pa.array([2**62] * 3, pa.timestamp("us"))),
        ("a zone that nobody knows", pa.array([0] * 3, pa.timestamp("us", tz="Mars/Olympus"))),
        ("words that are not UTF-8", pa.array([b"caf\xe9"] * 3).view(pa.string())),
        ("maps of bytes", pa.array([[(b"a", b"\xff")]] * 3, pa.map_(pa.binary(), pa.binary()))),
    ):
        yield ranking(f"Parquet: beside them {name}", parquet_bytes(rows.append_column("x", column)), 3, file=file, may_refuse=True)
    yield ranking("Parquet: columns of one name", parquet_bytes(pa.table([["a"], ["b"]], names=["prompt", "prompt"])), file=file)
    yield ranking("Parquet: no rows", parquet_bytes(rows.slice(0, 0)), file=file)


def arrow() -> Iterator[Case]:
    """Streams as `save_to_disk` writes them, images within."""
    file = "hostile.arrow"
    big = [encoded("PNG", picture) for picture in pictures()[:2]]
    pairs = pa.table({"prompt": PROMPTS[:3], "chosen": [big[0]] * 3, "rejected": [big[1]] * 3})
    groups = pa.table({"prompt": PROMPTS[:3], "images": [big] * 3, "ranks": [[1, 2]] * 3})
    for name, table in (("pairs", pairs), ("lists", groups)):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        whole = sink.getvalue()
        yield ranking(f"Arrow, {name}: whole", whole, 3, file=file)
        for part in (4, 50, len(whole) // 2, len(whole) - 8, len(whole) - 1):
            yield ranking(f"Arrow, {name}: cut after {part}", whole[:part], file=file)
        # Where the schema and the offsets are: within an image only its decoder can tell.
        for number, copy in enumerate(flips(whole, 24, stop=1200)):
            yield ranking(f"Arrow, {name}: a bit turned, {number}", copy, 3, file=file, may_refuse=True, sound=None)
    yield Case(GROUP, "Arrow: a folder whose state is junk", _use_states)


def _use_states(folder: Path) -> None:
    saved = folder / "hostile"
    saved.mkdir()
    deepest = deep()
    for state in (
        "",
        "null",
        "[]",
        "{}",
        '{"_data_files": 7}',
        '{"_data_files": [{"filename": null}]}',
        deepest,
        "\0",
        '{"_data_files": []}',
    ):
        write(saved / "state.json", state)
        refused(attempt(lambda: comparisons.read(saved)), "hostile")
    for name in ("/dev/zero", "..", "state.json", "gone.arrow", "a\0b", "x" * 5000):
        write(saved / "state.json", json.dumps({"_data_files": [{"filename": name}]}))
        refused(attempt(lambda: comparisons.read(saved)))
    (saved / "state.json").unlink()
    for splits in ("null", '{"splits": 7}', '{"splits": ["/"]}', '{"splits": [".."]}', '{"splits": []}', '{"splits": ["gone"]}'):
        write(saved / "dataset_dict.json", splits)
        refused(attempt(lambda: comparisons.read(saved)), "hostile")


# --- prompts ------------------------------------------------------------------------------------------------------------------------------


def prompts() -> Iterator[Case]:
    listed = json.dumps(PROMPTS)
    for name, make in SPECIAL.items():
        for suffix in (".txt", ".json", ".jsonl", ".csv", ".parquet"):
            if name != "a file of nothing" or suffix == ".txt":
                yield Case(GROUP, f"prompts: {name} called {suffix}", functools.partial(_use_prompts, make, 0, f"hostile{suffix}"))
    for name, content, num, file in (
        ("a list", listed, 6, "hostile.json"),
        ("a list after a mark", "\ufeff" + listed, 6, "hostile.json"),
        ("lines after a mark", "\ufeff" + "\n".join(PROMPTS), 6, "hostile.txt"),
        ("nothing", "", 0, "hostile.json"),
        ("an empty list", "[]", 0, "hostile.json"),
        ("half a list", listed[:50], 0, "hostile.json"),
        ("numbers", "[1, 2]", 0, "hostile.json"),
        ("nulls", "[null]", 0, "hostile.json"),
        ("lists", "[[]]", 0, "hostile.json"),
        ("empty text", '[""]', 0, "hostile.json"),
        ("objects without a prompt", '[{"a": 1}]', 0, "hostile.json"),
        ("objects with a prompt of numbers", '[{"prompt": 1}]', 0, "hostile.json"),
        ("ids twice", '[{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}]', 0, "hostile.json"),
        ("a mapping", '{"a": "b"}', 0, "hostile.json"),
        ("100,000 brackets", deep(), 0, "hostile.json"),
        ("100,000 brackets, lines", '"a"\n' + deep(), 0, "hostile.jsonl"),
        ("a number of 5,000 digits", "[" + "9" * 5000 + "]", 0, "hostile.json"),
        ("half a letter", '["a \\ud83d"]', 0, "hostile.json"),
        ("Latin-1", b'["caf\xe9"]', 0, "hostile.json"),
        ("Latin-1 lines", b"caf\xe9\n", 0, "hostile.txt"),
        ("UTF-16 lines", "\n".join(PROMPTS).encode("utf-16"), 6, "hostile.txt"),
        ("a table of ragged rows", "prompt,id\na\n", 0, "hostile.csv"),
        ("a table with a cell of 200,000 letters", "prompt\n" + "a" * 200_000 + "\n", 0, "hostile.csv"),
        ("a table without prompts", "caption\na\n", 0, "hostile.csv"),
        ("a table of a header", "prompt\n", 0, "hostile.csv"),
        ("an image", encoded("PNG"), 0, "hostile.txt"),
        ("gzip", gzip.compress(listed.encode()), 0, "hostile.json"),
        ("a Parquet file cut", parquet_bytes(pa.table({"prompt": PROMPTS}))[:90], 0, "hostile.parquet"),
        ("a Parquet file of numbers", parquet_bytes(pa.table({"prompt": [1]})), 0, "hostile.parquet"),
        (
            "a Parquet file of words that are not UTF-8",
            parquet_bytes(pa.table({"prompt": pa.array([b"\xe9"]).view(pa.string())})),
            0,
            "hostile.parquet",
        ),
        ("an HTML page", "<!DOCTYPE html>\n<html></html>\n", 0, "hostile.json"),
        ("a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", 0, "hostile.csv"),
    ):
        yield Case(GROUP, f"prompts: {name}", functools.partial(_use_prompts, content, num, file))


def _use_prompts(content: Content, num: int, file: str, folder: Path) -> None:
    path = write(folder / file, content)
    found = attempt(lambda: prompt_sets.read_prompts(path))
    if isinstance(found, Exception):
        if num and "UTF-16" not in str(found) and "UTF-8" not in str(found):
            raise FaultError(f"it is refused: {type(found).__name__}: {found}")
        refused(found, file)
    elif len(found) != num or (num and [prompt.prompt for prompt in found] != PROMPTS):
        raise FaultError(f"{len(found)} prompts are read, and not {num}: {found}"[:300])


# --- saved rewards, and rankings of generators ----------------------------------------------------------------------------------------


def results() -> Iterator[Case]:
    row = {"id": "0", "prompt": PROMPTS[0], "rewards": [1.0, 2.0], "mean_score": 1.5}
    odd: dict[str, Any] = {
        f"{key} of {value!r:.20}": row | {key: value} for key in row for value in (None, [], {}, "x", True, [[]], 10**400)
    }
    del odd["id of 'x'"], odd["prompt of 'x'"], odd["id of True"]
    texts = {name: json.dumps([changed]) for name, changed in odd.items()}
    texts |= {f"no {key}": json.dumps([{k: v for k, v in row.items() if k != key}]) for key in ("id", "prompt", "rewards")}
    texts |= {
        "NaN": json.dumps([row | {"rewards": [float("nan")]}]),
        "another mean": json.dumps([row | {"mean_score": 9.0}]),
        "a prompt twice": json.dumps([row, row]),
        "nothing": "",
        "an empty list": "[]",
        "an object": "{}",
        "100,000 brackets": deep(),
        "half of it": json.dumps([row])[:40],
    }
    contents: dict[str, Content] = {**texts, **SPECIAL, "Latin-1": b'[{"id": "\xe9"}]'}
    for name, content in contents.items():
        yield Case(GROUP, f"saved rewards: {name}", functools.partial(_use_results, content))
    for name, ranking_file in {
        "numbers of text": '{"a": "1"}',
        "NaN": '{"a": NaN}',
        "400 digits": '{"a": ' + "9" * 400 + "}",
        "truth": '{"a": true}',
        "a list": "[1]",
        "other generators": '{"b": 1}',
        "100,000 brackets": deep(),
        "nothing": "",
        **SPECIAL,
    }.items():
        yield Case(GROUP, f"human ranking of generators: {name}", functools.partial(_use_human_ranking, ranking_file))


def _use_results(content: Content, folder: Path) -> None:
    write(folder / "scorer" / "hostile.json", content)
    found = attempt(lambda: read_results(folder))
    if not isinstance(found, Exception):
        raise FaultError(f"it is read: {found}")
    refused(found, "hostile.json")


def _use_human_ranking(content: Content, folder: Path) -> None:
    path = write(folder / "hostile.json", content)
    found = attempt(lambda: read_ranking(path, ["a"], True))
    if not isinstance(found, Exception):
        raise FaultError(f"it is read: {found}")
    refused(found, "hostile.json")
