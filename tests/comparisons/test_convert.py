from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image_reward.comparisons import audit, convert, images_folder, read, records
from image_reward.errors import ComparisonError
from image_reward.images import open_image
from saved_datasets import save_to_disk, to_parquet


@pytest.fixture
def pictures(image_folder: Path) -> list[dict[str, Any]]:
    return [{"bytes": (image_folder / f"{name}.png").read_bytes(), "path": None} for name in "abc"]


def groups(pictures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    a, b, c = pictures
    return [
        {
            "prompt_id": "x",
            "prompt": "a cat",
            "classification": "Animals",
            "image": [a, b, c],
            "rank": [1, 2, 2],
            "overall_rating": [7, 2, 3],
        },
        {"prompt_id": "y", "prompt": "a dög", "classification": "Animals", "image": [c, a], "rank": [2, 1], "overall_rating": [1, 5]},
    ]


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_images_in_tables_become_files_and_equal_images_one(tmp_path: Path, save: Any, pictures: list[dict[str, Any]]) -> None:
    source, output = save(tmp_path / "groups", groups(pictures)), tmp_path / "mine.jsonl"
    result = convert(source, output)
    assert (result.num_comparisons, result.num_images, result.num_extracted) == (2, 5, 3)
    assert result.images == str(tmp_path / "mine-images") == str(images_folder(output))
    assert sorted(path.read_bytes() for path in (tmp_path / "mine-images").iterdir()) == sorted(p["bytes"] for p in pictures)
    for before, after in zip(records(source), records(output), strict=True):
        assert before.comparison is not None
        assert after.comparison is not None
        assert replace(after.comparison, images=()) == replace(before.comparison, images=())
        assert [Path(image).read_bytes() for image in after.comparison.images] == [image() for image in before.comparison.images]
        assert after.ratings == before.ratings
        assert open_image(after.comparison.images[0]).size == open_image(before.comparison.images[0]).size
    assert audit([output]).sound
    assert not (tmp_path / ".unfinished").exists()


def test_image_files_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text(json.dumps([{"prompt": "a cat", "path1": "1.jpg", "path2": "/far/2.jpg"}]))
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    result = convert(tmp_path / "data" / "train.json", tmp_path / "link" / "mine.jsonl")
    assert (result.images, result.num_extracted) == ("", 0)
    assert [path.name for path in (tmp_path / "link").iterdir()] == ["mine.jsonl"]
    (found,) = read(tmp_path / "link" / "mine.jsonl")
    assert [os.path.realpath(image) for image in found.images] == [str(tmp_path / "data" / "1.jpg"), "/far/2.jpg"]


def test_nothing_is_overwritten_and_nothing_is_left_of_a_conversion_that_fails(tmp_path: Path, pictures: list[dict[str, Any]]) -> None:
    rows = groups(pictures)
    rows[1]["image"] = [pictures[0], {"bytes": b"<html>", "path": None}]
    source = to_parquet(tmp_path / "groups.parquet", rows)
    with pytest.raises(ComparisonError, match=r"groups\.parquet, row 2 \(id y\): image 2: .*data check` lists all such rows"):
        convert(source, tmp_path / "mine.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["groups.parquet"]
    result = convert(source, tmp_path / "mine.jsonl", skip_wrong=True)
    assert (result.num_comparisons, result.num_wrong, result.num_extracted) == (1, 1, 3)
    assert result.wrong[0].startswith("row 2 (id y): image 2: ")
    with pytest.raises(FileExistsError, match=r"mine\.jsonl already exists"):
        convert(source, tmp_path / "mine.jsonl", skip_wrong=True)
    (tmp_path / "mine.jsonl").unlink()
    with pytest.raises(FileExistsError, match=r"mine-images already exists"):
        convert(source, tmp_path / "mine.jsonl", skip_wrong=True)


def test_what_is_left_out_is_counted(tmp_path: Path, pictures: list[dict[str, Any]]) -> None:
    votes = ["leftvote", *["bothbad_vote"] * 30, "tievote", "none"]
    rows = [{"prompt": "a cat", "left_image": pictures[0], "right_image": pictures[1], "vote_type": vote} for vote in votes]
    result = convert(to_parquet(tmp_path / "votes.parquet", rows), tmp_path / "mine.jsonl", skip_wrong=True)
    assert (result.num_comparisons, result.num_left_out, len(result.left_out), result.num_wrong) == (2, 30, 20, 1)
    assert result.left_out[0] == "row 2: the vote is bothbad_vote, that both images are bad"
    assert result.wrong == ["row 33: vote_type is 'none', not one of leftvote, rightvote, tievote, bothbad_vote"]
    assert [c.ranks for c in read(tmp_path / "mine.jsonl")] == [(1, 2), (1, 1)]
    only = to_parquet(tmp_path / "bad.parquet", rows[1:3])
    with pytest.raises(ComparisonError, match="has no comparisons that can be written"):
        convert(only, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    assert not (tmp_path / "none-images").exists()


def test_files_are_named_by_the_format_of_their_content(tmp_path: Path, pictures: list[dict[str, Any]]) -> None:
    formats = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp", "BMP": ".img"}
    image = open_image(pictures[0]["bytes"]).convert("RGB")
    images = []
    for name in formats:
        image.save(tmp_path / "picture", format=name)
        images.append({"bytes": (tmp_path / "picture").read_bytes(), "path": "wrong.tif"})
    rows = [{"prompt": "a cat", "images": images, "ranks": [1] * 4 + [2]}]
    convert(to_parquet(tmp_path / "mine.parquet", rows), tmp_path / "mine.jsonl")
    (found,) = read(tmp_path / "mine.jsonl")
    assert [Path(path).suffix for path in found.images] == list(formats.values())
    assert audit([tmp_path / "mine.jsonl"], fast=False).files[0].num_distinct_images == 5
