from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from image_reward.evaluation.generators import Images, Selection, find_images, read_manifest, select
from image_reward.prompt_sets import Prompt

PROMPTS = [Prompt("p1", "a cat", "animals"), Prompt("p2", "a green car", "things")]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")
    return root


def test_images_by_the_names_of_their_files(tmp_path: Path) -> None:
    touch(tmp_path, "a/p1_0.png", "a/p1_10.webp", "a/p1_2.jpg", "a/p2.png", "a/._p1_3.png", "b/p1_0.PNG", "b/p3_0.png", "b/p1_x.png")
    touch(tmp_path, "b/notes.txt", "README.md", ".hidden/p1_0.png")
    found = find_images(tmp_path, PROMPTS)
    assert {g: {name: [p.name for p in paths] for name, paths in held.items()} for g, held in found.paths.items()} == {
        "a": {"p1": ["p1_0.png", "p1_2.jpg", "p1_10.webp"], "p2": ["p2.png"]},
        "b": {"p1": ["p1_0.PNG"]},
    }
    assert [path.name for path in found.extra] == ["README.md", "notes.txt", "p1_x.png", "p3_0.png"]


def test_images_that_could_be_two_things(tmp_path: Path) -> None:
    touch(tmp_path / "twice", "a/p1_0.png", "a/p1_0.jpg")
    with pytest.raises(ValueError, match=r"p1_0\.png and p1_0\.jpg are the same image of prompt 'p1'"):
        find_images(tmp_path / "twice", PROMPTS)
    touch(tmp_path / "either", "a/x_1.png")
    with pytest.raises(ValueError, match=r"x_1\.png is of prompt 'x_1', or of 'x'"):
        find_images(tmp_path / "either", [Prompt("x", "one"), Prompt("x_1", "two")])
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        find_images(tmp_path / "none", PROMPTS)
    touch(tmp_path / "flat", "p1_0.png")
    with pytest.raises(ValueError, match="has no folders; it should have one for each generator"):
        find_images(tmp_path / "flat", PROMPTS)


def test_missing_images_are_named() -> None:
    counts = {"a": {"p1": 3, "p2": 3}, "b": {"p1": 1}, "c": {"p1": 3, "p2": 3}}
    with pytest.raises(ValueError) as caught:
        select(PROMPTS, counts)
    assert "b: 2 of 2 prompts: p1 (1 of 3), p2 (0 of 3)" in str(caught.value)
    assert "a:" not in str(caught.value)
    assert "--allow-missing" in str(caught.value)
    assert select(PROMPTS, counts, allow_missing=True) == Selection(PROMPTS[:1], [1], ["p2"], {"a": 5, "c": 5})
    with pytest.raises(ValueError, match=r"a: 1 of 2 prompts: p2 \(0 of 1\)"):
        select(PROMPTS, {"a": {"p1": 2}})  # a prompt that nobody made images for
    with pytest.raises(ValueError, match="no prompt has an image from every generator"):
        select(PROMPTS, {"a": {"p1": 2}, "b": {"p2": 2}}, allow_missing=True)
    assert select(PROMPTS, {"a": {"p1": 4, "p2": 2}, "b": {"p1": 4, "p2": 2}}) == Selection(PROMPTS, [4, 2], [], {})


MANIFEST = [
    {"generator": "a", "prompt_id": "p1", "prompt": "a cat", "image": "x/1.png"},
    {"generator": "a", "prompt_id": "p2", "prompt": "a green car", "image": "x/2.png"},
    {"generator": "b", "prompt_id": "p1", "prompt": "a cat", "image": "y.png"},
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_manifest(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"images.{suffix}"
    if suffix == "parquet":
        write_table(pyarrow.Table.from_pylist(MANIFEST), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, MANIFEST)))
    else:
        path.write_text("\n".join(",".join(row) for row in [list(MANIFEST[0]), *(list(row.values()) for row in MANIFEST)]))
    touch(tmp_path, "x/1.png", "x/2.png", "y.png")
    prompts, images = read_manifest(path)
    assert prompts == [Prompt("p1", "a cat"), Prompt("p2", "a green car")]
    assert images.paths == {
        "a": {"p1": [tmp_path / "x/1.png"], "p2": [tmp_path / "x/2.png"]},
        "b": {"p1": [tmp_path / "y.png"]},
    }


def test_manifest_with_prompts(tmp_path: Path) -> None:
    path = touch(tmp_path, "1", "z", "x/1.png") / "images.jsonl"

    def read(*rows: dict[str, str], prompts: list[Prompt] | None = None) -> Any:
        path.write_text("\n".join(map(json.dumps, rows)))
        return read_manifest(path, prompts)

    prompts, images = read(
        {"generator": "a", "prompt": "a cat", "image": "1"}, {"generator": "a", "prompt": "x", "image": "2"}, prompts=PROMPTS
    )
    assert prompts == PROMPTS
    assert images == Images({"a": {"p1": [tmp_path / "1"]}}, [tmp_path / "2"])
    row = MANIFEST[0]
    same = [Prompt("p1", "a cat"), Prompt("p3", "a cat")]
    for rows, given, message in [
        ([row | {"prompt": "a dog"}], PROMPTS, "row 1: the prompt of 'p1' is 'a dog' there, but 'a cat' in the prompts"),
        ([row, row], PROMPTS, "row 2 names .*1.png, which row 1 names for a too"),
        ([row, row | {"prompt": "a dog", "image": "z"}], None, "row 2 has another prompt for 'p1' than a row before it"),
        ([{"generator": "a", "prompt_id": "p1", "image": "z"}], None, "row 1 has no prompt; add it to the row, or use --prompts"),
        ([{"generator": "a", "image": "z"}], PROMPTS, "row 1 has generator, image; a row needs"),
        ([row | {"image": ""}], PROMPTS, "row 1 has generator, prompt_id, prompt; a row needs"),
        ([{"generator": "a", "prompt": "a cat", "image": "z"}], same, r"several prompts read 'a cat' \(p1, p3\); add the prompt_id"),
        ([], PROMPTS, "images.jsonl is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(*rows, prompts=given)
    with pytest.raises(FileNotFoundError, match=r"images\.jsonl, row 1: no such image: .*gone\.png"):
        read(row | {"image": "gone.png"}, prompts=PROMPTS)
