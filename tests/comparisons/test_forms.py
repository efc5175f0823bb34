"""Published forms other than those of test_readers: each in the layout in which it is published, and what is wrong in it."""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from image_reward.comparisons import ParquetImage, audit, read, records, write
from image_reward.errors import ComparisonError, ComparisonWarning, ImageReadError
from image_reward.images import open_image
from saved_datasets import save_dict_to_disk, save_to_disk, to_parquet


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def a(image_folder: Path) -> dict[str, Any]:
    return {"bytes": (image_folder / "a.png").read_bytes(), "path": "a.png"}


@pytest.fixture
def b(image_folder: Path) -> dict[str, Any]:
    return {"bytes": (image_folder / "b.png").read_bytes(), "path": None}


def problem_of(path: Path) -> str:
    """What is wrong with the one wrong row of a file, as it is raised."""
    with pytest.raises(ComparisonError) as caught:
        read(path)
    assert not audit([path], fast=True).sound
    return str(caught.value)


# --- ImageRewardDB as `datasets` has it ---


def of_8k(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"image": image, "prompt_id": f"00{n // 2}-000{n // 2}", "prompt": f"prompt {n // 2}", "classification": "People",
         "image_amount_in_total": 2, "rank": 1 + n % 2, "overall_rating": 6 - n % 2, "image_text_alignment_rating": 5, "fidelity_rating": 4}
        for n, image in enumerate([a, b, b, a])
    ]  # fmt: skip


def of_8k_group(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"prompt_id": "000-0001", "prompt": "a cat", "classification": "Animals", "image_amount_in_total": 3, "image": [a, b, a],
         "rank": [2, 1, 2], "overall_rating": [3, 7, 4], "image_text_alignment_rating": [3, 7, 3], "fidelity_rating": [3, 7, 3]},
        {"prompt_id": "000-0002", "prompt": "a dog", "classification": "Animals", "image_amount_in_total": 4, "image": [b, a],
         "rank": [1, 2], "overall_rating": [3, 1], "image_text_alignment_rating": [3, 7], "fidelity_rating": [3, 7]},
    ]  # fmt: skip


def of_8k_pair(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"prompt_id": "000-0001", "prompt": "a cat", "classification": "Animals", "img_better": a, "img_worse": b},
        {"prompt_id": "000-0001", "prompt": "a cat", "classification": "Animals", "img_better": b, "img_worse": a},
    ]


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_imagerewarddb_by_image(tmp_path: Path, save: Any, a: dict[str, Any], b: dict[str, Any]) -> None:
    first, second = records(save(tmp_path / "8k", of_8k(a, b)))
    assert first.comparison
    assert second.comparison
    assert (first.comparison.id, first.comparison.source, first.comparison.category) == ("000-0000", "ImageRewardDB", "People")
    assert first.comparison.ranks == second.comparison.ranks == (1, 2)
    assert first.ratings["overall_rating"] == (6.0, 5.0)
    assert [image() for image in (*first.comparison.images, *second.comparison.images)] == [x["bytes"] for x in (a, b, b, a)]


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_imagerewarddb_by_group(tmp_path: Path, save: Any, a: dict[str, Any], b: dict[str, Any]) -> None:
    path = save(tmp_path / "8k_group", of_8k_group(a, b))
    first, second = records(path)
    assert first.comparison
    assert second.comparison
    assert (first.comparison.id, first.comparison.ranks, first.comparison.category) == ("000-0001", (2, 1, 2), "Animals")
    assert first.ratings["overall_rating"] == (3.0, 7.0, 4.0)
    assert second.warning == "2 of 4 images are here"
    assert [image() for image in first.comparison.images] == [x["bytes"] for x in (a, b, a)]
    image = pickle.loads(pickle.dumps(second.comparison.images[1]))
    assert str(image).endswith("row group 0, row 2, image, image 2")
    assert open_image(image).size == open_image(a).size
    write([second.comparison], tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0].images[1]() == a["bytes"]


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_imagerewarddb_by_pair(tmp_path: Path, save: Any, a: dict[str, Any], b: dict[str, Any]) -> None:
    first, second = read(save(tmp_path / "8k_pair", of_8k_pair(a, b)))
    assert (first.ranks, second.ranks, first.category) == ((1, 2), (1, 2), "Animals")
    assert [image() for image in (*first.images, *second.images)] == [x["bytes"] for x in (a, b, b, a)]


