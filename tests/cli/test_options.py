from __future__ import annotations

import inspect
import io
import os
import struct
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import tyro
from PIL import Image

import seeded
from image_reward.cli import main
from image_reward.cli.help import CONFIG
from image_reward.cli.options import (
    InferenceOptions,
    ReadingOptions,
    SeveralModelOptions,
    UsageError,
    check_images,
    find_images,
    in_options,
    warnings_in_one_line,
)
from image_reward.images import open_image
from image_reward.scorers import load

RINGS = seeded.image("rings", 96, 64, 3)


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a.png, images/ with a.png, rows.csv, prompts.txt and a folder called cat."""
    (tmp_path / "images").mkdir()
    (tmp_path / "cat").mkdir()
    for place in (tmp_path, tmp_path / "images"):
        (place / "a.png").write_bytes((image_folder / "a.png").read_bytes())
    for name in ("rows.csv", "prompts.txt", "my rows.csv", "no suffix"):
        (tmp_path / name).write_text("a red square\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- prompts -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["rank", "score", "compare"])
@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("rows.csv", "rows.csv is a file"),
        ("prompts.txt", "prompts.txt is a file"),
        ("my rows.csv", "my rows.csv is a file"),
        ("no suffix", "no suffix is a file"),
        ("a.png", "a.png is a file"),
        ("images", "images is a folder"),
        ("cat", "cat is a folder"),
        (".", ". is a folder"),
        ("typo.PNG", "typo.PNG is the name of a file"),
        ("images/*.png", r"images/*.png is the name of a file"),
        ("typo.parquet", "typo.parquet is the name of a file"),
        ("@prompts.txt", "@prompts.txt is the name of a file"),
        ("photo.heic", "photo.heic is the name of a file"),
        ("s3://bucket/rows", "s3://bucket/rows is an address"),
        ("https://example.org/a.png", "https://example.org/a.png is an address"),
    ],
)
def test_a_file_is_never_taken_for_a_prompt(command: str, prompt: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, prompt, "a.png", "images/a.png"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"image-reward: {what}, not a prompt. Give the prompt first, then the images")
    assert "image-reward score-files" in captured.err
    assert "add --prompt-is-text" in captured.err
    assert not captured.out


@pytest.mark.usefixtures("folder")
def test_a_prompt_can_be_any_text(model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt in ("a cat", "cats and rows.csv", "4k, f/1.8", "x" * 5000, "nul\0byte", "dr. who", "a cat\n"):
        assert main(["score", prompt, "a.png", "--model", model_folder]) == 0, prompt
    for prompt in ("", " ", "cat", "rows.csv", "s3://bucket", "typo.png"):
        assert main(["score", prompt, "a.png", "--model", model_folder, "--prompt-is-text"]) == 0
    assert "rows.csv" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("prompt", ["", " ", "\n"])
@pytest.mark.parametrize("command", [["rank"], ["score"], ["compare"], ["score-files", "--prompt"]], ids=" ".join)
def test_an_empty_prompt_is_refused_everywhere(command: list[str], prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["rows.csv", "out"] if command == ["score-files", "--prompt"] else ["a.png", "images/a.png"]
    assert main([*command, prompt, *files]) == 2
    assert capsys.readouterr().err.startswith("image-reward: the prompt is empty")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("prompt", ["--no hats", "-no hats", "-- no hats"])
def test_a_prompt_that_begins_with_a_dash_comes_after_two(prompt: str, model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", prompt, "a.png", "--model", model_folder]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"image-reward: {prompt} is not an option; before a prompt that begins with a dash")
    assert line.endswith(f'`image-reward rank --json -- "{prompt}" …`\n')
    assert main(["rank", "--model", model_folder, "--", prompt, "a.png"]) == 0
    assert prompt in capsys.readouterr().out


def test_rows_and_a_folder_are_for_another_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`image-reward score ROWS FOLDER` is what earlier versions had."""
    assert main(["score", "rows.csv", "out"]) == 2
    assert "files of rows, each with a prompt and an image, are scored by `image-reward score-files`" in capsys.readouterr().err
    assert main(["verify-precision", "a.png", "--dtype", "bfloat16", "--prompt", "prompts.txt"]) == 2
    assert "prompts.txt is a file, not a prompt. --prompts reads prompts from a file." in capsys.readouterr().err
    assert not (folder / "out").exists()


