"""Files as ``datasets`` writes them, made with pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import write_table

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
"""The type of a column of ``datasets.Image``."""


def table(rows: list[dict[str, Any]]) -> pyarrow.Table:
    """Structures of bytes and path, and lists of them, have the type that ``datasets`` gives them."""
    kinds = [pyarrow.field(name, _kind(value)) for name, value in rows[0].items()]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(kinds))


def _kind(value: Any) -> pyarrow.DataType:
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return IMAGE
    return pyarrow.list_(_kind(value[0])) if isinstance(value, list) and value else pyarrow.infer_type([value])


def to_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 2) -> Path:
    write_table(table(rows), path, row_group_size=row_group_size)
    return path


def save_to_disk(folder: Path, rows: list[dict[str, Any]], num_shards: int = 1, rows_per_batch: int = 2) -> Path:
    """A folder as ``Dataset.save_to_disk`` of datasets 5.2 writes it."""
    folder.mkdir(parents=True)
    names = []
    for number in range(num_shards):
        name = f"data-{number:05d}-of-{num_shards:05d}.arrow"
        part = table(rows[number::num_shards])
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part, max_chunksize=rows_per_batch)
        names.append(name)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "56dae171ba4f2985",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(
        json.dumps({"citation": "", "description": "", "features": {}, "homepage": "", "license": ""})
    )
    return folder


def save_dict_to_disk(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A folder as ``DatasetDict.save_to_disk`` writes it."""
    for name, rows in splits.items():
        save_to_disk(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder
