from __future__ import annotations

import csv
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

import shared
from image_reward.comparisons import ParquetImage, read, records, write, write_pick_a_pic
from image_reward.errors import ComparisonError
from image_reward.images import open_image
from image_reward.types import Comparison

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"

RATED = [
    {
        "image_path": f"images/test/test_1/{name}.webp",
        "prompt_id": prompt_id,
        "prompt": prompt,
        "classification": "Animals",
        "image_amount_in_total": total,
        "rank": rank,
        "overall_rating": rating,
    }
    for name, prompt_id, prompt, total, rank, rating in [
        ("x", "p1", "a cat", 2, 2, 3),
        ("z", "p2", "a dog", 3, 1, 7),
        ("y", "p1", "a cat", 2, 1, 6),
        ("w", "p2", "a dog", 3, 1, 6),
    ]
]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 2) -> Path:
    write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def ours(prompt: str = "a cat", images: Any = ("1.png", "2.png"), ranks: Any = (1, 2), **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "images": images, "ranks": ranks} | others


# --- published forms ---


def test_imagerewarddb_list() -> None:
    first, second, third = read(TINY)
    folder = TINY.parent
    images = (str(folder / "a.png"), str(folder / "b.png"), str(folder / "c.png"))
    assert first == Comparison("a cat on a chair", images, (1, 2, 5), id="0001", source="ImageRewardDB")
    assert second.ranks == (2, 2, 1)
    assert third.images == (images[2], images[0])


