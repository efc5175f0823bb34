from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

import shared
from image_reward.comparisons import Audit, Finding, audit
from image_reward.errors import ComparisonError

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"


@pytest.fixture
def folder(tmp_path: Path, image_folder: Path) -> Path:
    """A folder with a.png, b.png and c.png."""
    for name in "abc":
        shutil.copy(image_folder / f"{name}.png", tmp_path)
    return tmp_path


def data(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(prompt: str, images: Iterable[str], ranks: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, "images": [f"{name}.png" for name in images], "ranks": ranks}


def found(result: Audit, kind: str) -> Finding:
    return {finding.kind: finding for finding in result.findings}[kind]


def kinds(result: Audit) -> set[str]:
    return {finding.kind for finding in result.findings}


def test_sound_data_and_its_counts(folder: Path) -> None:
    path = data(folder / "train.jsonl", row("a cat", "abc", [1, 2, 5]), row("A  Cat", "bac", [2, 2, 1]), row("a dog", "ca", [3, 1]))
    result = audit([path])
    assert result.sound
    assert result.findings == []
    (summary,) = result.files
    assert (summary.num_prompts, summary.num_distinct_prompts) == (3, 2)
    assert (summary.num_images, summary.num_distinct_images) == (8, 3)
    assert (summary.num_untied_pairs, summary.num_tied_pairs, summary.tie_rate) == (6, 1, pytest.approx(1 / 7))
    assert summary.images_per_prompt == {2: 1, 3: 2}
    assert (summary.num_long_prompts, summary.longest_prompt) == (0, 4)


def test_missing_and_damaged_images(folder: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:2000])
    (folder / "c.png").write_text("not a picture")
    path = data(folder / "train.jsonl", row("a cat", "abcd", [1, 2, 3, 4]), row("a dog", "da", [1, 2]))
    seen: list[tuple[int, int]] = []
    result = audit([path], on_image=lambda done, total: seen.append((done, total)))
    assert not result.sound
    missing, unreadable = found(result, "missing image"), found(result, "unreadable image")
    assert (missing.level, missing.num) == ("error", 1)
    assert missing.examples == [f"{folder / 'd.png'} (line 1)"]
    assert (unreadable.level, unreadable.num) == ("error", 2)
    assert "b.png (line 1): " in unreadable.examples[0]
    assert "truncated" in unreadable.examples[0]
    assert "is text, perhaps a server's message, and not an image" in unreadable.examples[1]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    fast = audit([path], fast=True)
    assert kinds(fast) == {"missing image"}
    assert not fast.images_opened


