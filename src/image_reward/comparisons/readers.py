"""Files of human rankings -> ``Comparison``. A file's form is recognised by its content, never by its name.

A file is a container of rows (a JSON list, JSONL, CSV or Parquet), and the names in its rows say what they are:

======================  =======================================================  ==================================================
form                    a row has                                                published as
======================  =======================================================  ==================================================
ImageRewardDB           image_path, prompt_id, prompt, rank, one row per image   the hub data set's metadata-SPLIT.parquet and JSON
ImageRewardDB list      id, prompt, generations [..], ranking [..]               test.json of the ImageReward repository
HPDv2 train             prompt, file_path [2], human_preference [2] of 0 and 1   train.json of HPDv2
HPDv2 test              prompt, image_path [..], rank [..], and what each        test.json of HPDv2
                        annotator said in raw_annotations
Pick-a-Pic              caption, jpg_0, jpg_1 (bytes), label_0, label_1          the hub data set's Parquet files
ours, by comparison     prompt, images [..], ranks [..], optional id, shares,    written by `image-reward data split`
                        category, annotations [[..], ..]
ours, by image          prompt, image, rank, optional id                         tables
======================  =======================================================  ==================================================

Images are not opened here. A path is relative to the folder of the file, or to ``images``; bytes stay in their Parquet file.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Union

from image_reward.errors import ComparisonError, RowsError
from image_reward.files import written_whole
from image_reward.rows import ParquetImage, Row, is_address, read_rows
from image_reward.types import LONGEST_PROMPT, Comparison

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")

MOST_IMAGES = 1000
"""Of one comparison. All that is done with it grows with the number of pairs, and no annotator ranks this many."""

_HIGHEST_RANK = 10**9

PathLike = Union[str, os.PathLike[str]]


@dataclass(frozen=True)
class Record:
    """One comparison of a file with where it stands, or what is wrong there."""

    where: str
    """Its place in the file, for messages: a line, row, entry or id."""
    comparison: Comparison | None = None
    """None where ``problem`` says why there is none."""
    problem: str = ""
    warning: str = ""
    """What is odd, but does not keep the comparison from being used."""
    ratings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Further ratings of the images, higher is better; NaN where there is none."""


def read(path: PathLike, images: PathLike | None = None, limit: int | None = None) -> list[Comparison]:
    """The comparisons of a file, or of a folder of Parquet files of one data set, in their order.

    ``images``: the folder that image paths are relative to; by default the file's own folder, or where the published data set has them
    beside it. ``limit``: read at most this many.

    Raises ``FileNotFoundError``, or ``ComparisonError`` that names what was looked for (unknown form) or the first row that is wrong: fewer
    than two images or more than ``MOST_IMAGES``, lists of unequal length, a rank that is not an integer from 1, an id used twice, a prompt
    that is not text, an image that is not a path.
    """
    comparisons = []
    for record in islice(records(path, images), limit):
        if record.comparison is None:
            raise ComparisonError(f"{os.fspath(path)}, {record.where}: {record.problem} (`image-reward data check` lists all such rows)")
        comparisons.append(record.comparison)
    if not comparisons:
        raise ComparisonError(f"{os.fspath(path)} has no comparisons")
    return comparisons


def records(path: PathLike, images: PathLike | None = None) -> Iterator[Record]:
    """The comparisons of a file one by one, wrong ones included; raises only for the file as a whole. See ``read``."""
    if is_address(os.fspath(path)) and not os.path.exists(path):  # noqa: PTH110 - a Path would make s3:/ of s3://
        raise FileNotFoundError(f"{os.fspath(path)} is an address, and only files on this machine are read; download it first")
    if images is not None and not os.path.isdir(images):  # noqa: PTH112 - unlike Path.is_dir, False for what cannot be a path
        raise FileNotFoundError(f"no such folder of images: {os.fspath(images)}")
    path = Path(path)
    files = _files(path)
    rows = chain.from_iterable(_rows(file, prefix=f"{file.name}, " if len(files) > 1 else "") for file in files)
    first = next(rows, None)
    if first is None:
        raise ComparisonError(f"{path} has no rows")
    form = _recognize(first.values, path)
    base = Path(images) if images is not None else form.image_folder(files[0], first.values)
    seen: dict[str, str] = {}
    for number, record in enumerate(form.records(chain([first], rows), base), start=1):
        if record.comparison is None:
            yield record
            continue
        name = record.comparison.id or f"#{number}"
        if name in seen:
            yield Record(record.where, problem=f"the id {name!r} is used twice; it was seen at {seen[name]}")
            continue
        seen[name] = record.where
        yield replace(record, comparison=replace(record.comparison, id=name))