def test_lists_of_bytes_without_paths(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    rows = [{"prompt": f"prompt {n}", "images": [a["bytes"], b["bytes"]], "ranks": [1, 2]} for n in range(40)]
    found = read(to_parquet(tmp_path / "mine.parquet", rows, row_group_size=30))
    assert len(found) == 40
    assert found[35].images[1] == ParquetImage(str(tmp_path / "mine.parquet"), 1, 5, "images", 1)
    assert found[35].images[1]() == b["bytes"]


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_structures_that_hold_paths_and_no_bytes(tmp_path: Path, save: Any) -> None:
    def image(name: str) -> dict[str, Any]:
        return {"bytes": None, "path": name}

    rows = [{"prompt": "a cat", "img_better": image("x.png"), "img_worse": image("/far/y.png")}]
    path = save(tmp_path / "pairs", rows)
    folder = path if path.is_dir() else tmp_path
    assert read(path)[0].images == (str(folder / "x.png"), "/far/y.png")
    path = save(tmp_path / "lists", [{"prompt": "a cat", "images": [image("x.png"), image("y.png")], "ranks": [1, 2]}])
    folder = path if path.is_dir() else tmp_path
    assert read(path)[0].images == (str(folder / "x.png"), str(folder / "y.png"))


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_images_in_tables_that_are_none(tmp_path: Path, save: Any, a: dict[str, Any], b: dict[str, Any]) -> None:
    rows = of_8k_pair(a, b)
    rows[0]["img_worse"] = {"bytes": b"not an image", "path": "a.png"}
    rows[1]["img_worse"] = None
    path = save(tmp_path / "broken", rows)
    [finding] = [finding for finding in audit([path]).findings if finding.level == "error"]
    assert (finding.kind, finding.num) == ("unreadable image", 2)
    assert "row 1, img_worse" in finding.examples[0]
    assert re.search(r"row 2, img_worse.*holds no bytes but NoneType", finding.examples[1])
    with pytest.raises(
        ImageReadError, match=r"broken.*, row group 0, row 1, img_worse is text, perhaps a server's message, and not an image"
    ):
        open_image(read(path)[0].images[1])
    lists = of_8k_group(a, b)
    lists[1] |= {"image": None, "rank": [1, 2]}
    assert "row 2 (id 000-0002): 0 images and 2 ranks" in problem_of(save(tmp_path / "none", lists))
    lists[1] |= {"image": [a], "rank": [1]}
    assert "row 2 (id 000-0002): a comparison has at least two images, not 1" in problem_of(save(tmp_path / "one", lists))


# --- folders of save_to_disk ---


def test_a_saved_data_set_of_several_files(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    rows = [{"prompt": f"prompt {n}", "img_better": a, "img_worse": b} for n in range(7)]
    folder = save_to_disk(tmp_path / "saved", rows, num_shards=2)
    found = read(folder)
    assert [c.prompt for c in found] == [f"prompt {n}" for n in (0, 2, 4, 6, 1, 3, 5)]
    assert found[5].images[1] == ParquetImage(str(folder / "data-00001-of-00002.arrow"), 0, 1, "img_worse")
    assert [image() for image in found[6].images] == [a["bytes"], b["bytes"]]
    assert [c.prompt for c in read(folder / "data-00001-of-00002.arrow")] == ["prompt 1", "prompt 3", "prompt 5"]
    with pytest.raises(ComparisonError, match=r"data-00000-of-00002\.arrow, row 1: the prompt is ''"):
        read(save_to_disk(tmp_path / "wrong", [{"prompt": "", "img_better": a, "img_worse": b}] * 2, num_shards=2))


def test_a_saved_dictionary_of_splits(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    folder = save_dict_to_disk(tmp_path / "saved", {"train": of_8k_pair(a, b), "test": of_8k_pair(a, b)[:1]})
    with pytest.raises(ComparisonError, match=r"saved has 2 splits; name one of them: .*saved/train, .*saved/test$"):
        read(folder)
    assert len(read(folder / "train")) == 2
    assert len(read(save_dict_to_disk(tmp_path / "one", {"train": of_8k_pair(a, b)}))) == 2


def test_a_saved_data_set_that_is_not_whole(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    folder = save_to_disk(tmp_path / "saved", of_8k_pair(a, b))
    file = folder / "data-00000-of-00001.arrow"
    content = file.read_bytes()
    for cut in (4, 100, len(content) // 2, len(content) - 8):
        file.write_bytes(content[:cut])
        with pytest.raises(ComparisonError, match=r"arrow is not a whole Arrow file.*; save or download it again"):
            read(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no such file of comparisons: .*data-00000-of-00001\.arrow"):
        read(folder)
    state = json.loads((folder / "state.json").read_text())
    for changes, problem in (
        ({"_data_files": None}, "does not name the files of a data set"),
        ({"_data_files": [7]}, "does not name the files of a data set"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, r"a selection of rows; call `flatten_indices\(\)`"),
    ):
        (folder / "state.json").write_text(json.dumps(state | changes))
        with pytest.raises(ComparisonError, match=problem):
            read(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ComparisonError, match=r"state\.json is not JSON"):
        read(folder)
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["../saved"]}')
    with pytest.raises(ComparisonError, match="does not name splits"):
        read(tmp_path / "dict")


# --- pairs ---


def hpdv3(**changes: Any) -> dict[str, Any]:
    row = {"prompt": "a cat", "choice_dist": [12, 4], "confidence": 0.98, "path1": "images/1.jpg", "path2": "images/2.jpg"}
    return row | {"model1": "flux", "model2": "sdxl"} | changes


def test_hpdv3(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    rows = [
        hpdv3(),
        hpdv3(choice_dist=[3, 9]),
        hpdv3(choice_dist=None),
        hpdv3(choice_dist="null", confidence=None),
        hpdv3(choice_dist=[0, 0]),
    ]
    path.write_text(json.dumps(rows))
    found = read(path)
    assert found[0].images == (str(tmp_path / "images/1.jpg"), str(tmp_path / "images/2.jpg"))
    assert {c.ranks for c in found} == {(1, 2)}
    assert {c.source for c in found} == {"HPDv3"}
    assert [c.shares for c in found] == [(0.75, 0.25), (0.75, 0.25), None, None, None]
    for changes, problem in (
        ({"path2": None}, "entry 2: image 2 is None, not a path"),
        ({"path1": 7}, "entry 2: image 1 is 7, not a path"),
        ({"path1": "https://b/1.jpg"}, "entry 2: image 1 is 'https://b/1.jpg', an address"),
        ({"prompt": None}, "entry 2: the prompt is None, not text"),
    ):
        path.write_text(json.dumps([hpdv3(), hpdv3(**changes)]))
        assert problem in problem_of(path)


def test_paths_of_two_images_with_a_label_of_their_own_are_not_taken_for_hpdv3(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="is of no known form"):
        read(jsonl(tmp_path / "mine.jsonl", {"prompt": "a cat", "path1": "1.jpg", "path2": "2.jpg", "label": 1}))


def test_chosen_and_rejected(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    one, several = read(
        jsonl(
            tmp_path / "dpo.jsonl",
            {"prompt": "a cat", "chosen": "1.png", "rejected": "2.png"},
            {"prompt": "a cat", "chosen": ["1.png", "3.png"], "rejected": ["2.png"], "id": "x"},
        )
    )
    assert (one.images, one.ranks) == ((str(tmp_path / "1.png"), str(tmp_path / "2.png")), (1, 2))
    assert (several.ranks, several.id) == ((1, 1, 2), "x")
    for save in (to_parquet, save_to_disk):
        (pair,) = read(save(tmp_path / f"dpo_{save.__name__}", [{"prompt": "a cat", "chosen": b, "rejected": a}]))
        assert [image() for image in pair.images] == [b["bytes"], a["bytes"]]
    for changes, problem in (
        ({"chosen": []}, "line 1: chosen is empty"),
        ({"chosen": [], "rejected": ["1.png", "2.png"]}, "line 1: chosen is empty"),
        ({"rejected": None}, "line 1: image 2 is None, not a path"),
        ({"rejected": [{"role": "assistant", "content": "no"}]}, "line 1: image 2 is {'content': 'no', 'role': 'assistant'}, not a path"),
    ):
        path = jsonl(tmp_path / "wrong.jsonl", {"prompt": "a cat", "chosen": "1.png", "rejected": "2.png"} | changes)
        assert problem in problem_of(path)


def test_diffusion_dpo_needs_one_label(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    rows = [{"caption": "a cat", "jpg_0": a["bytes"], "jpg_1": b["bytes"], "label_0": label} for label in (1.0, 0.0, 0.5)]
    assert [c.ranks for c in read(to_parquet(tmp_path / "dpo.parquet", rows))] == [(1, 2), (2, 1), (1, 1)]
    rows[1]["label_0"] = 2.0
    assert "row 2: label_0 and label_1 are 2.0 and None" in problem_of(to_parquet(tmp_path / "dpo.parquet", rows))
    structures = [{"caption": "a cat", "jpg_0": a, "jpg_1": b, "label_0": 0, "label_1": 1}]
    (pair,) = read(save_to_disk(tmp_path / "dpo", structures))
    assert (pair.ranks, pair.images[1]()) == ((2, 1), b["bytes"])


# --- GenAI-Bench ---


def votes(a: dict[str, Any], b: dict[str, Any], *votes: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"prompt {n}", "left_model": "SDXL", "left_image": a, "right_model": "PixArt", "right_image": b, "vote_type": vote}
        for n, vote in enumerate(votes)
    ]


@pytest.mark.parametrize("save", [to_parquet, save_to_disk])
def test_genai_bench(tmp_path: Path, save: Any, a: dict[str, Any], b: dict[str, Any]) -> None:
    path = save(tmp_path / "votes", votes(a, b, "leftvote", "bothbad_vote", "tievote", "rightvote", "bothbad_vote"))
    with pytest.warns(ComparisonWarning, match=r"votes: 2 rows are left out, the first at row 2: the vote is bothbad_vote"):
        found = read(path)
    assert [c.ranks for c in found] == [(1, 2), (1, 1), (2, 1)]
    assert [c.prompt for c in found] == ["prompt 0", "prompt 2", "prompt 3"]
    assert found[2].images[0]() == a["bytes"]
    result = audit([path])
    assert [(f.kind, f.level, f.num) for f in result.findings if f.kind == "left out"] == [("left out", "warning", 2)]
    assert result.sound
    assert result.files[0].num_prompts == 3
    with pytest.warns(ComparisonWarning):
        assert [c.ranks for c in read(path, limit=2)] == [(1, 2), (1, 1)]


def test_votes_that_both_are_bad_are_marked_ties_on_request(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a cat", "left_image": "1.png", "right_image": "2.png", "vote_type": vote}
        for vote in ("leftvote", "bothbad_vote", "tievote")
    ]
    found = read(jsonl(tmp_path / "votes.jsonl", *rows), both_bad=True)
    assert [(c.id, c.ranks, c.both_bad) for c in found] == [("#1", (1, 2), False), ("#2", (1, 1), True), ("#3", (1, 1), False)]
    write(found, tmp_path / "written.jsonl")
    assert read(tmp_path / "written.jsonl", both_bad=True) == found
    with pytest.warns(ComparisonWarning, match="a row is left out at line 2 .id #2.: both_bad is true, that both images are bad"):
        assert [c.id for c in read(tmp_path / "written.jsonl")] == ["#1", "#3"]  # no file loses that they are bad


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"ranks": [1, 2], "both_bad": True}, r"both_bad is true of images of ranks \[1, 2\], not of two that are tied"),
        ({"ranks": [1, 2], "ratings": {"rating": [1, 4.5]}}, "its rating and its ranks put images in different orders"),
    ],
)
def test_rows_that_contradict_themselves(more: dict[str, Any], problem: str, tmp_path: Path) -> None:
    row = {"prompt": "a cat", "images": ["1.png", "2.png"]}
    with pytest.raises(ComparisonError, match=f"line 1: {problem}"):
        read(jsonl(tmp_path / "rows.jsonl", row | more), both_bad=True)
    agreeing = {"ranks": [1, 2], "ratings": {"rating": [4.5, 4.5]}}  # as one annotator of several may rate
    assert read(jsonl(tmp_path / "rows.jsonl", row | agreeing))[0].ratings == (4.5, 4.5)


def test_genai_bench_of_edits_and_votes_that_are_none(tmp_path: Path) -> None:
    edit = {"source_prompt": "a dog", "target_prompt": "a cat", "instruct_prompt": "turn it", "left_output_image": "1.png"}
    edit |= {"right_output_image": "2.png", "vote_type": "rightvote"}
    (found,) = read(jsonl(tmp_path / "edits.jsonl", edit))
    assert (found.prompt, found.ranks, found.images[0]) == ("a cat", (2, 1), str(tmp_path / "1.png"))
    for vote in ("leftVote", "", None, 1, ["leftvote"], {}):
        expected = f"line 2: vote_type is {vote!r}, not one of leftvote, rightvote, tievote, bothbad_vote"
        assert expected in problem_of(jsonl(tmp_path / "wrong.jsonl", edit, edit | {"vote_type": vote}))
    only = jsonl(tmp_path / "only.jsonl", edit | {"vote_type": "bothbad_vote"})
    with pytest.warns(ComparisonWarning, match="a row is left out at line 1"), pytest.raises(ComparisonError, match="has no comparisons"):
        read(only)


# --- MMRB2 ---


def mmrb2(number: int = 0, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"oneigbench_{number}",
        "response_a": {"model_name": "imagen4", "response_content": [["image", f"images/{number}_0.jpg"]]},
        "response_b": {"model_name": "flux", "response_content": [["image", f"images/{number}_1.jpg"]]},
        "chosen": "B",
        "human_annotations": [2, 2, 1],
        "prompt_source": "oneigbench",
        "prompt_metadata": {"id": "124", "category": "Text_Rendering"},
        "prompt_content": [["text", f"prompt {number}"]],
    }
    return row | changes


def test_mmrb2(tmp_path: Path) -> None:
    path = tmp_path / "t2i.json"
    path.write_text(json.dumps({"pairs": [mmrb2(), mmrb2(1, chosen="A")]}, indent=2))
    first, second = read(path)
    assert (first.id, first.prompt, first.ranks, first.category) == ("oneigbench_0", "prompt 0", (2, 1), "Text_Rendering")
    assert (second.ranks, second.source) == ((1, 2), "MMRB2")
    assert first.images == (str(tmp_path / "images/0_0.jpg"), str(tmp_path / "images/0_1.jpg"))
    without = {key: value for key, value in mmrb2(1).items() if key != "prompt_content"}
    two = {"response_content": [["image", "1.jpg"], ["image", "2.jpg"]]}
    for row, problem in (
        (mmrb2(1, chosen="C"), "entry 2: chosen is 'C', not A or B"),
        (mmrb2(1, chosen=None), "entry 2: chosen is None, not A or B"),
        (mmrb2(1, response_a=two), "entry 2: a response is not one image"),
        (mmrb2(1, response_b={"response_content": [["text", "hello"]]}), "entry 2: a response is not one image"),
        (mmrb2(1, response_b=None), "entry 2: a response is not one image"),
        (mmrb2(1, response_b={"response_content": [["image", 7]]}), "entry 2 (id oneigbench_1): image 2 is 7, not a path"),
        (
            mmrb2(1, prompt_content=[["image", "in.jpg"], ["text", "turn it"]]),
            "entry 2: the prompt is not one text, and only pairs of text-to",
        ),
        (mmrb2(1, prompt_content=[["text", None]]), "entry 2 (id oneigbench_1): the prompt is None, not text"),
        (without, "entry 2: the prompt is not one text, and only pairs of text-to-image are read; build t2i.json, which has the prompts"),
        (mmrb2(0), "entry 2 (id oneigbench_0): the id 'oneigbench_0' is used twice"),
    ):
        path.write_text(json.dumps({"pairs": [mmrb2(), row]}))
        assert problem in problem_of(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"pairs": []}', "has no rows"),
        ('{"pairs": [1]}', "entry 1 is not an object with keys but int"),
        ('{"pairs": [ROW]', "is cut off after its list of rows"),
        ('{"pairs": [ROW', "the list does not end: it was cut off"),
        ('{"pairs": [ROW], "version": 2}', "has more keys after its list of rows"),
        ('{"pairs": [ROW]} {"pairs": [ROW]}', "goes on after the end of its list, at line 1"),
        ('{"pairs": 7}', "is of no known form"),
    ],
)
def test_an_object_of_pairs_that_is_not_whole(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "t2i.json").write_text(content.replace("ROW", json.dumps(mmrb2())))
    with pytest.raises(ComparisonError, match=problem):
        read(tmp_path / "t2i.json")


def test_mmrb2_of_the_hub(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    row = {"pair_id": "x", "prompt_text": "a cat", "prompt_images": [b], "response_a_images": [a], "response_b_images": [b], "chosen": "b"}
    first, second = records(to_parquet(tmp_path / "t2i.parquet", [row, row | {"prompt_images": [], "pair_id": "y"}]))
    assert first.problem.startswith("the prompt is not one text")
    assert second.comparison is not None
    assert (second.comparison.id, second.comparison.ranks) == ("y", (2, 1))
    assert [image() for image in second.comparison.images] == [a["bytes"], b["bytes"]]


# --- ratings ---


def ratings(*rows: tuple[Any, Any, Any], key: str = "rating", **others: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "image": image, key: rating} | others for prompt, image, rating in rows]


@pytest.mark.parametrize("key", ["rating", "score", "mos", "MOS"])
def test_ratings_become_ranks_with_ties(tmp_path: Path, key: str) -> None:
    rows = ratings(("cat", "1.png", 3), ("dog", "2.png", 1.5), ("cat", "3.png", 5), ("dog", "4.png", 1.5), ("cat", "5.png", "3"), key=key)
    cats, dogs = read(jsonl(tmp_path / "mos.jsonl", *rows))
    assert (cats.prompt, cats.ranks, cats.images[1]) == ("cat", (2, 1, 2), str(tmp_path / "3.png"))
    assert (dogs.ranks, dogs.id) == ((1, 1), "#2")


def test_ratings_are_kept_beside_their_ranks(tmp_path: Path) -> None:
    found = read(jsonl(tmp_path / "mos.jsonl", *ratings(("cat", "1.png", 3), ("cat", "3.png", 4.5), ("cat", "5.png", "3"))))
    assert [c.ratings for c in found] == [(3.0, 4.5, 3.0)]
    write(found, tmp_path / "written.jsonl")
    assert read(tmp_path / "written.jsonl") == found


def test_ratings_of_several_annotators_are_not_mixed(tmp_path: Path) -> None:
    rows = [
        *ratings(("cat", "1.png", 3), ("cat", "2.png", 5), annotator="ann", prompt_id=7),
        *ratings(("cat", "1.png", 2), ("cat", "2.png", 1), ("cat", "3.png", 4), annotator="bob", prompt_id=7),
        *ratings(("cat", "1.png", 2), annotator="cyd", prompt_id=7),
    ]
    path = jsonl(tmp_path / "mos.jsonl", *rows)
    with pytest.warns(ComparisonWarning, match="a row is left out at line 6: it is the only rating of its prompt by cyd"):
        found = read(path)
    assert [(c.id, c.ranks) for c in found] == [("7/ann", (2, 1)), ("7/bob", (2, 3, 1))]


def test_an_annotator_without_a_name_is_none(tmp_path: Path) -> None:
    rows = [*ratings(("cat", "1.png", 3), annotator=math.nan), *ratings(("cat", "2.png", 5), annotator=None)]
    assert read(jsonl(tmp_path / "mos.jsonl", *rows))[0].ranks == (2, 1)


def test_ratings_beside_images_in_a_table(tmp_path: Path, a: dict[str, Any], b: dict[str, Any]) -> None:
    rows = ratings(("a cat", a, 1.0), ("a cat", b, 2.0))
    (found,) = read(to_parquet(tmp_path / "mos.parquet", rows))
    assert (found.ranks, found.images[1]()) == ((2, 1), b["bytes"])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("cat", "9.png", math.nan), "the rating is nan, not a number"),
        (("cat", "9.png", math.inf), "the rating is inf, not a number"),
        (("cat", "9.png", None), "the rating is None, not a number"),
        (("cat", "9.png", "good"), "the rating is 'good', not a number"),
        (("cat", "9.png", "4,25"), "the rating is '4,25', not a number; write 1,5 as 1.5"),
        ((None, "9.png", 1), "the prompt is None, not text"),
        (("cat", None, 1), "the image is None, not a path"),
        (("cat", 9, 1), "the image is 9, not a path"),
        (("cat", "https://b/9.png", 1), "the image is 'https://b/9.png', an address that is not read here"),
        (
            ("cat", "1.png", 3),
            "the image '1.png' is rated twice for its prompt; name who rated in a column annotator, .*: before at line 1",
        ),
    ],
)
def test_ratings_that_make_no_sense_are_named(tmp_path: Path, row: tuple[Any, Any, Any], problem: str) -> None:
    path = jsonl(tmp_path / "mos.jsonl", *ratings(("cat", "1.png", 3), ("cat", "2.png", 5), row))
    assert re.search(f"mos.jsonl, line 3: {problem}", problem_of(path))
    assert [record.comparison is not None for record in records(path)] == [False, True]


