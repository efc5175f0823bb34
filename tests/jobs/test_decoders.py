from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stubs

from image_reward.errors import InputError, PackageError
from image_reward.images import ImageLike
from image_reward.jobs import decoders
from image_reward.jobs.decoders import Group, Prepared, RowDefectError, group_rows, prepare_groups
from image_reward.jobs.files import Access
from image_reward.jobs.inputs import open_input
from image_reward.scorers import TwoTowerBatch

PROCESSOR = stubs.Brightness().prepare


def groups_of(folder: Path, rows: Sequence[tuple[str, str]]) -> tuple[list[Group], dict[int, str]]:
    """Rows of (prompt, image), grouped."""
    (folder / "rows.csv").write_text("prompt,image\n" + "".join(f"{prompt},{image}\n" for prompt, image in rows))
    source = open_input(str(folder / "rows.csv"))
    [shard] = source.scan(1000)
    return group_rows(source.read(shard), "image", Access())


def prepare(groups: Sequence[Group], *processors: Any) -> Prepared:
    return prepare_groups(processors or [PROCESSOR], groups, Access())


def test_rows_of_one_content_are_a_group_and_only_files_of_one_size_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = stubs.draw(tmp_path, 2, side=8)
    (large,) = stubs.draw(tmp_path / "large", 1, side=64)
    (tmp_path / "copy.png").write_bytes((tmp_path / one).read_bytes())
    (tmp_path / "empty.png").touch()
    read: list[object] = []
    whole = Access.read
    monkeypatch.setattr(Access, "read", lambda self, source: (read.append(source), whole(self, source))[1])
    rows = [("a", one), ("b", other), ("c", "copy.png"), ("d", f"large/{large}"), ("e", one), ("f", ""), ("g", "none.png")]
    groups, errors = groups_of(tmp_path, rows)
    assert [(group.name, group.rows, group.prompts) for group in groups] == [
        (one, (0, 4, 2), ("a", "e", "c")),
        (other, (1,), ("b",)),
        (f"large/{large}", (3,), ("d",)),
        ("none.png", (6,), ("g",)),
    ]
    assert errors == {5: "RowError: the row names no image"}
    assert not any("large" in str(source) or "none" in str(source) for source in read)


def test_what_is_wrong_with_a_row_costs_no_other(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 3)
    (tmp_path / "text.png").write_text("no image")
    rows = [("a", names[0]), ("", names[0]), ("a b", "text.png"), ("a b c", names[1]), ("a", "none.png"), ("a b c d", names[2])]
    done = prepare(groups_of(tmp_path, rows)[0])
    assert done.rows == [0, 3, 5]
    (batch,) = done.batches
    assert [int(mask.sum()) - 2 for mask in batch.mask] == [1, 3, 4]
    assert [int(batch.pixels[image].max()) for image in batch.image_index] == [0, 1, 2]
    assert done.errors == {
        1: "PromptError: the row has no prompt",
        2: "ImageReadError: text.png is text, perhaps a server's message, and not an image; save or download the image again",
        4: f"FileNotFoundError: no such image: {tmp_path}/none.png",
    }
    assert done.digests.keys() >= {0, 3, 5}
    assert len({done.digests[row] for row in (0, 3, 5)}) == 3


class Choosy:
    """Refuses one prompt, and fails for another."""

    def __call__(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> TwoTowerBatch:
        if "refused" in prompts:
            raise InputError("no reward is known for this")
        if "wrong" in prompts:
            raise ValueError("shape mismatch")
        return PROCESSOR(prompts, images)


def test_a_scorer_refuses_a_row_with_an_error_of_the_package_and_anything_else_is_a_defect(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 4)
    groups, _ = groups_of(tmp_path, list(zip(["a", "refused", "b", "c"], names, strict=True)))
    done = prepare(groups, PROCESSOR, Choosy())
    assert done.rows == [0, 2, 3]
    assert done.errors == {1: "InputError: no reward is known for this"}
    assert [len(batch) for batch in done.batches] == [3, 3]
    groups, _ = groups_of(tmp_path, list(zip(["a", "refused", "wrong", "c"], names, strict=True)))
    with pytest.raises(RowDefectError) as caught:
        prepare(groups, Choosy())
    assert (caught.value.row, caught.value.error) == (2, "ValueError: shape mismatch")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_package_that_is_missing_is_no_error_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> bytes:
        raise PackageError("s3:// needs a package")

    groups, _ = groups_of(tmp_path, [("a", stubs.draw(tmp_path, 1)[0])])
    monkeypatch.setattr(Access, "read", missing)
    with pytest.raises(PackageError):
        prepare(groups)


def test_threads_that_prepare_at_once_hear_of_their_own_long_prompts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As jobs without workers do, in threads of a program."""
    names = stubs.draw(tmp_path, 1)
    both = threading.Barrier(2, timeout=60)
    prepare_together = decoders.prepare_together

    def meet(*arguments: Any) -> Any:
        both.wait()  # both are within what collects warnings
        batches = prepare_together(*arguments)
        both.wait()
        return batches

    monkeypatch.setattr(decoders, "prepare_together", meet)
    inputs = []
    for first in "ab":
        (tmp_path / first).mkdir()
        inputs.append(groups_of(tmp_path / first, [(f"{first} b c d e f g h i", f"../{names[0]}")])[0])
    before = list(warnings.filters), warnings.showwarning
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(prepare, inputs)
    for done, first in ((one, "a"), (two, "b")):
        (warning,) = done.warnings
        assert warning.startswith(f'the last 3 of 11 tokens of the prompt "{first} b c d')
    assert (list(warnings.filters), warnings.showwarning) == before
