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

import csv
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Union

from image_reward.errors import ComparisonError
from image_reward.types import Comparison

PathLike = Union[str, os.PathLike[str]]
Row = Mapping[str, Any]

_one_reader = threading.Lock()  # threads that miss the same row group read it once, not once each

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")


@dataclass(frozen=True)
class ParquetImage:
    """An image whose bytes are in a Parquet file; called, it returns them. Small and picklable."""

    path: str
    row_group: int
    row: int
    """Within the row group."""
    column: str

    def __call__(self) -> bytes:
        with _one_reader:
            column = _parquet_column(self.path, self.row_group, self.column)
        found = column[self.row].as_py()
        if not isinstance(found, bytes):
            raise ComparisonError(f"{self} holds no bytes but {type(found).__name__}")
        return found

    def __str__(self) -> str:
        return f"{self.path}, row group {self.row_group}, row {self.row + 1}, {self.column}"


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
    beside it. ``limit``: read only the first so many.

    Raises ``FileNotFoundError``, or ``ComparisonError`` that names what was looked for (unknown form) or the first row that is wrong: fewer
    than two images, lists of unequal length, a rank that is not an integer from 1, an id used twice, a prompt or image that is no text.
    """
    comparisons = []
    for record in islice(records(path, images), limit):
        if record.comparison is None:
            raise ComparisonError(f"{os.fspath(path)}, {record.where}: {record.problem} (`image-reward data check` lists all such rows)")
        comparisons.append(record.comparison)
    if not comparisons:
        raise ComparisonError(f"{os.fspath(path)} holds no comparison")
    return comparisons


def records(path: PathLike, images: PathLike | None = None) -> Iterator[Record]:
    """The comparisons of a file one by one, wrong ones included; raises only for the file as a whole. See ``read``."""
    path = Path(path)
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"no such folder of images: {os.fspath(images)}")
    files = _files(path)
    rows = chain.from_iterable(_rows(file, with_name=len(files) > 1) for file in files)
    first = next(rows, None)
    if first is None:
        raise ComparisonError(f"{path} holds no rows")
    form = _recognize(first.values, path)
    base = Path(images) if images is not None else form.image_folder(files[0], first.values)
    seen: dict[str, str] = {}
    for number, record in enumerate(form.read(chain([first], rows), base), start=1):
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
    """Write comparisons as JSONL, one a line, with image paths relative to the file.

    Images in Parquet files are referred to, not copied. Raises ``ComparisonError`` for images in memory: they have no name to write.
    """
    path = Path(path)
    with path.open("w", encoding="utf-8") as file:
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


# --- containers: a file -> rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A row and where it stands."""

    where: str
    values: Row
    image_in_file: Callable[[str], ParquetImage] | None = None
    """Column -> the image whose bytes the row holds there."""


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"no such file of comparisons: {path}")
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise ComparisonError(
            f"{path} is a folder without Parquet files; give a file of comparisons, or the folder of a data set's *.parquet"
        )
    return files


