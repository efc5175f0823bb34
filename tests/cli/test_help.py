from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Annotated

import pytest
import tyro

from image_reward.cli import COMMANDS, main
from image_reward.cli.groups import options_from, settings_from
from image_reward.cli.help import CONFIG, prepare_help, wrapped_help
from image_reward.training import MaskedLanguageTraining, RewardTraining
from image_reward.tuning import Tuning

SUBCOMMANDS = {
    "models": ("list", "path", "download", "verify", "convert", "info"),
    "data": ("check", "convert", "split"),
    "prompts": ("list", "show"),
}
EVERY = [[command, *sub] for command in COMMANDS for sub in ([[sub] for sub in SUBCOMMANDS.get(command, ())] or [[]])]


def help_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_help_says_nothing_empty(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    assert text.startswith(f"usage: image-reward {' '.join(command)} ")
    for noise in ("None", "(default: False)", "(default: )", "(default: '')", "MISSING"):
        assert noise not in text
    assert not re.search(r"--(inference|image|interval|row|worker|training)\.", text)


def test_an_option_of_a_name_means_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that score share all of their options on models and images."""
    shared = ("--model", "--device", "--dtype", "--batch-size", "--long-prompts", "--orient", "--allow-truncated", "--max-pixels", "--json")
    for command in ("rank", "score", "compare", "score-files", "evaluate", "benchmark", "generate", "verify-precision"):
        text = help_of([command], capsys)
        assert [option for option in shared if f"{option} " not in text] == []
        assert "inference options" in text
        assert "image options" in text


def test_the_overview_names_every_command_the_version_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of([], capsys)
    for name, summary in COMMANDS.items():
        assert re.search(rf"{name} +{summary.split()[0]}", text)
    assert "image-reward --version" in text


@dataclass
class Group:
    """A group."""

    size: int | None = None
    """Of something."""


@dataclass
class Command:
    """A command."""

    group: tyro.conf.OmitArgPrefixes[Group] = field(default_factory=Group)
    flag: bool = False
    number: int = 3
    names: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(at least one)")] = ()


def test_defaults_that_say_nothing_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second time changes nothing
        prepare_help(Command)
    with pytest.raises(SystemExit):
        tyro.cli(Command, args=["--help"], config=CONFIG)
    text = capsys.readouterr().out
    assert re.findall(r"\((?:default|at).*?\)", text) == ["(default: 3)", "(at least one)"]
    command = tyro.cli(Command, args=["--size", "2", "--flag"], config=CONFIG)
    assert command == Command(Group(2), flag=True)


def test_help_is_broken_between_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in [[], *EVERY]:
        text = help_of(command, capsys)
        assert max(map(len, text.splitlines())) <= 80, command


def test_what_is_laid_out_already_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    lines = ["╭─ a box of its own width ─╮", "│ in the box, and so is it │", "\x1b[1musage\x1b[0m: a line in colour"]
    with wrapped_help():
        print("\n".join(lines))
        print("a line that is broken\nno-break-in-a-long-name")
    assert capsys.readouterr().out.splitlines() == [*lines, "a line that is", "broken", "no-break-in-a-long-name"]


def test_a_flag_that_is_on_says_what_giving_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(["tune"], capsys).replace("│", " ").split())
    assert (
        "--no-free-text-encoders Encode all prompts first and take the text encoders off the accelerator. (on unless this is given)" in text
    )
    assert "(default: True)" not in text


def test_path_takes_names_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["models", "path"], capsys)
    assert "A registered name" in text
    assert "a file" not in text


def boxes_of(command: list[str]) -> str:
    """Help as a terminal shows it: tyro draws boxes where the output is UTF-8."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(output), pytest.raises(SystemExit):
        main([*command, "--help"])
    output.seek(0)
    return output.read()


GROUPS = {
    "train": ["options", "network options", "weight options", "optimizer options", "compute options", "progress options"],
    "pretrain": ["options", "network options", "model options", "optimizer options", "compute options"],
    "tune": ["options", *(f"{name} options" for name in Tuning.groups)],
}


@pytest.mark.parametrize("command", GROUPS)
def test_the_settings_of_a_recipe_are_in_groups(command: str) -> None:
    text = boxes_of([command])
    assert sorted(re.findall(r"╭─ (.*?) ─", text)) == sorted(GROUPS[command])
    for group in text.split("╭─ ")[2:]:
        assert 1 <= len(re.findall(r"^│ --", group, re.MULTILINE)) <= 18, group


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
@pytest.mark.parametrize("columns", [60, 80, 100])
def test_help_is_made_of_paragraphs(command: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line ends before the next word needs it to, no option is without a word, and no line of options is empty."""
    monkeypatch.setenv("COLUMNS", str(columns))
    boxes = re.findall(r"╭─ (?:\w+ )?(?:options|arguments) ─.*?╰", boxes_of(command), re.DOTALL)
    assert boxes
    for box in boxes:
        lines = [line[2:-2] for line in box.splitlines()[1:-1]]
        width = len(lines[0])
        assert all(line.strip() for line in lines), box
        for line, following in pairwise(lines):
            if re.match(" {6}", line) and re.match(" {6}", following):
                word = following.split()[0]
                assert len(line.rstrip()) + 1 + len(word) > width, line
            if re.match("--[^{]*$", line):  # its words are on this line or the next
                assert re.search(r" {2,}[A-Za-z(].*[a-z]", line) or re.match(r" {6,}[A-Za-z(.[]", following), line


def test_the_groups_hold_every_setting() -> None:
    for settings in (Tuning(max_steps=7, betas=(0.5, 0.6)), RewardTraining(freeze=0.1), MaskedLanguageTraining(steps=3)):
        options = options_from(settings)
        assert settings_from(options, type(settings)) == settings
        assert set(type(settings).groups) <= {each.name for each in fields(options)}


def test_a_setting_that_makes_no_sense_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--model", "shapes-generator", "--batch-images", "0"]) == 2
    assert "batch_images must be greater than 0, not 0" in capsys.readouterr().err


def test_generate_and_tune_say_which_option_is_the_generator(capsys: pytest.CaptureFixture[str]) -> None:
    generate, tune = (" ".join(help_of([command], capsys).replace("│", " ").split()) for command in ("generate", "tune"))
    assert "--model STR The scorer; --pipeline is the generator." in generate
    assert "--pipeline STR The generator, which is the --model of `image-reward tune`" in generate
    assert "--model STR The generator, which is the --pipeline of `image-reward generate`" in tune
