from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro

from image_reward.cli import COMMANDS, main
from image_reward.cli.help import CONFIG, without_empty_defaults, wrapped_help

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
        without_empty_defaults(Command)
    with pytest.raises(SystemExit):
        tyro.cli(Command, args=["--help"], config=CONFIG)
    text = capsys.readouterr().out
    assert re.findall(r"\((?:default|at).*?\)", text) == ["(default: 3)", "(at least one)"]
    command = tyro.cli(Command, args=["--size", "2", "--flag"], config=CONFIG)
    assert command == Command(Group(2), flag=True)


def test_help_is_broken_between_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in EVERY:
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
