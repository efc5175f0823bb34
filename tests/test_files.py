"""Opening files that may be anything but files, JSON that may be anything but that, and writing whole files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from image_reward.errors import CheckpointError, ComparisonError, FileKindError, FileSizeError, InputError
from image_reward.files import fill, open_regular, parse_json, read_json, read_regular, remove_unfinished, written_whole


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a.txt")
    assert read_regular(tmp_path / "a.txt", 7) == read_regular(str(tmp_path / "link"), 7) == b"content"


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        open_regular(tmp_path / "missing")


@pytest.mark.parametrize("path", ["a\0.txt", "\ud800.txt"])
def test_what_no_file_can_be_called_is_not_found(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: '.+\.txt'"):
        open_regular(path)


def test_a_named_pipe_does_not_block_and_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileKindError, match=r"pipe is a named pipe, not a file"):
        open_regular(tmp_path / "pipe")


def test_a_socket_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("door")
        with pytest.raises(FileKindError, match="door is a socket"):
            open_regular("door")


@pytest.mark.parametrize(("path", "kind"), [("/dev/zero", "a device"), ("/dev", "a folder")])
def test_devices_and_folders_are_named(path: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(FileKindError, match=f"link is {kind}, not a file"):
        open_regular(tmp_path / "link")


def test_a_file_beyond_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(FileSizeError, match=r"large is larger than 1,000 bytes"):
        read_regular(tmp_path / "large", 1000)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a file of Linux that has no size")
def test_a_file_without_a_size_is_taken_for_empty() -> None:
    assert read_regular("/proc/self/environ", 1000) == b""


# --- JSON ----------------------------------------------------------------------------------------------------------------------------


def test_json_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"a": [1, 2.5, null, true, "\\u732b\\ud83d\\ude00"], "n": 123456789012345678901234567890}', encoding="utf-8")
    assert read_json(path) == {"a": [1, 2.5, None, True, "\u732b\U0001f600"], "n": 123456789012345678901234567890}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value"),
        ("{} {}", "is not JSON: Extra data"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        ('[{"a": {"b": 1, "b": 1}}]', "the key 'b' occurs twice"),
        ("[NaN]", "NaN is not a number that JSON has"),
        ("[-Infinity]", "-Infinity is not"),
        ("[1e999]", "the number 1e999 is beyond the range of a float"),
        ("[" + "9" * 301 + "]", "a number has 301 digits"),
        ("[" + "9" * 9999 + "]", "a number has 9999 digits"),
        ('["\\ud83d"]', "surrogates not allowed"),
        ('{"\\udc00": 1}', "surrogates not allowed"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        (b"\xff", "can't decode byte 0xff"),
        ("[]".encode("utf-16"), "can't decode"),
        ("[]".encode("utf-32"), "is not JSON"),
    ],
)
def test_every_fault_of_json_is_one_error_that_names_its_source(text: str | bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.json.*{message}"):
        parse_json(text, "x.json")
    with pytest.raises(ComparisonError, match=rf"^x\.json.*{message}"):
        parse_json(text, "x.json", ComparisonError)


# --- dataclasses from plain values ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    share: float
    inner: Inner = field(default_factory=lambda: Inner(3))
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, int] | None = None
    inners: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.share < 0:
            raise InputError("share must be at least 0")


WHOLE = {"share": 1, "inner": {"size": 2, "names": ["x"]}, "kind": "b", "pair": [1, 2], "inners": [{"size": 1, "names": []}]}


def test_a_dataclass_is_filled_whole_or_over_an_instance() -> None:
    filled = fill(Outer, WHOLE, "x.json")
    assert filled == Outer(1.0, Inner(2, ("x",)), "b", (1, 2), (Inner(1),))
    assert type(filled.share) is float
    assert fill(Outer(0.5), {"inner": {"names": ["y"]}}, "x.toml") == Outer(0.5, Inner(3, ("y",)))
    assert fill(Outer(0.5, pair=(1, 2)), {"pair": None}, "x.toml") == Outer(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shere": 1}, "unknown key 'shere' for Outer; did you mean 'share'"),
        ({"z": 1}, "unknown key 'z' for Outer; known are share, inner, kind, pair, inners"),
        ({"share": "1"}, "share of Outer must be of type float, not '1'"),
        ({"share": True}, "share of Outer must be of type float, not True"),
        ({"share": 10**400}, "share of Outer must be of type float, not 1000"),
        ({"share": -1}, "share must be at least 0"),
        ({"inner": 3}, "inner of Outer must be an object, not 3"),
        ({"inner": {"size": 2}}, "Inner lacks 'names'"),
        ({"inner": {"size": 2.0, "names": []}}, "size of Inner must be of type int, not 2.0"),
        ({"inner": {"size": True, "names": []}}, "size of Inner must be of type int, not True"),
        ({"inner": {"size": 2, "names": "xy"}}, "names of Inner must be a list of texts, not 'xy'"),
        ({"inner": {"size": 2, "names": [3]}}, "names of Inner must be of type str, not 3"),
        ({"kind": "c"}, "kind of Outer must be one of 'a', 'b', not 'c'"),
        ({"kind": ["a"]}, "kind of Outer must be one of"),
        ({"pair": [1, 2, 3]}, r"pair of Outer must be a list of 2 whole numbers, not \[1, 2, 3\]"),
        ({"inners": [3]}, "inners of Outer must be an object, not 3"),
        ({"inners": {}}, "inners of Outer must be a list of objects"),
    ],
)
def test_what_a_dataclass_does_not_take_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ComparisonError, match=rf"^x\.json: .*{message}"):
        fill(Outer, WHOLE | change, "x.json", ComparisonError)


# --- writing -------------------------------------------------------------------------------------------------------------------------


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert path.read_text() == "one"
    assert path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(UnicodeEncodeError), written_whole(path) as temporary:
        temporary.write_text("two \ud800")
    assert path.read_text() == "one"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "plain.txt"]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"a\.txt cannot be written: the folder .*/gone does not exist"),
        written_whole(tmp_path / "gone/a.txt"),
    ):
        pass
    with pytest.raises(FileKindError, match="is a folder; give the name of a file"), written_whole(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_what_is_left_beside_the_temporary_file_vanishes(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("one")
        temporary.with_name(".tmpXYZ").write_text("of another library")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_writers_of_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with written_whole(tmp_path / "a.txt") as a:
        a.write_text("a")
        with written_whole(tmp_path / "b.txt") as b:
            b.write_text("b")
            remove_unfinished(tmp_path)
            with written_whole(tmp_path / "a.txt") as another:
                another.write_text("another")
        assert sorted(file.name for file in tmp_path.iterdir()) == [".unfinished", "a.txt", "b.txt"]
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.txt": "a", "b.txt": "b"}


def test_many_writers_at_once(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with written_whole(tmp_path / f"{number}.txt") as temporary:
                temporary.write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {f"{i}.txt": str(i) for i in range(8)}


def test_the_folder_of_unfinished_files_vanishes_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, tries = Path.mkdir, []

    def vanishing(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == ".unfinished":
            tries.append(path)
            if len(tries) == 1:  # as pathlib does where another process removes the folder between mkdir and is_dir
                raise FileExistsError(path)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", vanishing)
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert len(tries) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_in_the_place_of_the_folder_of_unfinished_files_is_named(tmp_path: Path) -> None:
    (tmp_path / ".unfinished").write_text("precious")
    with pytest.raises(FileKindError, match=r"\.unfinished is not a folder.*move it away"), written_whole(tmp_path / "a.txt"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [".unfinished"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = f"""
import pathlib, sys, time
from image_reward.files import written_whole
with written_whole(pathlib.Path({str(tmp_path / "large.bin")!r})) as temporary:
    temporary.write_bytes(bytes(1000))
    temporary.with_name(".tmpABC").write_bytes(bytes(1000))
    print("ready", flush=True)
    sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with written_whole(tmp_path / "a.txt") as temporary:
            temporary.write_text("a")
        assert len(list((tmp_path / ".unfinished").rglob("large.bin"))) == 1  # its writer lives
        writer.kill()
        writer.wait()
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("b")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    others = [".a.txt.part", ".tmpXYZ", "lock", ".unfinished.txt"]
    for name in others:
        (tmp_path / name).write_text("precious")
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*others, "a.txt"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="Linux's /proc")
def test_a_folder_in_which_no_folder_can_be_made_is_an_error() -> None:
    with pytest.raises(OSError), written_whole(Path("/proc/page.html")):
        raise AssertionError("nothing can be written there")