def write(comparisons: Iterable[Comparison], path: PathLike) -> None:
    """Write comparisons as JSONL, one a line, with image paths relative to the file, which appears whole or not at all.

    Images in Parquet files are referred to, not copied. Raises ``ComparisonError`` for images in memory: they have no name to write.
    """
    path = Path(path)
    # A file name that is not UTF-8 holds surrogates; as a backslash and its number each is JSON, and read again as it was.
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for comparison in comparisons:
            row: dict[str, Any] = {"id": comparison.id, "prompt": comparison.prompt}
            row["images"] = [_reference(image, path.parent, comparison.id) for image in comparison.images]
            row["ranks"] = list(comparison.ranks)
            if comparison.shares is not None:
                row["shares"] = list(comparison.shares)
            for key in ("source", "category", "annotations"):
                if getattr(comparison, key):
                    row[key] = getattr(comparison, key)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _reference(image: object, folder: Path, name: str) -> object:
    if isinstance(image, ParquetImage):
        place = {"row_group": image.row_group, "row": image.row, "column": image.column}
        return {"parquet": os.path.relpath(image.path, folder)} | place
    if isinstance(image, str | os.PathLike):
        return Path(os.path.relpath(image, folder)).as_posix()
    raise ComparisonError(f"comparison {name!r} holds a {type(image).__name__} in memory; only images in files can be written")


def _files(path: Path) -> list[Path]:
    if not os.path.isdir(path):  # noqa: PTH112
        return [path]
    files = sorted(path.glob("*.parquet"))
    if not files:
        saved = " (a data set that `save_to_disk` wrote: write it with `to_parquet`)" if (path / "dataset_info.json").exists() else ""
        raise ComparisonError(
            f"{path} is a folder without Parquet files{saved}; use a file of comparisons, or the folder of a data set's *.parquet"
        )
    return files


def _rows(file: Path, prefix: str) -> Iterator[Row]:
    try:
        for row in read_rows(file, _COLUMNS, ("jpg_0", "jpg_1", "image")):
            yield replace(row, where=prefix + row.where) if prefix else row
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file of comparisons: {file}") from None
    except RowsError as error:
        raise ComparisonError(str(error)) from None