def _rows(file: Path, with_name: bool) -> Iterator[_Place]:
    prefix = f"{file.name}, " if with_name else ""
    with file.open("rb") as stream:
        start = stream.read(1024)
    if not start.strip():
        raise ComparisonError(f"{file} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ComparisonError(f"{file} is a Git LFS pointer, not the data; fetch it with `git lfs pull`")
    if start.startswith(b"PAR1"):
        return _parquet_rows(file, prefix)
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith("["):
        return _json_rows(file)
    if text.startswith("{"):
        return _jsonl_rows(file)
    return _csv_rows(file)


def _json_rows(file: Path) -> Iterator[_Place]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ComparisonError(f"{file} is not whole JSON: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ComparisonError(f"{file}, entry {number} is {row!r:.40}, not an object; {_LOOKED_FOR}")
        yield _Place(f"entry {number}", row)


def _jsonl_rows(file: Path) -> Iterator[_Place]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ComparisonError(f"{file}, line {number} is not JSON: {error}; JSONL has one whole object on each line") from None
            if not isinstance(row, dict):
                raise ComparisonError(f"{file}, line {number} is {row!r:.40}, not an object; {_LOOKED_FOR}")
            yield _Place(f"line {number}", row)


def _csv_rows(file: Path) -> Iterator[_Place]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            for row in reader:
                if None in row or None in row.values():
                    raise ComparisonError(
                        f"{file}, line {reader.line_num} has not as many cells as the header; quote cells that hold commas"
                    )
                yield _Place(f"line {reader.line_num}", row)
    except (UnicodeDecodeError, csv.Error):
        raise ComparisonError(f"{file} is neither Parquet nor UTF-8 text; {_LOOKED_FOR}") from None


def _parquet_rows(file: Path, prefix: str) -> Iterator[_Place]:
    parquet = _open_parquet(str(file))
    pictures = {"jpg_0", "jpg_1"}  # megabytes a row, which are read when an image is opened
    columns = [name for name in parquet.schema_arrow.names if name not in pictures]
    held = dict.fromkeys(pictures & set(parquet.schema_arrow.names))
    number = 0
    for group in range(parquet.num_row_groups):
        for index, row in enumerate(parquet.read_row_group(group, columns=columns).to_pylist()):
            number += 1
            yield _Place(f"{prefix}row {number}", row | held, partial(ParquetImage, str(file), group, index))


def _open_parquet(path: str) -> Any:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ComparisonError(f"{path} is a Parquet file, and reading it needs pyarrow: pip install 'image-reward[data]'") from None
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ComparisonError(f"{path} is not a whole Parquet file: {error}; download it again") from None


@lru_cache(maxsize=4)  # both images of a row, and of its neighbours, come from the same row group
def _parquet_column(path: str, row_group: int, column: str) -> Any:
    return _open_parquet(path).read_row_group(row_group, columns=[column]).column(0)


# --- forms: rows -> comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """One way in which people's rankings are written down."""

    name: str
    keys: tuple[str, ...]
    """What a row must have to be of this form."""
    read: Callable[[Iterable[_Place], Path], Iterator[Record]]
    lists: tuple[str, ...] = ()
    """Keys that hold lists."""
    image_key: str = ""
    """Where a row names its images, for published forms, whose layout of folders is known."""

    def matches(self, row: Row) -> bool:
        return all(key in row for key in self.keys) and all(isinstance(row[key], list) for key in self.lists)

    def image_folder(self, file: Path, row: Row) -> Path:
        """The file's folder, or a folder of the published layout in which the first image is.

        The hub's JSON files of ImageRewardDB stand deep inside the folder their paths start from; HPDv2 has its images in a folder named
        like the split.
        """
        first = row.get(self.image_key)
        first = first[0] if isinstance(first, list) and first else first
        if isinstance(first, str):
            for folder in (file.parent, file.parent / file.stem, *list(file.resolve().parents)[1:4]):
                if (folder / first).is_file():
                    return folder
        return file.parent


def _recognize(row: Row, path: Path) -> _Form:
    for form in _FORMS:
        if form.matches(row):
            return form
    raise ComparisonError(f"{path} is of no known form: its first row has {', '.join(map(str, row)) or 'nothing'}. {_LOOKED_FOR}")


def _read_lists(prompt_key: str, images_key: str, ranks_key: str, source: str, places: Iterable[_Place], base: Path) -> Iterator[Record]:
    """Rows that hold a whole comparison."""
    for place in places:
        row = place.values
        missing = [key for key in (prompt_key, images_key, ranks_key) if key not in row]
        if missing:
            yield Record(place.where, problem=f"{missing[0]} is missing")
            continue
        name, origin = _text(row.get("id")), source or _text(row.get("source"))
        where = _named(place.where, name)
        record = _checked(where, row[prompt_key], row[images_key], row[ranks_key], name, origin, base, row.get("shares"))
        yield _annotated(record, row.get("annotations") or [], category=_text(row.get("category")))


def _read_preferences(images_key: str, places: Iterable[_Place], base: Path) -> Iterator[Record]:
    """HPDv2 train: 1 marks the preferred image of the two."""
    for place in places:
        preferred = place.values.get("human_preference")
        if not (isinstance(preferred, list) and sorted(map(str, preferred)) == ["0", "1"]):
            yield Record(place.where, problem=f"human_preference is {preferred!r}, not [1, 0] or [0, 1]")
            continue
        ranks = [2 - int(value) for value in preferred]
        yield _checked(place.where, place.values.get("prompt"), place.values.get(images_key), ranks, "", "HPDv2", base)


def _read_average_ranks(places: Iterable[_Place], base: Path) -> Iterator[Record]:
    """HPDv2 test: smaller is better. A file that counts from 0 anywhere is taken to count from 0 everywhere."""
    rows = list(places)
    ranks = [place.values.get("rank") for place in rows]
    from_zero = any(isinstance(values, list) and 0 in values for values in ranks)
    for place, values in zip(rows, ranks, strict=True):
        if from_zero and isinstance(values, list):
            values = [value + 1 if isinstance(value, int) else value for value in values]
        record = _checked(place.where, place.values.get("prompt"), place.values.get("image_path"), values, "", "HPDv2", base)
        yield _annotated(record, place.values.get("raw_annotations") or place.values.get("raw_annotation") or [])


def _read_pick_a_pic(places: Iterable[_Place], base: Path) -> Iterator[Record]:
    """Pick-a-Pic: the labels are the shares of the two images, 0.5 each for a tie."""
    del base  # the images are in the file itself
    for place in places:
        labels = [place.values.get("label_0"), place.values.get("label_1")]
        if not all(isinstance(label, int | float) and 0 <= label <= 1 for label in labels) or not math.isclose(sum(labels), 1):  # type: ignore[arg-type]
            yield Record(place.where, problem=f"label_0 and label_1 are {labels[0]} and {labels[1]}; they must be shares that sum to 1")
            continue
        if place.image_in_file is None:
            yield Record(place.where, problem="jpg_0 and jpg_1 are bytes, which only a Parquet file can hold")
            continue
        a, b = map(float, labels)  # type: ignore[arg-type]
        pictures = [place.image_in_file("jpg_0"), place.image_in_file("jpg_1")]
        yield _checked(place.where, place.values.get("caption"), pictures, [1 + (a < b), 1 + (b < a)], "", "Pick-a-Pic", Path(), [a, b])


def _read_by_image(id_key: str, image_key: str, source: str, places: Iterable[_Place], base: Path) -> Iterator[Record]:
    """Rows that hold one image: those of one id, or without ids of one prompt, are a comparison."""
    groups: dict[tuple[str, object], list[_Place]] = {}
    for place in places:
        name = _text(place.values.get(id_key))
        groups.setdefault((name, None if name else place.values.get("prompt")), []).append(place)
    for (name, _), group in groups.items():
        first = group[0].values
        where = _named(group[0].where, name)
        prompts = {place.values.get("prompt") for place in group}
        if len(prompts) > 1:
            yield Record(where, problem=f"its rows have {len(prompts)} different prompts; one comparison has one")
            continue
        ratings = {
            key: tuple(_number(place.values.get(key)) for place in group) for key in RATINGS if any(key in place.values for place in group)
        }
        told = first.get("image_amount_in_total")
        warning = f"{len(group)} of {told} images are here" if told is not None and _number(told) != len(group) else ""
        pictures = [place.values.get(image_key) for place in group]
        ranks = [place.values.get("rank") for place in group]
        record = _checked(where, first.get("prompt"), pictures, ranks, name, source, base)
        yield replace(_annotated(record, category=_text(first.get("classification"))), warning=warning, ratings=ratings)


def _annotated(record: Record, annotations: object = (), category: str = "") -> Record:
    """The record with the category of its prompt, and what its annotators said one by one.

    An annotation is a list of ranks, or as in HPDv2 an object that holds it as its ``rank``. One that makes no sense is left out, which
    the record's warning says: the comparison itself does not rest on it.
    """
    if record.comparison is None:
        return record
    told = [row.get("rank", row.get("annotation")) if isinstance(row, dict) else row for row in _list(annotations)]
    num = len(record.comparison.images)
    shift = int(any(rank == 0 for ranks in told for rank in _list(ranks)))  # HPDv2 may count from 0
    good = [
        tuple(rank + shift for rank in ranks)
        for ranks in told
        if isinstance(ranks, list) and len(ranks) == num and all(type(rank) is int and rank >= 0 for rank in ranks)
    ]
    bad = len(_list(annotations)) - len(good) if isinstance(annotations, Sequence) else 1
    return replace(
        record,
        comparison=replace(record.comparison, category=category, annotations=tuple(good)),
        warning=f"{bad} annotations are not {num} integers, one for each image, and are left out" if bad else record.warning,
    )


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _named(where: str, name: str) -> str:
    return f"{where} (id {name})" if name else where


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _checked(
    where: str, prompt: object, images: object, ranks: object, name: str, source: str, base: Path, shares: object = None
) -> Record:
    """A comparison from what a row holds, or what is wrong with it."""
    problem = _problem(prompt, images, ranks, shares)
    if problem:
        return Record(where, problem=problem)
    assert isinstance(prompt, str)
    assert isinstance(images, Sequence)
    assert isinstance(ranks, Sequence)
    return Record(
        where,
        Comparison(
            prompt=prompt,
            images=tuple(_image(image, base) for image in images),
            ranks=tuple(int(float(rank)) for rank in ranks),
            id=name,
            source=source,
            shares=tuple(map(float, shares)) if isinstance(shares, Sequence) else None,
        ),
    )


def _problem(prompt: object, images: object, ranks: object, shares: object) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        return f"the prompt is {prompt!r:.40}, not text"
    for name, values in (("images", images), ("ranks", ranks)):
        if not isinstance(values, list):
            return f"the {name} are {values!r:.40}, not a list"
    assert isinstance(images, list)
    assert isinstance(ranks, list)
    if len(images) != len(ranks):
        return f"{len(images)} images and {len(ranks)} ranks: there must be one rank for each image"
    if len(images) < 2:
        return f"a comparison has at least two images, not {len(images)}"
    for number, image in enumerate(images, start=1):
        if not _is_image(image):
            return f"image {number} is {image!r:.60}, not a path"
    for number, rank in enumerate(ranks, start=1):
        if isinstance(rank, bool) or not _number(rank).is_integer() or _number(rank) < 1:
            return f"the rank of image {number} is {rank!r:.40}; ranks are integers from 1, 1 for the best"
    if shares is None:
        return ""
    if not (isinstance(shares, list) and len(shares) == len(images)):
        return f"the shares are {shares!r:.40}, not one number for each image"
    values = [_number(share) for share in shares]
    if not (all(0 <= value <= 1 for value in values) and math.isclose(sum(values), 1, abs_tol=1e-6)):
        return f"the shares are {shares!r:.60}; they must be in [0, 1] and sum to 1"
    return ""


def _is_image(image: object) -> bool:
    if isinstance(image, dict):
        return set(image) == {"parquet", "row_group", "row", "column"}
    return isinstance(image, ParquetImage) or (isinstance(image, str) and bool(image.strip()))


def _image(image: Any, base: Path) -> str | ParquetImage:
    if isinstance(image, ParquetImage):
        return image
    if isinstance(image, dict):
        return ParquetImage(str(base / image["parquet"]), int(image["row_group"]), int(image["row"]), str(image["column"]))
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

_LOOKED_FOR = "Looked for: " + "; ".join(f"{form.name} ({', '.join(form.keys)})" for form in _FORMS)