# --- images --------------------------------------------------------------------------------------------------------------------------


def test_paths_from_standard_input_folders_and_globs(image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = [str(image_folder / f"{name}.png") for name in "abc"]
    assert find_images([str(image_folder)]) == every
    assert find_images([f"{image_folder}/[ab].png"]) == every[:2]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(every[1:]) + "\n\n"))
    assert find_images([every[0], "-"]) == every
    odd = os.fsencode(tmp_path) + b"/l\xe9.png"
    Path(os.fsdecode(odd)).touch()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(odd + b"\n"), encoding="utf-8"))
    assert find_images(["-"]) == [os.fsdecode(odd)]
    assert find_images([every[0], "no/such.png"]) == [every[0], "no/such.png"]
    with pytest.raises(FileNotFoundError, match=r"no such image: no/such\.png"):
        check_images([every[0], "no/such.png"])
    (tmp_path / "[odd].png").touch()
    assert find_images([str(tmp_path / "[odd].png")]) == [str(tmp_path / "[odd].png")]
    (tmp_path / "mixed" / "folder.png").mkdir(parents=True)
    for name in ("._b.png", ".hidden.png", "b.PNG", "notes.txt"):
        (tmp_path / "mixed" / name).touch()
    assert find_images([str(tmp_path / "mixed")]) == [str(tmp_path / "mixed" / "b.PNG")]
    (tmp_path / "text").mkdir()
    for wrong, message in [([], "no images"), ([str(tmp_path / "text")], "has no images in it"), (["*.none"], "nothing matches")]:
        with pytest.raises(UsageError, match=message):
            find_images(wrong)


def test_wildcards_in_a_folder_whose_name_has_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shots [v1] 100%" / "b*"
    folder.mkdir(parents=True)
    for name in ("x.png", "y.png", "[z].png"):
        (folder / name).touch()
    names = [str(folder / name) for name in ("[z].png", "x.png", "y.png")]
    assert find_images([f"{folder}/*.png"]) == names
    assert find_images([f"{folder}/[xy].png"]) == names[1:]
    assert find_images([f"{tmp_path}/shots [v1] 100%/**/*.png"]) == names
    assert find_images([f"{tmp_path}/shots*/b*/x.png"]) == names[1:2]
    monkeypatch.chdir(tmp_path)
    assert find_images(["shots [v1] 100%/b*/x*"]) == ["shots [v1] 100%/b*/x.png"]
    assert find_images(["./shots [v1] 100%/*/x.png"]) == ["./shots [v1] 100%/b*/x.png"]


def test_what_a_folder_holds_besides_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("photo.heic", "film.mp4", "sub"):
        (tmp_path / name).mkdir() if name == "sub" else (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"has no images in it; 2 files and 1 folder were passed over: film\.mp4, photo\.heic, sub/"):
        find_images([str(tmp_path)])
    (tmp_path / "a.jpe").touch()
    assert find_images([str(tmp_path)]) == [str(tmp_path / "a.jpe")]
    assert capsys.readouterr().err == f"{tmp_path}: 2 files and 1 folder were passed over: film.mp4, photo.heic, sub/\n"


# --- messages ------------------------------------------------------------------------------------------------------------------------


def test_every_option_of_load_is_an_option_of_commands() -> None:
    of_load = {name: parameter.default for name, parameter in inspect.signature(load).parameters.items() if name != "shared"}
    of_load.pop("model")  # or several
    of_commands = {option.name: option.default for kind in (InferenceOptions, ReadingOptions) for option in fields(kind)}
    assert of_commands.keys() == of_load.keys()
    own = {"dtype"}  # is always named
    assert [name for name in of_load.keys() - own if of_load[name] != of_commands[name]] == []


def test_images_that_are_too_small_are_refused_or_accepted(tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 9)).save(tmp_path / "thin.png")
    command = ["score", "a cat", str(tmp_path / "thin.png"), "--model", model_folder]
    assert main(command) == 1
    assert (
        "thin.png is 1 x 9 pixels; the shorter side must have at least 2 (lower --min-side to score it anyway)" in capsys.readouterr().err
    )
    assert main([*command, "--min-side", "1"]) == 0