# --- forms: rows -> comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """One way in which human rankings are written down."""

    name: str
    keys: tuple[str, ...]
    """What a row must have to be of this form."""
    read: Callable[[Iterable[Row], Path], Iterator[Record]]
    lists: tuple[str, ...] = ()
    """Keys that hold lists."""
    image_key: str = ""
    """Where a row names its images, for published forms, whose layout of folders is known."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return all(key in row for key in self.keys) and all(isinstance(row[key], list) for key in self.lists)

    def records(self, rows: Iterable[Row], base: Path) -> Iterator[Record]:
        """The comparisons of the rows, and a problem for each row that has not the keys of this form."""
        problems: list[Record] = []

        def whole() -> Iterator[Row]:
            for row in rows:
                missing = [key for key in self.keys if key not in row.values]
                if missing:
                    problems.append(Record(row.where, problem=f"{missing[0]} is missing; a row has {', '.join(self.keys)}, as the first"))
                else:
                    yield row

        for record in self.read(whole(), base):
            yield from problems
            problems.clear()
            yield record
        yield from problems

    def image_folder(self, file: Path, row: Mapping[str, Any]) -> Path:
        """The file's folder, or a folder of the published layout in which the first image is.

        The hub's JSON files of ImageRewardDB stand deep inside the folder their paths start from; HPDv2 has its images in a folder named
        like the split.
        """
        first = row.get(self.image_key)
        first = first[0] if isinstance(first, list) and first else first
        if isinstance(first, str):
            for folder in (file.parent, file.parent / file.stem, *list(file.resolve().parents)[1:4]):
                if os.path.isfile(folder / first):  # noqa: PTH113 - unlike Path.is_file, False for what cannot be a path
                    return folder
        return file.parent


def _recognize(row: Mapping[str, Any], path: Path) -> _Form:
    forms = [form for form in _FORMS if form.matches(row)]
    if len({form.name for form in forms if form.name.startswith("ours")}) > 1:
        raise ComparisonError(f"{path} mixes two forms: its first row has images and ranks, and image and rank; keep one of them")
    if forms:
        return forms[0]
    names = ", ".join(str(name) if str(name) == str(name).strip() else repr(name) for name in row) or "nothing"
    raise ComparisonError(f"{path} is of no known form: its first row has {names:.1000}. {_LOOKED_FOR}")


def _read_lists(prompt_key: str, images_key: str, ranks_key: str, source: str, rows: Iterable[Row], base: Path) -> Iterator[Record]:
    """Rows that hold a whole comparison."""
    for row in rows:
        values = row.values
        origin = source or _label(values.get("source"))
        ranked = values[prompt_key], values[images_key], values[ranks_key]
        record = _checked(row.where, values.get("id"), *ranked, origin, base, values.get("shares"))
        yield _annotated(record, values.get("annotations") or [], category=_label(values.get("category")))


def _read_preferences(images_key: str, rows: Iterable[Row], base: Path) -> Iterator[Record]:
    """HPDv2 train: 1 marks the preferred image of the two."""
    ranks_of: dict[tuple[int | None, ...], list[int]] = {(1, 0): [1, 2], (0, 1): [2, 1]}
    for row in rows:
        preferred = row.values["human_preference"]
        ranks = ranks_of.get(tuple(_whole(value, lowest=0) for value in _list(preferred)))
        if ranks is None:
            yield Record(row.where, problem=f"human_preference is {_short(preferred)}, not [1, 0] or [0, 1]")
            continue
        yield _checked(row.where, None, row.values["prompt"], row.values[images_key], ranks, "HPDv2", base)


def _read_average_ranks(rows: Iterable[Row], base: Path) -> Iterator[Record]:
    """HPDv2 test: smaller is better. A file that counts from 0 anywhere is taken to count from 0 everywhere."""
    rows = list(rows)
    from_zero = any(_whole(rank, lowest=0) == 0 for row in rows for rank in _list(row.values["rank"]))
    for row in rows:
        ranks = row.values["rank"]
        if from_zero and isinstance(ranks, list):
            ranks = [rank if (whole := _whole(rank, lowest=0)) is None else whole + 1 for rank in ranks]
        record = _checked(row.where, None, row.values["prompt"], row.values["image_path"], ranks, "HPDv2", base)
        yield _annotated(record, row.values.get("raw_annotations") or row.values.get("raw_annotation") or [])


def _read_pick_a_pic(rows: Iterable[Row], base: Path) -> Iterator[Record]:
    """Pick-a-Pic: the labels are the shares of the two images, 0.5 each for a tie."""
    del base  # the images are in the file itself
    for row in rows:
        a, b = _number(row.values["label_0"]), _number(row.values["label_1"])
        pictures = [row.values["jpg_0"], row.values["jpg_1"]]
        if not (0 <= a <= 1 and 0 <= b <= 1 and math.isclose(a + b, 1)):
            labels = f"{_short(row.values['label_0'])} and {_short(row.values['label_1'])}"
            yield Record(row.where, problem=f"label_0 and label_1 are {labels}; they must be shares that sum to 1")
        elif not all(isinstance(picture, ParquetImage) for picture in pictures):
            yield Record(row.where, problem="jpg_0 and jpg_1 are not bytes, which only a Parquet file can hold")
        else:
            yield _checked(row.where, None, row.values["caption"], pictures, [1 + (a < b), 1 + (b < a)], "Pick-a-Pic", Path(), [a, b])


def _read_by_image(id_key: str, image_key: str, source: str, rows: Iterable[Row], base: Path) -> Iterator[Record]:
    """Rows that hold one image: those of one id, or without ids of one prompt, are a comparison."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if problem := _id_problem(row.values.get(id_key)) or _prompt_problem(row.values["prompt"]):
            yield Record(row.where, problem=problem)
            continue
        name = _id(row.values.get(id_key))
        groups.setdefault((name, "" if name else row.values["prompt"]), []).append(row)
    for (name, _), group in groups.items():
        first = group[0]
        prompts = {row.values["prompt"] for row in group}
        if len(prompts) > 1:
            problem = f"its rows have {len(prompts)} different prompts; one comparison has one"
            yield Record(_named(first.where, name), problem=problem)
            continue
        ratings = {key: tuple(_number(row.values.get(key)) for row in group) for key in RATINGS if any(key in row.values for row in group)}
        total = _number(first.values.get("image_amount_in_total"))
        warning = f"{len(group)} of {total:g} images are here" if not math.isnan(total) and total != len(group) else ""
        pictures = [row.values[image_key] for row in group]
        ranks = [row.values["rank"] for row in group]
        record = _checked(first.where, name, first.values["prompt"], pictures, ranks, source, base)
        yield replace(_annotated(record, category=_label(first.values.get("classification"))), warning=warning, ratings=ratings)