@pytest.mark.parametrize("container", ["parquet", "json"])
def test_imagerewarddb_by_image(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"metadata-test.{container}"
    if container == "parquet":
        parquet(path, RATED)
    else:
        path.write_text(json.dumps(RATED))
    cats, dogs = read(path)
    assert (cats.id, cats.prompt, cats.ranks, cats.source) == ("p1", "a cat", (2, 1), "ImageRewardDB")
    assert cats.images == tuple(str(tmp_path / f"images/test/test_1/{name}.webp") for name in "xy")
    assert (dogs.id, dogs.ranks) == ("p2", (1, 1))
    assert cats.category == dogs.category == "Animals"
    first, second = records(path)
    assert first.ratings == {"overall_rating": (3.0, 6.0)}
    assert first.warning == ""
    assert second.warning == "2 of 3 images are here"


def test_imagerewarddb_json_deep_in_its_folder_finds_its_images(tmp_path: Path) -> None:
    part = tmp_path / "images" / "test" / "test_1"
    part.mkdir(parents=True)
    (part / "x.webp").touch()
    path = part / "test_1.json"
    path.write_text(json.dumps(RATED))
    assert Path(read(path)[0].images[1]).resolve() == (part / "y.webp").resolve()


def test_hpdv2_train(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a cat", "file_path": ["1.jpg", "2.jpg"], "human_preference": [0, 1], "user_hash": "u"},
        {"prompt": "a cat", "file_path": ["1.jpg", "2.jpg"], "human_preference": [1, 0], "user_hash": "v"},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.jpg").touch()  # its images are in a folder named like the split
    found = read(path)
    assert [c.ranks for c in found] == [(2, 1), (1, 2)]
    assert found[0].images == (str(tmp_path / "train" / "1.jpg"), str(tmp_path / "train" / "2.jpg"))
    assert [(c.id, c.source) for c in found] == [("#1", "HPDv2"), ("#2", "HPDv2")]
    rows[1]["human_preference"] = [1, 1]
    path.write_text(json.dumps(rows))
    with pytest.raises(ComparisonError, match=r"train.json, entry 2: human_preference is \[1, 1\], not \[1, 0\] or \[0, 1\]"):
        read(path)


@pytest.mark.parametrize(
    ("ranks", "expected"), [([[3, 1, 2], [1, 2, 2]], [(3, 1, 2), (1, 2, 2)]), ([[2, 0, 1], [1, 2, 2]], [(3, 1, 2), (2, 3, 3)])]
)
def test_hpdv2_test_counts_from_one_or_from_zero(tmp_path: Path, ranks: list[list[int]], expected: list[tuple[int, ...]]) -> None:
    rows = [{"prompt": "a cat", "image_path": ["1.jpg", "2.jpg", "3.jpg"], "rank": values, "raw_annotations": []} for values in ranks]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    assert [c.ranks for c in read(path)] == expected


def picks(image_folder: Path) -> list[dict[str, Any]]:
    a, b = (image_folder / "a.png").read_bytes(), (image_folder / "b.png").read_bytes()
    return [
        {"caption": "a cat", "jpg_0": a, "jpg_1": b, "label_0": 1.0, "label_1": 0.0},
        {"caption": "a cat", "jpg_0": a, "jpg_1": b, "label_0": 0.5, "label_1": 0.5},
        {"caption": "a dog", "jpg_0": b, "jpg_1": a, "label_0": 0.25, "label_1": 0.75},
    ]


def test_hpdv2_test_with_what_each_annotator_said(tmp_path: Path) -> None:
    row = {"prompt": "a cat", "image_path": ["1.jpg", "2.jpg", "3.jpg"], "rank": [1, 3, 2]}
    told = [{"rank": [1, 3, 2], "user_hash": "x"}, {"rank": [2, 3, 1], "user_hash": "y"}]
    (tmp_path / "test.json").write_text(json.dumps([row | {"raw_annotations": told}]))
    assert read(tmp_path / "test.json")[0].annotations == ((1, 3, 2), (2, 3, 1))
    from_zero = [{"rank": [0, 2, 1]}, [1, 2, 0]]
    (tmp_path / "test.json").write_text(json.dumps([row | {"raw_annotation": from_zero}]))
    assert read(tmp_path / "test.json")[0].annotations == ((1, 3, 2), (2, 3, 1))
    bad = [*told, {"rank": [1, 2]}, {"rank": "x"}, [1, 2, 2.5]]
    (tmp_path / "test.json").write_text(json.dumps([row | {"raw_annotations": bad}]))
    [record] = records(tmp_path / "test.json")
    assert record.warning == "3 annotations are not 3 integers, one for each image, and are left out"
    assert record.comparison is not None
    assert record.comparison.annotations == ((1, 3, 2), (2, 3, 1))


def test_pick_a_pic(tmp_path: Path, image_folder: Path) -> None:
    found = read(parquet(tmp_path / "validation.parquet", picks(image_folder)))
    assert [c.ranks for c in found] == [(1, 2), (1, 1), (2, 1)]
    assert [c.shares for c in found] == [(1.0, 0.0), (0.5, 0.5), (0.25, 0.75)]
    assert {c.source for c in found} == {"Pick-a-Pic"}
    image = pickle.loads(pickle.dumps(found[2].images[0]))  # as a loader process would get it
    assert image() == (image_folder / "b.png").read_bytes()
    assert open_image(image).size == open_image(image_folder / "b.png").size
    assert str(image).endswith("validation.parquet, row group 1, row 1, jpg_0")


def test_pairs_for_trainers_that_read_pick_a_pic(tmp_path: Path, image_folder: Path) -> None:
    paths = sorted(image_folder.glob("*.png"))[:2]
    drawn = [open_image(path) for path in paths]
    pairs = [
        Comparison("first", tuple(map(str, paths)), (1, 2)),
        Comparison("second", tuple(drawn), (2, 1)),
        Comparison("tie", (lambda: drawn[0], str(paths[1])), (1, 1)),
    ]
    write_pick_a_pic(pairs * 20, tmp_path / "pairs.parquet")

    rows = pyarrow.parquet.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert [row["label_0"] for row in rows] == [1.0, 0.0, 0.5] * 20
    assert rows[0]["jpg_1"] == paths[1].read_bytes()
    # As diffusers' train_diffusion_dpo.py reads them: ties are left out, and the images are opened from bytes.
    assert [row["caption"] for row in rows if row["label_0"] in (0, 1)] == ["first", "second"] * 20
    assert open_image(rows[1]["jpg_0"]).tobytes() == drawn[0].tobytes()
    assert [(c.prompt, c.ranks) for c in read(tmp_path / "pairs.parquet")][:3] == [("first", (1, 2)), ("second", (2, 1)), ("tie", (1, 1))]


def test_a_ranking_of_three_is_no_pair(tmp_path: Path, image_folder: Path) -> None:
    three = Comparison("a cat", tuple(map(str, sorted(image_folder.glob("*.png"))[:3])), (1, 2, 3))
    with pytest.raises(ComparisonError, match="'a cat' has a ranking of 3 images"):
        write_pick_a_pic([three], tmp_path / "pairs.parquet")
    assert not list(tmp_path.glob("pairs*"))


def test_a_folder_of_shards_is_one_data_set(tmp_path: Path, image_folder: Path) -> None:
    rows = picks(image_folder)
    parquet(tmp_path / "train-0.parquet", rows[:2])
    parquet(tmp_path / "train-1.parquet", [*rows[2:], rows[0] | {"label_0": -1.0}])
    assert [c.prompt for c in read(tmp_path, limit=3)] == ["a cat", "a cat", "a dog"]
    with pytest.raises(
        ComparisonError, match=r"train-1.parquet, row 2: label_0 and label_1 are -1.0 and 0.0; they must be shares that sum to 1"
    ):
        read(tmp_path)


def test_the_published_test_split_has_the_published_counts() -> None:
    found = read(shared.published_test_split())
    assert len(found) == 466
    assert sum(len(c.images) for c in found) == 2720
    pairs = [(a, b) for c in found for i, a in enumerate(c.ranks) for b in c.ranks[i + 1 :]]
    assert sum(a != b for a, b in pairs) == 6399
    assert sum(a == b for a, b in pairs) == 831


# --- ours ---


def test_jsonl(tmp_path: Path) -> None:
    rows = [ours(id="x"), ours(images=["/far/1.png", "2.png", "3.png"], ranks=[2, 1, 2]), ours(shares=[0.7, 0.3], source="me")]
    first, second, third = read(jsonl(tmp_path / "mine.txt", rows))
    assert first == Comparison("a cat", (str(tmp_path / "1.png"), str(tmp_path / "2.png")), (1, 2), id="x")
    assert second.images[0] == "/far/1.png"
    assert (second.ranks, second.id) == ((2, 1, 2), "#2")
    assert (third.shares, third.source) == ((0.7, 0.3), "me")


@pytest.mark.parametrize("container", [table, parquet, jsonl])
def test_tables_by_image(tmp_path: Path, container: Any) -> None:
    rows = [
        {"prompt": "a cat, a dog", "image": "1.png", "rank": 1},
        {"prompt": "zwölf", "image": "2.png", "rank": 2},
        {"prompt": "a cat, a dog", "image": "3.png", "rank": 3},
        {"prompt": "zwölf", "image": "4.png", "rank": 2},
    ]
    first, second = read(container(tmp_path / "mine", rows))
    assert (first.prompt, first.ranks, first.id) == ("a cat, a dog", (1, 3), "#1")
    assert (second.prompt, second.images) == ("zwölf", (str(tmp_path / "2.png"), str(tmp_path / "4.png")))
    with_ids = [row | {"id": str(i % 2)} for i, row in enumerate(rows)]
    assert [c.id for c in read(container(tmp_path / "mine", with_ids))] == ["0", "1"]
    one_prompt = [row | {"prompt": "a cat"} for row in with_ids]
    assert [len(c.images) for c in read(container(tmp_path / "mine", one_prompt))] == [2, 2]


def test_images_are_relative_to_the_folder_given(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [ours()])
    (tmp_path / "pictures").mkdir()
    assert read(path, images=tmp_path / "pictures")[0].images[0] == str(tmp_path / "pictures" / "1.png")
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        read(path, images=tmp_path / "pitcures")


def test_what_is_written_is_read_again(tmp_path: Path, image_folder: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    given = read(parquet(source / "picks.parquet", picks(image_folder))) + read(TINY)
    given[0] = replace(given[0], category="Animals", annotations=((1, 2), (2, 1)))
    (tmp_path / "out").mkdir()
    write(given, tmp_path / "out" / "train.jsonl")
    text = (tmp_path / "out" / "train.jsonl").read_text()
    assert '"../data/picks.parquet"' in text
    again = read(tmp_path / "out" / "train.jsonl")
    for before, after in zip(given, again, strict=True):
        assert replace(after, images=()) == replace(before, images=())
    assert isinstance(again[0].images[1], ParquetImage)
    assert again[0].images[1]() == (image_folder / "b.png").read_bytes()
    assert Path(again[-1].images[0]).resolve() == TINY.parent / "c.png"
    with pytest.raises(ComparisonError, match="comparison 'x' holds a bytes in memory"):
        write([Comparison("a cat", (b"1", b"2"), (1, 2), id="x")], tmp_path / "memory.jsonl")


# --- what is wrong ---


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ours(images=["1.png"], ranks=[1]), "a comparison has at least two images, not 1"),
        (ours(ranks=[1, 2, 3]), "2 images and 3 ranks: there must be one rank for each image"),
        (ours(ranks=[0, 1]), "the rank of image 1 is 0; ranks are integers from 1"),
        (ours(ranks=[1, 1.5]), "the rank of image 2 is 1.5; ranks are integers"),
        (ours(ranks=[1, None]), "the rank of image 2 is None"),
        (ours(ranks=[1, "best"]), "the rank of image 2 is 'best'"),
        (ours(ranks=[1, 10**400]), "the rank of image 2 is 1000.*000; ranks are integers"),
        (ours(ranks=[1, float("nan")]), "the rank of image 2 is nan"),
        (ours(ranks=[1, float("-inf")]), "the rank of image 2 is -inf"),
        (ours(ranks=[1, "1_0"]), "the rank of image 2 is '1_0'"),
        (ours(ranks=[[1], [2]]), r"the rank of image 1 is \[1\]"),
        (ours(images=["1.png"] * 100_000, ranks=[1] * 100_000), "a comparison has at most 1,000 images, not 100,000"),
        (ours(images=[["1.png"], ["2.png"]]), r"image 1 is \['1.png'\], not a path"),
        (ours(images=["1.png", "ftp://b/2.png"]), "image 2 is 'ftp://b/2.png', an address that is not read here: only those of s3, gs"),
        (ours(images=["https://b/1.png", "2.png"]), "image 1 is 'https://b/1.png', an address"),
        (ours(images=["\ud800.png", "2.png"]), "image 1 is .*, not a path: it holds half of a surrogate pair"),
        (ours(images=["a\0.png", "2.png"]), "image 1 is .*, not a path: it holds a NUL character"),
        (ours(images=[{"parquet": 1, "row_group": 0, "row": 0, "column": "a"}, "2.png"]), "image 1 is .*, not a path"),
        (ours(prompt="a \ud83d cat"), "the prompt is not text: it holds half of a surrogate pair"),
        (ours(prompt=["a cat"]), r"the prompt is \['a cat'\], not text"),
        (ours(id=["x"]), r"the id is \['x'\], not text or a number"),
        (ours(id="\udfff"), "the id is not text"),
        (ours(shares=[10**400, 0]), "the shares are .*; they must be in"),
        (ours(ranks=[1, True]), "the rank of image 2 is True"),
        (ours(ranks="12"), "the ranks are '12', not a list"),
        (ours(images=["1.png", None]), "image 2 is None, not a path"),
        (ours(images=["1.png", ""]), "image 2 is '', not a path"),
        (ours(prompt=7), "the prompt is 7, not text"),
        (ours(prompt=" "), "the prompt is ' ', not text"),
        (ours(shares=[0.5]), r"the shares are \[0.5\], not one number for each image"),
        (ours(shares=[0.5, 0.6]), r"the shares are \[0.5, 0.6\]; they must be in \[0, 1\] and sum to 1"),
        ({"prompt": "a cat", "images": ["1.png", "2.png"]}, "ranks is missing"),
        (ours(id="x"), "the id 'x' is used twice; it was seen at line 1"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [ours(id="x"), ours(id="y"), row, ours(id="z")])
    with pytest.raises(ComparisonError, match=f"mine.jsonl, line 3.*: {problem}"):
        read(path)
    assert [record.comparison is None for record in records(path)] == [False, False, True, False]
    assert len(read(path, limit=2)) == 2


def test_rows_of_one_id_must_have_one_prompt(tmp_path: Path) -> None:
    rows = [{"id": "x", "prompt": p, "image": f"{p}.png", "rank": 1} for p in ("cat", "dog")]
    with pytest.raises(ComparisonError, match=r"line 2 \(id x\): its rows have 2 different prompts"):
        read(table(tmp_path / "mine.csv", rows))


def test_an_unknown_form_says_what_was_looked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "scores.jsonl", [{"prompt": "a cat", "image": "1.png", "reward": 0.5}])
    with pytest.raises(ComparisonError) as caught:
        read(path)
    message = str(caught.value)
    assert "scores.jsonl is of no known form: its first row has prompt, image, reward." in message
    for form in ("ImageRewardDB (image_path, prompt_id, prompt, rank)", "HPDv2 test", "Pick-a-Pic", "ours, by image (prompt, image, rank)"):
        assert form in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"[]", "has no rows"),
        (b"prompt,image,rank\n", "has no rows"),
        (b"[1, 2]", "entry 1 is not an object with keys but int"),
        (b'[{"prompt": "a', "entry 1 .line 1. is not JSON: Unterminated string"),
        (b'{"prompt": "a cat",\n"images": []}', "line 1 is not JSON.*one whole object on each line"),
        (b'{"prompt": "a"}\n[1]\n', "is of no known form"),
        (b"prompt,image,rank\na cat,1.png\n", "line 2 has 2 cells; the header has 3"),
        (b"prompt,image,rank\na, cat,1.png,1\n", "line 2 has 4 cells; the header has 3: quote cells that hold commas"),
        (b"\xff\xfe\x00\x01", "is UTF-16 text"),
        (b"PAR1 and no more", "is not a whole Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_such_file(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(ComparisonError, match=problem):
        read(tmp_path / "mine")


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file of comparisons: .*nothing\.json"):
        read(tmp_path / "nothing.json")
    with pytest.raises(ComparisonError, match="is a folder without Parquet files"):
        read(tmp_path)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "mine.parquet", RATED)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ComparisonError, match=r"needs pyarrow: pip install 'image-reward\[data\]'"):
        read(path)


