"""Human rankings in any form that is read -> our own JSONL, with the images that were inside tables as files beside it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from image_reward.addresses import Address, PathLike
from image_reward.comparisons.forms import MOST_EXAMPLES, Record
from image_reward.comparisons.readers import records, relative, write_lines
from image_reward.errors import ComparisonError, ImageReadError
from image_reward.files import written_whole
from image_reward.images import open_image
from image_reward.rows import ParquetImage

_SUFFIXES = {
    rb"\x89PNG\r\n\x1a\n": ".png",
    rb"\xff\xd8\xff": ".jpg",
    rb"GIF8[79]a": ".gif",
    rb"RIFF....WEBP": ".webp",
    rb"....ftypavi[fs]": ".avif",
}


@dataclass
class Conversion:
    """What was written, and what was not."""

    path: str
    num_comparisons: int = 0
    num_images: int = 0
    """Of all comparisons; one that is in two of them counts twice."""
    images: str = ""
    """The folder of the images that were inside tables; "" where none were."""
    num_extracted: int = 0
    """Files in that folder: equal images are one file."""
    num_left_out: int = 0
    """Rows that do not say which image is better."""
    left_out: list[str] = field(default_factory=list)
    """Where, and why: the first 20."""
    num_wrong: int = 0
    """Rows that make no sense, with ``skip_wrong``."""
    wrong: list[str] = field(default_factory=list)
    """Where, and why: the first 20."""


def images_folder(output: PathLike) -> Path:
    """Where ``convert`` puts images: mine.jsonl -> mine-images."""
    path = Address.parse(output).local
    return path.with_name(f"{path.stem}-images")


def convert(
    path: PathLike | Address,
    output: PathLike,
    images: PathLike | None = None,
    *,
    skip_wrong: bool = False,
    on_comparison: Callable[[int, int | None], None] | None = None,
) -> Conversion:
    """Write the comparisons of ``path`` as JSONL to ``output``, which appears whole or not at all, and says where the images are.

    Image files stay where they are and are referred to relative to ``output``, those of an object store by their addresses. Images inside
    tables become files in ``images_folder``, named by their content, so that none is written twice. They are not decoded: ``audit`` does
    that. ``on_comparison(done, None)`` is
    called as comparisons are written, of which nobody knows how many there are.

    Raises ``FileExistsError`` where ``output`` or the folder is there already, and all else as ``read`` does; a row is also wrong where an
    image inside a table is missing or is not an image. ``skip_wrong`` leaves such rows out, and counts them.
    """
    output, folder = Address.parse(output).local, images_folder(output)
    for target in (output, folder):
        if os.path.lexists(target):
            raise FileExistsError(f"{target} already exists; name another file, or remove it")
    result = Conversion(os.fspath(output))
    with written_whole(output) as temporary:
        extracted = _Extracted(temporary.parent / folder.name)

        def reference(image: object, name: str) -> str:
            return f"{folder.name}/{extracted.names[image]}" if isinstance(image, ParquetImage) else relative(image, output.parent, name)

        def right() -> Iterator[Record]:
            for record in records(path, images):
                if record.left_out:
                    result.num_left_out += 1
                    result.left_out += [f"{record.where}: {record.left_out}"][: MOST_EXAMPLES - len(result.left_out)]
                elif problem := record.problem or extracted.take(record):
                    if not skip_wrong:
                        remedy = "`image-reward data check` lists all such rows; --skip-wrong, in Python skip_wrong=True, leaves them out"
                        raise ComparisonError(f"{path}, {record.where}: {problem} ({remedy})")
                    result.num_wrong += 1
                    result.wrong += [f"{record.where}: {problem}"][: MOST_EXAMPLES - len(result.wrong)]
                else:
                    assert record.comparison is not None
                    result.num_comparisons += 1
                    result.num_images += len(record.comparison.images)
                    yield record
                    if on_comparison:
                        on_comparison(result.num_comparisons, None)

        write_lines(right(), temporary, reference)
        if not result.num_comparisons:
            raise ComparisonError(f"{path} has no comparisons that can be written")
        if extracted.names:
            result.images, result.num_extracted = os.fspath(folder), len(set(extracted.names.values()))
            extracted.folder.rename(folder)
    return result


class _Extracted:
    """Images from tables, as files named by their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[ParquetImage, str] = {}

    def take(self, record: Record) -> str:
        """Write the images of a comparison that are not files yet, all or none; what is wrong with one of them."""
        assert record.comparison is not None
        contents: dict[ParquetImage, tuple[str, bytes]] = {}
        for number, image in enumerate(record.comparison.images, start=1):
            if not isinstance(image, ParquetImage) or image in self.names:
                continue
            try:
                content = image()
                contents[image] = hashlib.blake2b(content, digest_size=16).hexdigest() + _suffix(content), content
            except (FileNotFoundError, ImageReadError) as error:
                return f"image {number}: {error}"
        for image, (name, content) in contents.items():
            self.folder.mkdir(exist_ok=True)
            if not (self.folder / name).exists():
                (self.folder / name).write_bytes(content)
            self.names[image] = name
        return ""


def _suffix(content: bytes) -> str:
    """The ending of a file of this content. Raises ``ImageReadError`` for what is not an image."""
    for start, suffix in _SUFFIXES.items():
        if re.match(start, content, re.DOTALL):
            return suffix
    open_image(content)  # a rarer format, which only decoding tells from none
    return ".img"
