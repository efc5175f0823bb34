"""Rows -> batches: images are opened and prompts tokenized, in the worker itself or in processes that work ahead of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from image_reward.errors import ImageReadError, ImageRewardError, PromptError, StoreError
from image_reward.images import ImageOptions, describe, open_image
from image_reward.jobs.files import Access, ImageSource, digest
from image_reward.jobs.rows import Rows
from image_reward.jobs.signals import end_with_parent
from image_reward.prompts import check_prompts, long_prompt_warnings_collected
from image_reward.scorers.base import Batch
from image_reward.scorers.together import Prepare, options_of, prepare_together

_UNREADABLE = (ImageRewardError, OSError, MemoryError)
"""What reading and decoding an image raises where the image is to blame."""


class RowDefectError(Exception):
    """An exception that no row may cause came of one: its number in the shard, and what was raised."""

    def __init__(self, row: int, error: str) -> None:
        super().__init__(row, error)
        self.row, self.error = row, error


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Group:
    """An image and the rows that it is in, with their prompts."""

    source: ImageSource
    name: str
    rows: tuple[int, ...]
    prompts: tuple[object, ...]


@dataclass
class Prepared:
    """Groups as batches, one for each processor, and what could not be prepared."""

    rows: list[int] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    """Row -> digest of its image file."""
    warnings: tuple[str, ...] = ()
    """Of prompts that were cut."""


def group_rows(rows: Rows, image_column: str, access: Access) -> tuple[list[Group], dict[int, str]]:
    """The rows of a shard by image, those of one content together, and what is wrong with the others.

    Files are compared by size first, and by content only where two have the same.
    """
    errors: dict[int, str] = {}
    by_source: dict[ImageSource, list[int]] = {}
    for number, (image, problem) in enumerate(zip(rows.images, rows.problems, strict=True)):
        if problem or image is None:
            errors[number] = f"RowError: {problem or 'the row names no image'}"
        else:
            by_source.setdefault(image, []).append(number)
    by_size: dict[int, list[ImageSource]] = {}
    for source in by_source:
        if isinstance(source, str):
            with suppress(OSError, ValueError):  # remote, or not there, which preparing will say
                by_size.setdefault(os.stat(source).st_size, []).append(source)  # noqa: PTH116 - a million times
    first_of: dict[bytes, ImageSource] = {}
    for source in [source for alike in by_size.values() if len(alike) > 1 for source in alike]:
        try:
            same = first_of.setdefault(digest(access.read(source)), source)
        except (ImageRewardError, OSError, ValueError, MemoryError):  # which preparing will say
            continue
        if same != source:
            by_source[same] += by_source.pop(source)
    names, prompts = rows.table.column(image_column).to_pylist(), rows.prompts
    groups = [Group(source, str(names[own[0]]), tuple(own), tuple(prompts[n] for n in own)) for source, own in by_source.items()]
    return groups, errors


class _Opening:
    """Reads and opens a group's image when it is its turn. If that fails, notes why, and gives a blank image, to be dropped."""

    def __init__(self, group: Group, options: ImageOptions, access: Access) -> None:
        self.group, self.options, self.access = group, options, access
        self.error = ""
        self.digest = b""

    def __str__(self) -> str:
        return self.group.name

    def __call__(self) -> Image.Image:
        data = b""
        try:
            data = self.access.read(self.group.source)
            self.digest = digest(data)
            return open_image(data, self.options)
        except StoreError:
            raise
        except _UNREADABLE as error:
            self.error = in_words(error)
            if isinstance(error, ImageReadError):
                self.error = self.error.replace(describe(data), self.group.name)
            return Image.new("RGB", (self.options.min_side,) * 2)


def prepare_groups(processors: Sequence[Prepare], groups: Sequence[Group], access: Access) -> Prepared:
    """Open, decode and tokenize. Whatever is wrong with an image or a prompt is an error of its rows, never of the others.

    A scorer refuses an image or a prompt with an error of this package. Raises ``RowDefectError`` for anything else.
    """
    done = Prepared()
    prompts: list[str] = []
    images: list[_Opening] = []
    for group in groups:
        image = _Opening(group, options_of(processors[0]), access)
        for row, prompt in zip(group.rows, group.prompts, strict=True):
            if problem := _prompt_problem(prompt):
                done.errors[row] = problem
                continue
            done.rows.append(row)
            prompts.append(prompt)  # type: ignore[arg-type]
            images.append(image)
    with long_prompt_warnings_collected() as collected:
        try:
            done.batches = prepare_together(processors, prompts, images)
        except StoreError:
            raise
        except Exception:  # of one row or more: each is tried alone
            keep = []
            for place, row in enumerate(done.rows):
                try:
                    prepare_together(processors, [prompts[place]], [images[place]])
                    keep.append(place)
                except (ImageRewardError, MemoryError) as error:
                    done.errors[row] = in_words(error)
                except Exception as error:
                    raise RowDefectError(row, in_words(error)) from error
            done.rows = [done.rows[place] for place in keep]
            prompts, images = [prompts[place] for place in keep], [images[place] for place in keep]
            done.batches = prepare_together(processors, prompts, images)
    done.warnings = tuple(dict.fromkeys(collected))
    done.digests = {row: image.digest for row, image in zip(done.rows, images, strict=True) if image.digest}
    if failed := {row: image.error for row, image in zip(done.rows, images, strict=True) if image.error}:
        done.errors |= failed
        good = [place for place, row in enumerate(done.rows) if row not in failed]
        done.batches, done.rows = [batch.select(good) for batch in done.batches], [done.rows[place] for place in good]
    return done


def _prompt_problem(prompt: object) -> str | None:
    if prompt is None:
        return "PromptError: the row has no prompt"
    try:
        check_prompts([prompt])
    except PromptError as error:
        return f"PromptError: {error}"
    return None


def _begin() -> None:
    end_with_parent()
    warnings.simplefilter("ignore")  # of libraries, as in workers; those of prompts come with what is prepared


class Decoders:
    """Processes that prepare groups, each with a copy of the processors."""

    def __init__(self, count: int, processors: Sequence[Prepare], access: Access) -> None:
        from multiprocessing import get_context

        self.ahead = 2 * count
        self.pool = ProcessPoolExecutor(count, get_context("spawn"), _begin)
        self.processors, self.access = list(processors), access

    def submit(self, groups: Sequence[Group]) -> Future[Prepared]:
        return self.pool.submit(prepare_groups, self.processors, groups, self.access)
