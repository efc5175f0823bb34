"""A folder of images as rows. A shard is read by the names in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from image_reward.addresses import Address
from image_reward.errors import JobError, StoreError
from image_reward.image_files import list_images
from image_reward.jobs.arrow import arrow, text_table
from image_reward.jobs.files import LARGEST_TEXT
from image_reward.jobs.rows import Input, Rows, Shard, cut


@dataclass
class ImageFolder(Input):
    """A folder of images, those in folders within it too; the prompt of NAME.png is in NAME.txt."""

    folders: dict[str, int | None] = field(default_factory=dict)
    """The folders in it and itself, and when each last changed."""

    kind = "folder of images"

    @property
    def base(self) -> str:
        return self.files[0]

    @property
    def _root(self) -> Address:
        return self.access.address(self.files[0])

    @property
    def image_column(self) -> str:
        return "image"

    def scan(self, shard_size: int) -> list[Shard]:
        self._found = self._list()
        try:
            return super().scan(shard_size)
        finally:
            del self._found

    def _stamps(self, facts: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Where no folder has changed since an earlier scan, no image has come, gone or got another name, and nothing is listed again.

        An image that was written over is noticed at the end of the job.
        """
        if facts is None:
            return {self.files[0]: self._stamp(self._found)}
        if facts.get("folders") and facts["folders"] == self._changes(facts["folders"]):
            self.folders = facts["folders"]
            return dict(facts["of"]["files"])
        return {self.files[0]: self._stamp(self._list())}

    def _changes(self, folders: Iterable[str]) -> dict[str, int | None]:
        """When each folder last changed, in nanoseconds; None for one that is gone. Those of an object store do not say."""
        if not self._root.is_local:
            return {}
        changes: dict[str, int | None] = {}
        for name in folders:
            try:
                changes[name] = Path(self.files[0], name).stat().st_mtime_ns
            except OSError:
                changes[name] = None
        return changes

    def _facts(self, shard_size: int) -> dict[str, Any]:
        return super()._facts(shard_size) | {"folders": self.folders}

    def _list(self) -> list[tuple[str, str]]:
        """Names of images relative to the folder, in order, and their stamps."""
        listing = list_images(self._root, recursive=True)
        self.notes = [f"{self._root}: {note}"] if (note := listing.note()) else []
        self.folders = self._changes(listing.folders)
        return [(name, listing.stamps.get(name) or _stamp_of(self._root.join(name))) for name in listing.names]

    def check_unchanged(self, file: str | None = None) -> None:
        if file is None:  # for a single shard, an image that is gone is an error of its row
            now = self._stamp(self.__dict__.get("_found") or self._list())
            if now != self.stamps[self.files[0]]:
                raise JobError(
                    f"images in {self.files[0]} have changed while they were being read; score the folder again into another one"
                )

    @staticmethod
    def _stamp(found: Sequence[tuple[str, str]]) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for name, stamp in found:
            whole.update(f"{name}\0{stamp}\0".encode("utf-8", "surrogatepass"))
        return f"{len(found)} images, {whole.hexdigest()}"

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        del file  # the only one there is
        pa = arrow()
        self.schema = pa.schema([("image", pa.string())] + ([] if self.prompt is not None else [(self.prompt_column, pa.string())]))
        yield from cut(len(self._found), self._size)

    def _piece_names(self, start: int, stop: int) -> tuple[str, ...]:
        return tuple(name for name, _ in self._found[start:stop])

    def _read(self, shard: Shard) -> Rows:
        root = self._root
        prompts: list[str | None] = []
        problems: list[str | None] = []
        for name in shard.names if self.prompt is None else ():
            try:
                prompts.append(root.join(_caption(name)).read(LARGEST_TEXT).decode("utf-8-sig").strip())
                problems.append(None)
            except FileNotFoundError:
                prompts.append(None)
                problems.append(f"there is no {_caption(name)} with its prompt")
            except StoreError:
                raise
            except (OSError, ValueError) as error:
                prompts.append(None)
                problems.append(f"{_caption(name)} cannot be read: {error}")
        texts = {} if self.prompt is not None else {self.prompt_column: prompts}
        table = text_table({"image": shard.names, **texts})
        return self._rows(table, shard, problems or None, [str(root.join(name)) for name in shard.names])


def _caption(name: str) -> str:
    """The file with the prompt of an image.

    >>> _caption("more/0.png")
    'more/0.txt'
    """
    return PurePosixPath(name).with_suffix(".txt").as_posix()


def _stamp_of(image: Address) -> str:
    try:
        status = image.local.stat()
    except OSError:  # such as a link to nothing: an error of its row
        return "-"
    return f"{status.st_size} {status.st_mtime_ns}"
