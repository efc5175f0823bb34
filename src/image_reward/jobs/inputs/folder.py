"""A folder of images as rows. A shard is read by the names in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from image_reward.errors import JobError
from image_reward.files import read_regular
from image_reward.image_files import list_images
from image_reward.jobs.arrow import arrow, text_table
from image_reward.jobs.files import LARGEST_TEXT
from image_reward.jobs.rows import Input, Rows, Shard, cut

if TYPE_CHECKING:
    import pyarrow


class ImageFolder(Input):
    """A folder of images, those in folders within it too; the prompt of NAME.png is in NAME.txt."""

    kind = "folder of images"

    @property
    def base(self) -> str:
        return self.files[0]

    @property
    def image_column(self) -> str:
        return "image"

    def scan(self, shard_size: int) -> list[Shard]:
        self._found = self._list()
        try:
            return super().scan(shard_size)
        finally:
            del self._found

    def resume(self, plan: pyarrow.Table, shard_size: int) -> list[Shard] | None:
        """Never: to see whether images have changed, the folder must be listed, which is the scan."""
        del plan, shard_size
        return None

    def _stamps(self) -> dict[str, str]:
        return {self.files[0]: self._stamp(self._found)}

    def _list(self) -> list[tuple[str, str]]:
        """Names of images relative to the folder, in order, and their stamps."""
        root = Path(self.files[0])
        listing = list_images(root, recursive=True)
        self.notes = [f"{root}: {note}"] if (note := listing.note()) else []
        found = []
        for path in listing.images:
            try:
                status = path.stat()
                stamp = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:  # such as a link to nothing: an error of its row
                stamp = "-"
            found.append((path.relative_to(root).as_posix(), stamp))
        return sorted(found)

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
        root = Path(shard.file)
        prompts: list[str | None] = []
        problems: list[str | None] = []
        for name in shard.names if self.prompt is None else ():
            try:
                prompts.append(read_regular((root / name).with_suffix(".txt"), LARGEST_TEXT).decode("utf-8-sig").strip())
                problems.append(None)
            except FileNotFoundError:
                prompts.append(None)
                problems.append(f"there is no {Path(name).with_suffix('.txt')} with its prompt")
            except (OSError, ValueError) as error:
                prompts.append(None)
                problems.append(f"{Path(name).with_suffix('.txt')} cannot be read: {error}")
        texts = {} if self.prompt is not None else {self.prompt_column: prompts}
        table = text_table({"image": shard.names, **texts})
        return self._rows(table, shard, problems or None, [str(root / name) for name in shard.names])
