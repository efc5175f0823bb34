"""Files of human rankings -> ``Comparison``, and comparisons -> files. Which forms are read: see ``forms``.

A file is a container of rows: JSON, JSONL, CSV, Parquet or an Arrow stream. A folder is one of files: the Parquet files of a data set, or
what ``save_to_disk`` of ``datasets`` wrote. Images are not opened here. A path is relative to the folder of the file, or to ``images``;
bytes stay in their file.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

from image_reward.addresses import Address, PathLike, scheme
from image_reward.comparisons.forms import COLUMNS, IMAGE_COLUMNS, LIST_KEY, RATING, Record, recognize
from image_reward.errors import ComparisonError, ComparisonWarning, RowsError
from image_reward.files import LARGEST_JSON, written_whole
from image_reward.image_files import read_image_file
from image_reward.images import open_image
from image_reward.rows import ParquetImage, Row, read_rows
from image_reward.types import Comparison


def read(path: PathLike | Address, images: PathLike | None = None, limit: int | None = None, both_bad: bool = False) -> list[Comparison]:
    """The comparisons of a file, or of a folder of Parquet or Arrow files of one data set, here or in an object store, in their order.

    ``images``: the folder that image paths are relative to; by default the file's own folder, or where the published data set has them
    beside it. ``limit``: read at most this many. Rows that say nothing of which image is better, such as votes that both are bad, are left
    out with one ``ComparisonWarning`` that counts them; with ``both_bad``, those votes are ties that are marked as such.

    Raises ``FileNotFoundError``, or ``ComparisonError`` that names what was looked for (unknown form) or the first row that is wrong: fewer
    than two images or more than ``MOST_IMAGES``, lists of unequal length, a rank that is not an integer from 1, an id used twice, a prompt
    that is not text, an image that is not a path.
    """
    comparisons: list[Comparison] = []
    left_out: list[Record] = []
    for record in records(path, images):
        if limit is not None and len(comparisons) >= limit:
            break
        comparison = record.comparison or (record.both_bad if both_bad else None)
        if comparison is not None:
            comparisons.append(comparison)
        elif record.left_out:
            left_out.append(record)
        else:
            raise ComparisonError(f"{path}, {record.where}: {record.problem} (`image-reward data check` lists all such rows)")
    if left_out:
        first = left_out[0]
        num = f"{len(left_out):,} rows are" if len(left_out) > 1 else "a row is"
        message = f"{path}: {num} left out{', the first' if len(left_out) > 1 else ''} at {first.where}: {first.left_out}"
        warnings.warn(message, ComparisonWarning, stacklevel=2)
    if not comparisons:
        raise ComparisonError(f"{path} has no comparisons")
    return comparisons


def records(path: PathLike | Address, images: PathLike | None = None) -> Iterator[Record]:
    """The comparisons of a file one by one, wrong ones included; raises only for the file as a whole. See ``read``."""
    address, folder = Address.parse(path), None if images is None else Address.parse(images)
    if folder is not None and folder.kind() != "folder":
        raise FileNotFoundError(f"no such folder of images: {folder}")
    files = _files(address)
    rows = chain.from_iterable(_rows(file, prefix=f"{file.name}, " if len(files) > 1 else "") for file in files)
    first = next(rows, None)
    if first is None:
        raise ComparisonError(f"{address} has no rows")
    form = recognize(first.values, address)
    base = folder or form.image_folder(files[0], first.values)
    seen: dict[str, str] = {}
    for number, record in enumerate(form.records(chain([first], rows), base), start=1):
        comparison = record.comparison or record.both_bad
        if comparison is None:
            yield record
            continue
        name = comparison.id or f"#{number}"
        if name in seen:
            yield Record(record.where, problem=f"the id {name!r} is used twice; it was seen at {seen[name]}")
            continue
        seen[name] = record.where
        named = replace(comparison, id=name)
        yield replace(record, comparison=named) if record.comparison else replace(record, both_bad=named)


def write(comparisons: Iterable[Comparison], path: PathLike) -> None:
    """Write comparisons as JSONL, one a line, with image paths relative to the file, which appears whole or not at all.

    Images in Parquet files are referred to, not copied; ``convert`` copies them. Raises ``ComparisonError`` for images in memory: they have
    no name to write.
    """
    path = Address.parse(path).local
    with written_whole(path) as temporary:
        write_lines(map(Record.of, comparisons), temporary, lambda image, name: _reference(image, path.parent, name))


def write_pick_a_pic(comparisons: Iterable[Comparison], path: PathLike) -> None:
    """Write pairs as Parquet in the form of Pick-a-Pic, images included: what diffusers' Diffusion-DPO trainer and others of its kind read.

    The columns are caption, jpg_0 and jpg_1 (the bytes of image files; images in memory become PNG), and label_0 and label_1: 1 for the
    better image, 0 for the other, 0.5 for both of a tie. The file appears whole or not at all.

    Raises ``ComparisonError`` for rankings of more than two images, ``RowsError`` without pyarrow, and what ``open_image`` raises.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ModuleNotFoundError:
        raise RowsError("writing Parquet needs pyarrow: pip install 'image-reward[data]'") from None
    label, image = pyarrow.float64(), pyarrow.binary()
    schema = pyarrow.schema(
        {"caption": pyarrow.string(), "jpg_0": image, "jpg_1": image, "label_0": label, "label_1": label}  # in the order of the data set
    )
    rows = map(_pick_a_pic_row, comparisons)
    with written_whole(Address.parse(path).local) as temporary, ParquetWriter(temporary, schema) as writer:
        while group := list(islice(rows, 32)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


def _pick_a_pic_row(comparison: Comparison) -> dict[str, Any]:
    if len(comparison.images) != 2:
        raise ComparisonError(
            f"{comparison.prompt!r:.60} has a ranking of {len(comparison.images)} images, and the form of Pick-a-Pic holds pairs"
        )
    first, second = comparison.ranks
    share = 0.5 if first == second else float(first < second)
    a, b = map(_image_file, comparison.images)
    return {"caption": comparison.prompt, "jpg_0": a, "jpg_1": b, "label_0": share, "label_1": 1 - share}


def _image_file(image: Any) -> bytes:
    """The bytes of an image's file; of an image in memory, those of a PNG."""
    image = image() if callable(image) else image
    if isinstance(image, str | os.PathLike | Address):
        content = read_image_file(image)
        open_image(content)  # raises what is wrong with it
        return content
    buffer = BytesIO()
    open_image(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_lines(records: Iterable[Record], path: Path, reference: Callable[[object, str], object]) -> None:
    """``reference`` gives what is written of an image of the comparison of that id."""
    # A file name that is not UTF-8 holds surrogates; as a backslash and its number each is JSON, and read again as it was.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for record in records:
            comparison = record.comparison
            assert comparison is not None
            row: dict[str, Any] = {"id": comparison.id, "prompt": comparison.prompt}
            row["images"] = [reference(image, comparison.id) for image in comparison.images]
            row["ranks"] = list(comparison.ranks)
            if comparison.shares is not None:
                row["shares"] = list(comparison.shares)
            for key in ("source", "category", "annotations"):
                if getattr(comparison, key):
                    row[key] = getattr(comparison, key)
            ratings = dict(record.ratings) | ({RATING: comparison.ratings} if comparison.ratings else {})
            if ratings:
                row["ratings"] = {key: [None if math.isnan(rating) else rating for rating in ratings[key]] for key in ratings}
            if comparison.both_bad:
                row["both_bad"] = True
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _reference(image: object, folder: Path, name: str) -> object:
    if isinstance(image, ParquetImage):
        place = {"row_group": image.row_group, "row": image.row, "column": image.column}
        return {"parquet": relative(image.path, folder, name)} | place | ({} if image.index is None else {"index": image.index})
    return relative(image, folder, name)


def relative(image: object, folder: Path, name: str) -> str:
    """The path of an image file from a folder, by whatever links either is reached; of an object store the whole address."""
    if isinstance(image, str) and scheme(image):
        return image
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()
    raise ComparisonError(f"comparison {name!r} holds a {type(image).__name__} in memory; only images in files can be written")


# --- folders -----------------------------------------------------------------------------------------------------------------------------


def splits(path: PathLike | Address) -> dict[str, Address]:
    """The splits of a ``DatasetDict`` that ``save_to_disk`` wrote, by name; empty for all else."""
    folder = Address.parse(path)
    file = folder.join("dataset_dict.json")
    if file.kind() != "file":
        return {}
    values = file.read_json(LARGEST_JSON, ComparisonError)
    names = values.get("splits") if isinstance(values, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name not in ("", ".", "..") and "/" not in name for name in names):
        raise ComparisonError(f"{file} does not name splits; write the data set again with `save_to_disk`")
    return {name: folder.join(name) for name in names}


def _files(path: Address) -> list[Address]:
    if path.kind() != "folder":
        return [path]
    if parts := splits(path):
        if len(parts) > 1:
            raise ComparisonError(f"{path} has {len(parts)} splits; name one of them: {', '.join(map(str, parts.values()))}")
        return _files(*parts.values())
    if path.join("state.json").kind() == "file":
        files = _saved_files(path)
    else:
        files = [path.join(entry.name) for entry in path.entries() if entry.name.endswith(".parquet")]
    if not files:
        raise ComparisonError(
            f"{path} is a folder without Parquet files, and not one that `save_to_disk` wrote; "
            "use a file of comparisons, or the folder of a data set's *.parquet"
        )
    return files


def _saved_files(folder: Address) -> list[Address]:
    """The Arrow files of a data set that ``save_to_disk`` wrote, in their order."""
    file = folder.join("state.json")
    state = file.read_json(LARGEST_JSON, ComparisonError)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries] if isinstance(entries, list) else [None]
    paths = [folder.join(name) for name in names if isinstance(name, str)]
    if len(paths) < len(names):
        raise ComparisonError(f"{file} does not name the files of a data set; write it again with `save_to_disk`")
    if state.get("_indices_data_files"):
        raise ComparisonError(f"{folder} is a selection of rows; call `flatten_indices()` and write it again with `save_to_disk`")
    return paths


def _rows(file: Address, prefix: str) -> Iterator[Row]:
    try:
        for row in read_rows(file, COLUMNS, IMAGE_COLUMNS, key=LIST_KEY):
            yield replace(row, where=prefix + row.where) if prefix else row
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file of comparisons: {file}") from None
    except RowsError as error:
        raise ComparisonError(str(error)) from None