def _annotated(record: Record, annotations: object = (), category: str = "") -> Record:
    """The record with the category of its prompt, and the ranks of its annotators one by one.

    An annotation is a list of ranks, or as in HPDv2 an object that holds it as its ``rank``. One that makes no sense is left out, which
    the record's warning says: the comparison itself does not rest on it.
    """
    if record.comparison is None:
        return record
    ranks_of = [row.get("rank", row.get("annotation")) if isinstance(row, dict) else row for row in _list(annotations)]
    lists = [[_whole(rank, lowest=0) for rank in _list(ranks)] for ranks in ranks_of]
    num = len(record.comparison.images)
    shift = int(any(0 in ranks for ranks in lists))  # HPDv2 may count from 0
    good = [tuple(rank + shift for rank in ranks if rank is not None) for ranks in lists if len(ranks) == num and None not in ranks]
    bad = len(lists) - len(good) if isinstance(annotations, Sequence) else 1
    return replace(
        record,
        comparison=replace(record.comparison, category=category, annotations=tuple(good)),
        warning=f"{bad} annotations are not {num} integers, one for each image, and are left out" if bad else record.warning,
    )


# --- values: whatever stands in a row -> what it may be ------------------------------------------------------------------------------


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _short(value: object) -> str:
    return reprlib.repr(value)  # bounded in length and depth: a value may be nested as deeply as its parser allows


def _label(value: object) -> str:
    """A category or source: what cannot be encoded is replaced, since nothing is looked up by it."""
    text = "" if value is None else value if isinstance(value, str) else _short(value)
    return text.encode(errors="replace").decode()


def _id(value: object) -> str:
    return "" if value is None or value != value else str(value)  # NaN is how pandas writes that there is none


def _id_problem(value: object) -> str:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        return f"the id is {_short(value)}, not text or a number"
    return "the id is not text: " + _SURROGATE if _has_surrogate(_id(value)) else ""