def test_two_columns_of_ratings_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match=r"several columns of images or ratings: image, rating, mos; rename those"):
        read(jsonl(tmp_path / "mos.jsonl", *ratings(("cat", "1.png", 3), mos=4)))


def test_ranks_are_preferred_to_ratings(tmp_path: Path) -> None:
    rows = [*ratings(("cat", "1.png", 3), rank=2), *ratings(("cat", "2.png", 3), rank=1)]
    assert read(jsonl(tmp_path / "mine.jsonl", *rows))[0].ranks == (2, 1)


@pytest.mark.parametrize(
    ("row", "nearly"),
    [
        ({"prompt": "a", "images": ["1.png"], "ranking": [1]}, "'generations' is missing for ImageRewardDB list; 'rank' is missing for"),
        ({"prompt": "a", "chosen": "1.png", "reject": "2.png"}, "Nearly: 'rejected' is missing for chosen and rejected. Looked for"),
        ({"caption": "a", "jpg_0": "1", "jpg_1": "2"}, "Nearly: 'label_0' is missing for Pick-a-Pic. Looked for"),
        ({"text": "a", "file": "1.png"}, "its first row has text, file. Looked for"),
    ],
)
def test_a_form_that_is_nearly_known_is_named(row: dict[str, Any], nearly: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(ComparisonError) as caught:
        read(path)
    assert nearly in str(caught.value)
