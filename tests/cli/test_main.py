from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_reward import __version__
from image_reward.cli import main
from image_reward.errors import InputError, JobError
from image_reward.scorers import ImageRewardScorer

REPORT = "image-reward: this is a defect, not a mistake of yours; please report it with the lines above"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        TypeError("unhashable type"),
        KeyError("reward"),
        ZeroDivisionError("division by zero"),
        ValueError("operands could not be broadcast together"),
        OSError("cannot identify image file"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("command", ["rank", "score"])
def test_a_defect_shows_where_it_is(
    command: str,
    error: Exception,
    model_folder: str,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageRewardScorer, "forward", fail)
    assert main([command, "a cat", str(image_folder), "--model", model_folder]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [f"{type(error).__name__}: {error}", REPORT]
    assert any("in fail" in line for line in lines)
    assert not captured.out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (JobError("the disk is full"), "the disk is full"),
        (InputError("batch_size must be at least 1"), "--batch-size must be at least 1"),
        (FileNotFoundError("no such image: a.png"), "no such image: a.png"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file or directory"),
        (PermissionError(13, "Permission denied", "a.png"), "a.png: Permission denied"),
        (PermissionError(13, "Permission denied", b"a.png"), "a.png: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
    ids=repr,
)
def test_what_users_can_cause_or_mend_is_one_line(
    error: Exception, line: str, model_folder: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageRewardScorer, "forward", fail)
    assert main(["rank", "a cat", str(image_folder), "--model", model_folder]) == 1
    assert capsys.readouterr().err == f"image-reward: {line}\n"


RANK = ["rank", "cat", "a.png", "--model", "ImageReward-mini"]
WRONG = {
    "a setting": (2, ["train", "--lr", "-1"], "lr must be greater than 0"),
    "no such recipe": (1, ["train", "--recipe", "bad"], "no such recipe: bad"),
    "a recipe that is a folder": (1, ["train", "--recipe", "."], ". is a folder"),
    "a recipe that is not TOML": (1, ["train", "--recipe", "text.json"], "text.json is not TOML"),
    "a source of data": (1, ["pretrain", "--data", "shapes:x"], "'shapes:x' is not of the form shapes:PROMPTS"),
    "the name of a model": (1, ["models", "verify", "ImageReward-v1"], "no model, file or folder is called"),
    "a hub id": (1, ["models", "verify", "a/b..c"], "is not the name of a repository"),
    "a model that is a text": (1, ["models", "info", "text.json"], "text.json is not JSON"),
    "fractions": (1, ["data", "split", "rows.jsonl", "out", "--fractions", "1", "1"], "fractions are two or more positive numbers"),
    "too few prompts": (1, ["data", "split", "rows.jsonl", "out"], "1 different prompts cannot be split"),
    "rankings that are not JSON": (1, ["data", "check", "text.json"], "text.json"),
    "a set of prompts": (1, ["prompts", "show", "no such set"], "is neither a file nor a known set of prompts"),
    "prompts that are not JSON": (1, ["prompts", "show", "text.json"], "text.json"),
    "k": (1, ["evaluate", "rows.jsonl", "--model", "ImageReward-mini", "--k", "9"], "no prompt has more than 9 images"),
    "the name of a scorer": (1, ["evaluate", "rows.jsonl", "--rewards", "human=rewards.json"], "a scorer cannot be called"),
    "rewards that are not JSON": (1, ["evaluate", "rows.jsonl", "--rewards", "text.json"], "text.json is not JSON"),
    "a folder without generators": (1, ["benchmark", "empty", "--prompts", "p.txt", "--model", "ImageReward-mini"], "empty has no folders"),
    "results that are not JSON": (1, ["benchmark", "--results", "results"], "tiny/a.json is not JSON"),
    "a job's folder": (1, ["report", "empty"], "empty"),
    "a file for a folder": (1, ["score-files", "rows.csv", "text.json", "--model", "ImageReward-mini"], "text.json"),
    "a file in a path": (1, [*RANK, "--copy-to", "text.json/best"], "text.json/best: Not a directory"),
    "a name that is too long": (1, [*RANK, "--gallery", "x" * 300 + ".html"], "File name too long"),
    "a number of pixels": (2, [*RANK, "--max-pixels", "-5"], "--max-pixels must be at least 1, not -5"),
    "a side": (2, [*RANK, "--min-side", "-1"], "--min-side must be at least 0, not -1"),
    "a page that is none": (2, [*RANK, "--gallery", "text.json"], "text.json: a gallery is a page"),
    "a folder for a file": (2, ["evaluate", "rows.jsonl", "--per-prompt", "."], "--per-prompt . is written as Parquet"),
    "a copy that would overwrite": (1, [*RANK, "--copy-to", "best"], "already exists and differs"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_one_line(
    what: str, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "best", "results/tiny"):
        Path(name).mkdir(parents=True)
    Path("a.png").write_bytes((image_folder / "a.png").read_bytes())
    Path("rows.jsonl").write_text(json.dumps({"prompt": "cat", "images": ["a.png", "a.png"], "ranks": [1, 2]}) + "\n")
    Path("rewards.json").write_text("[[1, 2]]")
    Path("rows.csv").write_text("prompt,image\ncat,a.png\n")
    for name in ("p.txt", "text.json", "results/tiny/a.json", "best/1_a.png"):
        Path(name).write_text("some text")
    code, arguments, words = WRONG[what]
    assert main(arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("ImageReward-mini")]
    assert len(lines) == 1
    assert lines[0].startswith("image-reward: ")
    assert words in lines[0]


@pytest.mark.parametrize("device", ["mps", "hpu", "cuda:99", "tpu9"])
def test_a_device_that_does_not_work_here_is_no_defect(
    device: str, model_folder: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "a cat", str(image_folder), "--model", model_folder, "--device", device]) == 1
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "use 'cpu'" in captured or "try 'cpu'" in captured


def test_exit_codes(capsys: pytest.CaptureFixture[str], model_folder: str, images: list[str], tmp_path: Path) -> None:
    a = images[0]
    assert main(["rnak", "cat", a]) == 2
    assert capsys.readouterr().err == "image-reward: no command is called rnak; did you mean rank?\n"
    assert main(["xyzzy"]) == 2
    assert "the commands are rank, score, compare" in capsys.readouterr().err
    assert main(["rank", "cat", "--model", model_folder]) == 2
    assert "there are no images" in capsys.readouterr().err
    assert main(["rank", "cat", a, "missing.png", "--model", model_folder]) == 1
    assert capsys.readouterr().err == "image-reward: no such image: missing.png; --skip-unreadable leaves out what cannot be read\n"
    assert main(["rank", "cat", a, "--model", "ImageReward-v1"]) == 1
    assert "Did you mean ImageReward-v1.0?" in capsys.readouterr().err
    assert main(["rank", "cat", a, "--model", model_folder, "--device", "tpu9"]) == 1
    assert "no device is called 'tpu9'" in capsys.readouterr().err
    assert main(["rank", "cat", a, "--model", model_folder, "--batch-size", "0"]) == 1
    assert "--batch-size must be at least 1" in capsys.readouterr().err
    for wrong in (["rank"], ["rank", "cat", a, "--dtype", "int4"], ["models", "convert", "a", "b", "--dtype", "int8"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    (tmp_path / "bad.png").write_text("text")
    assert main(["score", "cat", str(tmp_path / "bad.png"), "--model", model_folder]) == 1
    assert "bad.png is text, perhaps a server's message, and not an image" in capsys.readouterr().err
    assert main(["score", "cat", "two\nlines.png", "--model", model_folder]) == 1
    assert capsys.readouterr().err == "image-reward: no such image: two\\nlines.png\n"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"image-reward {__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "rank" in capsys.readouterr().out