def _prompt_problem(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        return f"the prompt is {_short(value)}, not text"
    if len(value) > LONGEST_PROMPT:
        return f"the prompt has {len(value):,} characters; at most {LONGEST_PROMPT:,} are read as a prompt"
    return "the prompt is not text: " + _SURROGATE if _has_surrogate(value) else ""


_SURROGATE = "it holds half of a surrogate pair, so it was cut or converted badly"


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def _named(where: str, name: str) -> str:
    return f"{where} (id {name})" if name else where


def _number(value: object) -> float:
    """Any number; NaN for what is none and for what is out of range."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _whole(value: object, lowest: int = 1) -> int | None:
    """A whole number from ``lowest``, written as 2, 2.0 or "2"; None for all else."""
    if isinstance(value, str):
        value = float(value) if re.fullmatch(r"\s*[0-9]{1,10}(\.0*)?\s*", value) else None
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= _HIGHEST_RANK or value != int(value):
        return None
    return int(value)


def _checked(
    where: str, name: object, prompt: object, images: object, ranks: object, source: str, base: Path, shares: object = None
) -> Record:
    """A comparison from the values of a row, or what is wrong with them."""
    if problem := _id_problem(name):
        return Record(where, problem=problem)
    where = _named(where, _id(name))
    if problem := _prompt_problem(prompt) or _ranking_problem(images, ranks) or _shares_problem(shares, _list(images)):
        return Record(where, problem=problem)
    assert isinstance(prompt, str)
    return Record(
        where,
        Comparison(
            prompt=prompt,
            images=tuple(_image(image, base) for image in _list(images)),
            ranks=tuple(rank for rank in map(_whole, _list(ranks)) if rank is not None),
            id=_id(name),
            source=source,
            shares=tuple(map(float, _list(shares))) if shares is not None else None,
        ),
    )


def _ranking_problem(images: object, ranks: object) -> str:
    for name, values in (("images", images), ("ranks", ranks)):
        if not isinstance(values, list):
            return f"the {name} are {_short(values)}, not a list"
    images, ranks = _list(images), _list(ranks)
    if len(images) != len(ranks):
        return f"{len(images)} images and {len(ranks)} ranks: there must be one rank for each image"
    if not 2 <= len(images) <= MOST_IMAGES:
        return f"a comparison has at {'least two' if len(images) < 2 else f'most {MOST_IMAGES:,}'} images, not {len(images):,}"
    for number, image in enumerate(images, start=1):
        if problem := _image_problem(image):
            return f"image {number} is {_short(image)}, {problem}"
    for number, rank in enumerate(ranks, start=1):
        if _whole(rank) is None:
            return f"the rank of image {number} is {_short(rank)}; ranks are integers from 1, 1 for the best"
    return ""


def _shares_problem(shares: object, images: Sequence[object]) -> str:
    if shares is None:
        return ""
    if not (isinstance(shares, list) and len(shares) == len(images)):
        return f"the shares are {_short(shares)}, not one number for each image"
    values = [_number(share) for share in shares]
    if not (all(0 <= value <= 1 for value in values) and math.isclose(sum(values), 1, abs_tol=1e-6)):
        return f"the shares are {_short(shares)}; they must be in [0, 1] and sum to 1"
    return ""


def _image_problem(image: object) -> str:
    if isinstance(image, ParquetImage):
        return ""
    if isinstance(image, dict):
        kinds = {"parquet": str, "row_group": int, "row": int, "column": str}  # as `write` refers to an image in a Parquet file
        refers = image.keys() == kinds.keys() and all(type(image[key]) is kind for key, kind in kinds.items())
        refers = refers and min(image["row_group"], image["row"]) >= 0  # Arrow would count from the end
        return "" if refers else "not a path"
    if not isinstance(image, str) or not image.strip():
        return "not a path"
    if is_address(image):
        return "an address, and only files on this machine are read: download it and name the file"
    try:
        return "not a path: it holds a NUL character" if b"\0" in os.fsencode(image) else ""
    except UnicodeEncodeError:
        return "not a path: " + _SURROGATE


def _image(image: Any, base: Path) -> str | ParquetImage:
    if isinstance(image, ParquetImage):
        return image
    if isinstance(image, dict):
        return ParquetImage(str(base / image["parquet"]), image["row_group"], image["row"], image["column"])
    return str(base / image)


_FORMS = (
    _Form(
        "ImageRewardDB list",
        ("prompt", "generations", "ranking"),
        partial(_read_lists, "prompt", "generations", "ranking", "ImageRewardDB"),
        image_key="generations",
    ),
    _Form(
        "ImageRewardDB",
        ("image_path", "prompt_id", "prompt", "rank"),
        partial(_read_by_image, "prompt_id", "image_path", "ImageRewardDB"),
        image_key="image_path",
    ),
    _Form("ImageRewardDB", ("image", "prompt_id", "prompt", "rank"), partial(_read_by_image, "prompt_id", "image", "ImageRewardDB")),
    _Form(
        "HPDv2 train",
        ("prompt", "file_path", "human_preference"),
        partial(_read_preferences, "file_path"),
        ("human_preference",),
        "file_path",
    ),
    _Form(
        "HPDv2 train",
        ("prompt", "image_path", "human_preference"),
        partial(_read_preferences, "image_path"),
        ("human_preference",),
        "image_path",
    ),
    _Form("HPDv2 test", ("prompt", "image_path", "rank"), _read_average_ranks, ("image_path", "rank"), "image_path"),
    _Form("Pick-a-Pic", ("caption", "jpg_0", "jpg_1", "label_0", "label_1"), _read_pick_a_pic),
    _Form("ours, by comparison", ("prompt", "images", "ranks"), partial(_read_lists, "prompt", "images", "ranks", "")),
    _Form("ours, by image", ("prompt", "image", "rank"), partial(_read_by_image, "id", "image", "")),
)

_COLUMNS = {key for form in _FORMS for key in form.keys} | {
    *("id", "source", "shares", "category", "annotations", "raw_annotations", "raw_annotation"),
    *("classification", "image_amount_in_total", *RATINGS),
}

_LOOKED_FOR = "Looked for: " + "; ".join(f"{form.name} ({', '.join(form.keys)})" for form in _FORMS)
