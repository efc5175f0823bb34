"""Inputs, read to their end; and tars that hold what a test wants."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from image_reward.jobs.inputs import open_input
from image_reward.jobs.rows import Input, Names


def read_all(given: Path | str, shard_size: int = 2, names: Names | None = None, prompt: str | None = None) -> tuple[Input, list[Any]]:
    """The input, and its rows as (columns, prompt, image, problem)."""
    source = open_input(str(given), names, prompt)
    found = []
    for shard in source.scan(shard_size):
        rows = source.read(shard)
        assert len(rows.table) == shard.num_rows <= shard_size
        found += list(zip(rows.table.to_pylist(), rows.prompts, rows.images, rows.problems, strict=True))
    return source, found


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **header: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in header.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))