def test_ranks_may_be_written_as_text_or_with_a_point(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path / "mine", [ours(ranks=[" 2", 1.0])]))[0].ranks == (2, 1)


def test_rows_without_an_id_are_told_apart_by_prompt_also_where_pandas_wrote_nan(tmp_path: Path) -> None:
    rows = [{"id": float("nan"), "prompt": p, "image": f"{p}{k}.png", "rank": k} for p in ("cat", "dog") for k in (1, 2)]
    assert [c.prompt for c in read(jsonl(tmp_path / "mine", rows))] == ["cat", "dog"]


def test_rows_of_two_forms_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="mine mixes two forms"):
        read(jsonl(tmp_path / "mine", [ours(image="1.png", rank=1)]))


def test_imagerewarddb_as_datasets_writes_it(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": bytes([i]), "path": f"{i}.webp"}, "prompt_id": str(i % 2), "prompt": "a cat", "rank": 1 + i} for i in range(4)
    ]
    first, second = read(parquet(tmp_path / "train.parquet", rows, row_group_size=3))
    assert (first.id, first.ranks, first.source) == ("0", (1, 3), "ImageRewardDB")
    assert [image() for image in (*first.images, *second.images)] == [b"\0", b"\2", b"\1", b"\3"]


def test_what_only_labels_a_comparison_may_be_anything(tmp_path: Path) -> None:
    (found,) = read(jsonl(tmp_path / "mine", [ours(category="caf\udce9", source={"a": [1]})]))
    assert (found.category, found.source) == ("caf?", "{'a': [1]}")


def test_a_text_that_is_too_long_for_a_prompt_is_a_problem_of_its_row(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "cat " * 200_000, "images": ["a.png", "b.png"], "ranks": [1, 2]}) + "\n")
    with pytest.raises(ComparisonError, match=r"long\.jsonl, line 1: the prompt has 800,000 characters; at most 200,000"):
        read(file)