def test_remedies_are_spelled_as_options() -> None:
    assert in_options("pass allow_truncated=True to accept it") == "pass --allow-truncated to accept it"
    assert in_options('or allow this with long_prompts="truncate"') == "or allow this with --long-prompts truncate"
    assert in_options("batch_size must be at least 1") == "--batch-size must be at least 1"
    for path in ("max_pixels/a.png is damaged", "/tmp/max_pixels is damaged", "my-batch_size.png", "no batch_sizes", "max_pixels.png"):
        assert in_options(path) == path


def test_a_remedy_on_the_command_line_is_one_that_it_has(
    image_folder: Path, tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (image_folder / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    assert main(["score", "a cat", str(tmp_path / "cut.png"), "--model", model_folder]) == 1
    assert capsys.readouterr().err.endswith("cut.png is damaged: image file is truncated; pass --allow-truncated to accept it as it is\n")
    assert main(["score", "a cat", str(tmp_path / "cut.png"), "--model", model_folder, "--allow-truncated"]) == 0


def test_a_warning_names_the_image_it_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.tif", "b.tif"):
        RINGS.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        one, two = (struct.pack("<HHI", 277, 3, count) for count in (1, 2))  # samples per pixel, with a value too many
        assert content.count(one) == 1
        (tmp_path / name).write_bytes(content.replace(one, two))
    before = list(warnings.filters), warnings.showwarning
    with warnings_in_one_line():
        warnings.simplefilter("always")  # over what pytest makes of them
        for name in ("a.tif", "b.tif"):
            open_image(tmp_path / name)
        warnings.warn("of something else\x1b[2J", stacklevel=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"warning: {tmp_path / 'a.tif'}: Metadata Warning, tag 277")
    assert lines[-1] == "warning: of something else\\x1b[2J"
    assert (list(warnings.filters), warnings.showwarning) == before


# --- output --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_finished_work_is_printed_in_any_encoding(encoding: str, folder: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.rename("a.png", b"l\xe9\x1b[2J.png")  # noqa: PTH104 - a name that is not UTF-8
    name = os.fsdecode(b"l\xe9\x1b[2J.png")
    for command in (["rank", "ü 漢字 😀", name, "--gallery", "g.html"], ["score", "漢字", name], ["compare", "漢字\x1b[2J", name, name]):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
        assert main([*command, "--model", model_folder]) == 0
        assert rb"l\udce9\x1b[2J.png" in written.getvalue()
        assert rb"\u6f22\u5b57" in written.getvalue()
        assert b"\x1b" not in written.getvalue()
    assert r"l\udce9" in (folder / "g.html").read_text(encoding="utf-8")


def test_error_lines_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "a cat", "evil\x1b[2J*.png"]) == 2
    assert capsys.readouterr().err == "image-reward: nothing matches evil\\x1b[2J*.png\n"
    assert main(["score", "a cat", "evil\x1bc.png"]) == 1
    assert capsys.readouterr().err == "image-reward: no such image: evil\\x1bc.png\n"


# --- models ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Several(SeveralModelOptions):
    """A command that takes several models."""


def test_several_models(model_folder: str) -> None:
    one, other = tyro.cli(
        Several, config=CONFIG, args=["--model", model_folder, "--batch-size", "3", "--model", "ImageReward-mini"]
    ).load_all()
    assert (one.name, other.name) == (Path(model_folder).name, "ImageReward-mini")
    assert one.batch_size == other.batch_size == 3
    assert tyro.cli(Several, config=CONFIG, args=[]).model == ()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["generate", "--prompts", "p.txt", "--pipeline", "shapes-generator", "--output", "new"], "PROMPT"),
        (["verify-precision", "a.png", "--prompts", "p.txt", "--dtype", "bfloat16"], "--prompt"),
        (["score-files", "rows.csv", "new"], "--prompt"),
    ],
    ids=lambda value: value[0],
)
def test_prompt_is_text_without_a_prompt_is_refused(arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--prompt-is-text"]) == 2
    assert f"--prompt-is-text is about the text of {option}, which is not used: leave it out" in capsys.readouterr().err