def test_images_in_parquet_are_opened_too(folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    rows = [{"caption": "a cat", "jpg_0": whole, "jpg_1": whole[: len(whole) // 2], "label_0": 1.0, "label_1": 0.0}]
    rows += [rows[0] | {"jpg_1": whole}, rows[0] | {"jpg_1": None}]
    write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    result = audit([folder / "train.parquet"])
    damaged, empty = found(result, "unreadable image").examples
    assert "train.parquet, row group 0, row 1, jpg_1 (row 1): " in damaged
    assert "row 3, jpg_1 holds no bytes but NoneType" in empty
    assert "row 2: image 1 has rank 1, image 2 rank 2, and they are the same image" in found(result, "rank against itself").examples[0]
    assert kinds(audit([folder / "train.parquet"], fast=True)) == set()


def test_images_that_are_not_files_are_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "d.png")
    (folder / "e.png").symlink_to("/dev/zero")
    (folder / "f.png").mkdir()
    path = data(folder / "train.jsonl", row("a cat", "abdef", [1, 2, 3, 4, 5]))
    for fast in (False, True):
        result = audit([path], fast=fast)
        assert kinds(result) == {"unreadable image"}
        for name, example in zip("def", found(result, "unreadable image").examples, strict=True):
            assert f"{name}.png" in example
            assert any(kind in example for kind in ("pipe", "device", "folder"))


def test_names_that_are_not_utf8_can_be_reported(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / os.fsdecode(b"caf\xe9.png"))
    path = data(folder / "train.jsonl", row("a cat", ["caf\udce9", "b", "gone\udce9"], [1, 2, 3]))
    result = audit([path])
    assert kinds(result) == {"missing image"}
    assert "gone\\udce9.png" in found(result, "missing image").examples[0]


def test_a_picture_followed_by_a_hole_is_not_read_into_memory(folder: Path) -> None:
    with (folder / "a.png").open("r+b") as file:
        file.truncate(50 << 30)
    result = audit([data(folder / "train.jsonl", row("a cat", "ab", [1, 2]))])
    assert kinds(result) == {"unreadable image"}


def test_copies_of_an_image(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "d.png")
    shutil.copy(folder / "a.png", folder / "e.png")
    tied = audit([data(folder / "train.jsonl", row("a cat", "abd", [1, 2, 1]))])
    assert tied.sound
    assert found(tied, "copy").examples == [f"{folder / 'train.jsonl'}, line 1: images 1 and 3"]

    contradicting = audit([data(folder / "train.jsonl", row("a cat", "adbce", [1, 2, 3, 4, 1]), row("a dog", "aa", [2, 1]))])
    assert not contradicting.sound
    copies = found(contradicting, "rank against itself")
    assert (copies.level, copies.num) == ("error", 3)
    assert copies.examples[0].endswith("line 1: image 1 has rank 1, image 2 rank 2, and they are the same image")


def rated(pairs: int, contradictions: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(pairs):
        ratings = (2, 6) if i < contradictions else (6, 2)
        for name, rank, rating in zip("ab", (1, 2), ratings, strict=True):
            rows.append({"image_path": f"{name}.png", "prompt_id": i, "prompt": f"cat {i}", "rank": rank, "overall_rating": rating})
    return rows


@pytest.mark.parametrize(("contradictions", "level"), [(0, None), (2, "warning"), (3, "error")])
def test_ranks_that_contradict_ratings(folder: Path, contradictions: int, level: str | None) -> None:
    """A few are noise, more than 5 % are an error."""
    path = folder / "rated.json"
    path.write_text(json.dumps(rated(40, contradictions)))
    result = audit([path])
    assert result.sound == (level != "error")
    if level is None:
        assert result.findings == []
        return
    finding = found(result, "rank against rating")
    assert (finding.level, finding.num) == (level, contradictions)
    assert "(id 0): image 1 has rank 1, image 2 rank 2, but they are rated 2 and 6" in finding.examples[0]


def test_ties_do_not_contradict_ratings_and_missing_ratings_nothing(folder: Path) -> None:
    rows = rated(2, 2)
    rows[1]["rank"] = 1
    rows[3]["overall_rating"] = None
    (folder / "rated.json").write_text(json.dumps(rows))
    assert audit([folder / "rated.json"]).findings[0].kind == "all tied"
    assert kinds(audit([folder / "rated.json"])) == {"all tied"}


def test_incomplete_comparisons(folder: Path) -> None:
    rows = [row | {"image_amount_in_total": 3} for row in rated(1, 0)]
    (folder / "rated.json").write_text(json.dumps(rows))
    result = audit([folder / "rated.json"])
    assert result.sound
    assert found(result, "incomplete").examples == [f"{folder / 'rated.json'}, entry 1 (id 0): 2 of 3 images are here"]


def test_nothing_to_learn(folder: Path) -> None:
    result = audit([data(folder / "train.jsonl", row("a cat", "ab", [2, 2]), row("a dog", "abc", [1, 1, 1]))])
    assert not result.sound
    assert found(result, "nothing to learn").level == "error"
    assert found(result, "all tied").examples == [f"{folder / 'train.jsonl'}, line 1", f"{folder / 'train.jsonl'}, line 2"]


def test_every_bad_row_is_listed(folder: Path) -> None:
    bad = [row("a cat", "a", [1]), row("a dog", "ab", [0, 1]), row("a bird", "ab", [1, 2]), row("a fish", "ab", [1])]
    result = audit([data(folder / "train.jsonl", *bad)])
    assert not result.sound
    assert [example.split("train.jsonl, ")[1] for example in found(result, "bad row").examples] == [
        "line 1: a comparison has at least two images, not 1",
        "line 2: the rank of image 1 is 0; ranks are integers from 1, 1 for the best",
        "line 4: 2 images and 1 ranks: there must be one rank for each image",
    ]
    assert result.files[0].num_prompts == 1


def test_examples_are_bounded(folder: Path) -> None:
    finding = found(audit([data(folder / "train.jsonl", *[row("a cat", "a", [1])] * 50)]), "bad row")
    assert finding.num == 50
    assert len(finding.examples) == 20


def test_long_prompts_are_a_warning(folder: Path) -> None:
    path = data(folder / "train.jsonl", row("cat " * 33, "ab", [1, 2]), row("cat " * 34, "ab", [1, 2]))
    result = audit([path])
    assert result.sound
    assert found(result, "long prompt").examples == [f"{path}, id #2: 36 tokens"]
    assert (result.files[0].num_long_prompts, result.files[0].longest_prompt) == (1, 36)
    assert found(audit([path], max_tokens=10), "long prompt").num == 2


def test_a_prompt_in_two_splits(folder: Path) -> None:
    train = data(folder / "train.jsonl", row("a cat", "ab", [1, 2]), row("a dog", "ab", [1, 2]))
    test = data(folder / "test.jsonl", row("A CAT ", "ab", [2, 1]), row("a bird", "ab", [1, 2]))
    result = audit([train, test])
    assert not result.sound
    leak = found(result, "prompt in two splits")
    assert (leak.level, leak.num) == ("error", 1)
    assert leak.examples == [f"'a cat' is in {train} and {test} (line 1)"]
    assert audit([train]).sound
    assert audit([test]).sound


def test_errors_come_first(folder: Path) -> None:
    result = audit([data(folder / "train.jsonl", row("cat " * 50, "ab", [1, 2]), row("a cat", "ax", [1, 2]))])
    assert [finding.level for finding in result.findings] == ["error", "warning"]


def test_the_report_for_programs(folder: Path) -> None:
    report = json.loads(json.dumps(audit([data(folder / "train.jsonl", row("a cat", "ax", [1, 2]))]).as_dict()))
    assert report["sound"] is False
    assert report["files"][0]["num_untied_pairs"] == 1
    assert report["files"][0]["tie_rate"] == 0
    assert report["findings"][0]["kind"] == "missing image"


def test_a_split_of_imagerewarddb_with_other_counts_is_noticed(tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path / "metadata-validation.json")
    examples = found(audit([tmp_path / "metadata-validation.json"], fast=True), "published counts").examples
    assert examples[0].endswith("3 prompts, published are 412 (valid)")
    assert examples[1].endswith("0.0k images, published are 2.6k (valid)")
    assert "published counts" not in kinds(audit([TINY], fast=True))  # of no published name


def test_the_published_test_split_has_its_counts() -> None:
    result = audit([shared.published_test_split()], fast=True)
    (summary,) = result.files
    assert (summary.num_prompts, summary.num_images, summary.num_untied_pairs, summary.num_tied_pairs) == (466, 2720, 6399, 831)
    assert (summary.num_distinct_prompts, summary.longest_prompt, summary.num_long_prompts) == (463, 230, 201)
    assert "published counts" not in kinds(result)


def test_a_file_of_no_known_form_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="is of no known form"):
        audit([data(tmp_path / "mine.jsonl", {"picture": "a.png"})])
