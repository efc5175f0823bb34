from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from image_reward.cli import main
from saved_datasets import save_dict_to_disk, to_parquet

TINY = Path(__file__).parents[1] / "data" / "comparisons_tiny.json"


@pytest.fixture
def data(tmp_path: Path, image_folder: Path) -> Path:
    """A file of comparisons beside its images."""
    for image in image_folder.glob("*.png"):
        shutil.copy(image, tmp_path)
    return Path(shutil.copy(TINY, tmp_path / "mine.json"))


def test_check_of_sound_data(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert main(["data", "check", str(data)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "prompts 3 (2 distinct)",
        "images 8 (3 distinct)",
        "untied pairs 6",
        "tied pairs 1 (14.3 %)",
        "nothing is wrong",
        "sound",
    ):
        assert words in out


def test_check_of_unsound_data(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    (data.parent / "c.png").unlink()
    assert main(["data", "check", str(data), "--fast"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "error images that do not exist 1" in out
    assert "1 kind of error: training on this would be unsound; images were not opened" in out
    assert main(["data", "check", str(data), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is False
    assert [finding["kind"] for finding in report["findings"]] == ["missing image"]


def test_check_takes_files_of_one_data_set_and_a_folder_of_images(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "other.json"
    other.parent.mkdir()
    shutil.copy(data, other)
    assert main(["data", "check", str(data), str(other), "--image-root", str(tmp_path)]) == 1
    assert "prompts in more than one split" in capsys.readouterr().out


def test_split_writes_files_that_share_no_prompt(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "splits"
    assert main(["data", "split", str(data), str(out), "--fractions", "0.5", "0.5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out / "train.jsonl"), str(out / "validation.jsonl")]
    sizes = {path.name: len(path.read_text().splitlines()) for path in out.iterdir()}
    assert sorted(sizes.values()) == [1, 2]
    assert main(["data", "check", *printed.out.split()]) == 0  # the images are found from there, and no prompt is in both
    assert main(["data", "split", str(data), str(out), "--fractions", "0.5", "0.5"]) == 2
    assert "train.jsonl already exists" in capsys.readouterr().err


def test_errors(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    for arguments, code, words in [
        (["check"], 2, "name at least one file of human rankings to check"),
        (["check", "none.json"], 1, "no such file of comparisons: none.json"),
        (["split", str(data), str(tmp_path / "x"), "--fractions", "1.0"], 2, "two or three numbers, not 1"),
        (["split", str(data), str(tmp_path / "x"), "--fractions", "0.5", "0.2"], 1, "sum to 1, not 0.5, 0.2"),
        (["split", str(data), str(tmp_path / "x")], 1, f"{data}: 2 different prompts cannot be split into 3 parts"),
    ]:
        assert main(["data", *arguments]) == code
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_hostile_files_are_one_line_and_exit_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = {"prompt": "a cat", "images": ["1.png", "2.png"], "ranks": [1, 2]}
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text('{"a":' * 100_000)
    (tmp_path / "cp1252").write_bytes(b'{"prompt": "caf\xe9"}')
    (tmp_path / "many").write_text(json.dumps(row | {"images": ["1.png"] * 10**5, "ranks": [1] * 10**5}))
    (tmp_path / "digits").write_text(json.dumps(row | {"ranks": [1, 10**400]}))
    (tmp_path / "cut").write_text('{"prompt": "a cat \\ud83d", "images": ["1.png", "2.png"], "ranks": [1, 2]}')
    for name, words in {
        "pipe": "is a named pipe, not a file",
        "deep": "line 1 is nested too deeply",
        "cp1252": "line 1 is not UTF-8",
        "many": "at most 1,000 images, not 100,000",
        "digits": "ranks are integers from 1",
        "cut": "the prompt is not text",
    }.items():
        path = str(tmp_path / name)
        for command in (
            ["data", "split", path, str(tmp_path / "out")],
            ["train", "--data", path],
            ["evaluate", path, "--model", "ImageReward-mini"],
        ):
            assert main(command) == 1
            message = capsys.readouterr().err
            assert message.count("\n") == 1
            assert path in message
            assert words in message
        assert main(["data", "check", path]) == 1
        assert words in " ".join("".join(capsys.readouterr()).split())
    assert not (tmp_path / "out").exists()


def test_a_split_into_a_file_and_fractions_that_are_not_numbers(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert main(["data", "split", str(data), str(data), "--fractions", "0.5", "0.5"]) == 2
    assert "mine.json is a file that is read too, and would be overwritten; give another name" in capsys.readouterr().err
    other = data.with_name("other.json")
    other.touch()
    assert main(["data", "split", str(data), str(other), "--fractions", "0.5", "0.5"]) == 2
    assert "other.json cannot be a folder: a file with that name exists" in capsys.readouterr().err
    assert main(["data", "split", str(data), str(data.parent / "x"), "--fractions", "nan", "nan"]) == 1
    assert "fractions are two or more positive numbers" in capsys.readouterr().err
    assert main(["data", "check", "https://bucket/train.parquet"]) == 1
    assert "https://bucket/train.parquet: https:// is not read here; download it first" in capsys.readouterr().err


# --- convert ---


def pairs(image_folder: Path, num: int = 4) -> list[dict[str, Any]]:
    """As ImageRewardDB's 8k_pair."""
    a, b, c = ({"bytes": (image_folder / f"{name}.png").read_bytes(), "path": f"{name}.png"} for name in "abc")
    return [{"prompt": f"prompt {n}", "img_better": a if n % 2 else c, "img_worse": b} for n in range(num)]


def test_convert_and_what_follows_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, image_folder: Path) -> None:
    source, output = to_parquet(tmp_path / "pairs.parquet", pairs(image_folder)), tmp_path / "mine.jsonl"
    assert main(["data", "convert", str(source), str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{output}\n"
    assert printed.err.splitlines() == ["4 comparisons of 8 images", f"3 images were written to {tmp_path / 'mine-images'}"]
    source.unlink()
    assert main(["data", "check", str(output)]) == 0
    assert main(["evaluate", str(output), "--model", "ImageReward-mini", "--json"]) == 0
    capsys.readouterr()
    network = {
        "image-size": 16, "patch-size": 8, "vision-width": 16, "vision-layers": 1, "vision-heads": 2, "text-width": 16, "text-layers": 1,
        "text-heads": 2, "text-hidden": 32, "max-positions": 24, "projection-width": 8, "head-widths": 8,
    }  # fmt: skip
    sizes = [word for name, value in network.items() for word in (f"--network.{name}", str(value))]
    options = ["--start", "scratch", "--freeze", "0", "--max-steps", "1", "--validation-share", "0", "--cpu", "--workers", "0"]
    assert main(["train", "--data", str(output), "--output", str(tmp_path / "run"), "--max-tokens", "24", *options, *sizes]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "run/model: step 1" in capsys.readouterr().out


def test_convert_a_saved_dictionary_of_splits(capsys: pytest.CaptureFixture[str], tmp_path: Path, image_folder: Path) -> None:
    rows = pairs(image_folder)
    source = save_dict_to_disk(tmp_path / "saved", {"train": rows[:3], "test": rows[3:]})
    out = tmp_path / "out"
    assert main(["data", "convert", str(source), str(out), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(file["path"], file["num_comparisons"], file["num_extracted"]) for file in files] == [
        (str(out / "train.jsonl"), 3, 3),
        (str(out / "test.jsonl"), 1, 2),
    ]
    assert main(["data", "check", str(out / "train.jsonl"), str(out / "test.jsonl")]) == 0
    capsys.readouterr()
    assert main(["data", "convert", str(source), str(out)]) == 2
    assert "train.jsonl already exists; name another file, or remove it" in capsys.readouterr().err
    assert main(["train", "--data", str(source)]) == 1
    assert f"saved has 2 splits; name one of them: {source / 'train'}" in capsys.readouterr().err


def test_convert_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    votes = ("leftvote", "bothbad_vote", "downvote")
    rows = [{"prompt": "a cat", "left_image": "1.png", "right_image": "2.png", "vote_type": vote} for vote in votes]
    (tmp_path / "votes.json").write_text(json.dumps(rows))
    convert = ["data", "convert", str(tmp_path / "votes.json"), str(tmp_path / "mine.jsonl")]
    assert main(convert) == 1
    message = capsys.readouterr().err
    assert "votes.json, entry 3: vote_type is 'downvote', not one of" in message
    assert message.count("\n") == 1
    assert main([*convert, "--skip-wrong"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "1 comparison of 2 images",
        "rows that do not say which image is better: 1 left out, the first is entry 2: the vote is bothbad_vote, that both images are bad",
        "rows that make no sense: 1 left out, the first is entry 3: vote_type is 'downvote', not one of leftvote, rightvote, tievote, "
        "bothbad_vote",
    ]
    assert main(["data", "convert", "ftp://bucket/train", str(tmp_path / "other.jsonl")]) == 1
    assert "ftp://bucket/train: ftp:// is not read here" in capsys.readouterr().err
