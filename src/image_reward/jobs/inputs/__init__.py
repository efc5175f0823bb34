"""Files of rows, each a prompt and an image, cut into shards that can be read alone.

======================  ================================================================  ===============================================
input                   a row is                                                          a shard is read by
======================  ================================================================  ===============================================
CSV                     a record: prompt, image, optional id                              seeking to the byte where it begins
JSONL                   an object on a line                                               seeking to the byte where it begins
Parquet                 a row; the image is a path, bytes, or {bytes, path}               its row groups
Hugging Face data set   a row of the .arrow files that ``save_to_disk`` wrote             their record batches
WebDataset              the files of a .tar that share a name: KEY.jpg, KEY.txt or .json  seeking to the byte where it begins
folder of images        an image, its prompt in a .txt file beside it                     the names in it
======================  ================================================================  ===============================================

Paths of images are relative to the file that names them. The suffix decides the kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from image_reward.addresses import Address, join, scheme
from image_reward.errors import JobError
from image_reward.files import LARGEST_JSON
from image_reward.image_files import IMAGE_SUFFIXES
from image_reward.jobs.arrow import arrow
from image_reward.jobs.files import Access
from image_reward.jobs.inputs.columns import ArrowInput, ParquetInput, image_in_table
from image_reward.jobs.inputs.folder import ImageFolder
from image_reward.jobs.inputs.tar import TarInput, image_in_tar
from image_reward.jobs.inputs.text import CsvInput, JsonLinesInput
from image_reward.jobs.rows import Input, Names

KINDS: dict[str, type[Input]] = {
    ".csv": CsvInput,
    ".jsonl": JsonLinesInput,
    ".parquet": ParquetInput,
    ".tar": TarInput,
}
"""By suffix."""


def open_input(path: str, names: Names | None = None, prompt: str | None = None, access: Access | None = None) -> Input:
    """The rows that a file, a glob or a folder holds. Raises ``FileNotFoundError``, or ``JobError`` that says what was looked for."""
    names, access = names or Names(), access or Access()
    if prompt is not None and names.prompt is not None:
        raise JobError("one prompt for all rows, or a column of prompts, not both")
    arrow()
    address = access.address(path)
    if is_folder := address.kind() == "folder":
        listed = address.entries()
        names_there = {entry.name for entry in listed}
        if "dataset_dict.json" in names_there:
            splits = [entry.name for entry in listed if entry.is_folder and address.join(f"{entry.name}/state.json").kind()]
            raise JobError(f"{path} is a Hugging Face data set of several splits; give one of them: {', '.join(splits)}")
        if "state.json" in names_there:
            return ArrowInput(path, _arrow_files(address), access, names, prompt)
        there = [str(address.join(entry.name)) for entry in listed if not entry.is_folder]
    else:
        there = [str(match) for match in address.matches()]
    files = tuple(file for file in there if _suffix(file) in KINDS)
    if not files and is_folder:
        return ImageFolder(path, (str(address),), access, names, prompt)
    if not files:
        if not there:
            raise FileNotFoundError(f"no such file of rows: {path}")
        raise JobError(
            f"{path} is not a known kind of rows: {', '.join(KINDS)} (an uncompressed WebDataset), the folder of a Hugging Face data set, "
            "or a folder of images"
        )
    others = [PurePosixPath(file).name for file in there if file not in files]
    suffixes = sorted({_suffix(file) for file in files})
    if len(suffixes) > 1:
        raise JobError(
            f"{path} holds rows of several kinds ({', '.join(suffixes)}); give one kind, such as {path.rstrip('/')}/*{suffixes[0]}"
        )
    if is_folder and (pictures := [file for file in there if _suffix(file) in IMAGE_SUFFIXES]):
        raise JobError(
            f"{path} holds both {PurePosixPath(files[0]).name} and images such as {PurePosixPath(pictures[0]).name}; "
            f"give {files[0]}, or a folder of images alone"
        )
    notes = [_passed_over(rows, path)] if (rows := [name for name in others if _may_hold_rows(name)]) else []
    if is_folder and (folders := [entry.name for entry in listed if entry.is_folder]):
        notes.append(f"folders in {path} are not read: {_names(folders)}; give {path.rstrip('/')}/**/*{suffixes[0]} to read them too")
    return KINDS[suffixes[0]](path, files, access, names, prompt, notes=notes)


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()


def _may_hold_rows(name: str) -> bool:
    """Whether a file that is not read could have been meant to be: other forms of the same, and what is compressed."""
    forms = {".json", ".ndjson", ".tsv", ".arrow", ".feather", ".xlsx", ".ods", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4"}
    return PurePosixPath(name).suffix.lower() in forms


def _passed_over(names: Sequence[str], path: str) -> str:
    number = "1 file was" if len(names) == 1 else f"{len(names):,} files were"
    return f"{number} passed over in {path}: {_names(names)}"


def _names(names: Sequence[str]) -> str:
    """The first of them.

    >>> _names(["b", "a"]), _names("abcdef")
    ('a, b', 'a, b, c, …')
    """
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")


def _arrow_files(folder: Address) -> tuple[str, ...]:
    file = folder.join("state.json")
    state = file.read_json(LARGEST_JSON, JobError)
    files = state.get("_data_files") if isinstance(state, dict) else None
    entries = [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else [None]
    names = [name for name in entries if isinstance(name, str) and "\0" not in name]
    if len(names) < len(entries):
        raise JobError(f"{file} is not that of a Hugging Face data set; save it again with save_to_disk")
    if state.get("_indices_data_files") or folder.join("indices.arrow").kind():
        raise JobError(f"{folder} selects or orders its rows by a list of indices; call flatten_indices() and save it again")
    if not names:
        raise JobError(f"{folder} holds no rows")
    return tuple(str(folder.join(name)) for name in names)


_INSIDE = re.compile(r"(.+?(\.arrow|\.parquet|\.tar))#(.+)", re.IGNORECASE | re.DOTALL)


def image_named(base: str, name: str, image_column: str, access: Access) -> Any:
    """What the image column of a result names: a path, or the content of an image inside a file (FILE#ROW, or FILE#MEMBER of a tar)."""
    path = join(base, name)
    match = _INSIDE.fullmatch(name)
    if match is None or (not scheme(path) and os.path.exists(path)):  # noqa: PTH110 - a string
        return path
    container, suffix, inside = join(base, match[1]), match[2].lower(), match[3]
    if suffix == ".tar":
        return image_in_tar(container, inside, access)
    if not inside.isdecimal():
        return path
    return image_in_table(container, int(inside), image_column, access)
