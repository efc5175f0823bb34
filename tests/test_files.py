"""Opening files that may be anything but files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from image_reward.errors import FileKindError, FileSizeError
from image_reward.files import open_regular, read_regular


def test_a_file_and_a_link_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a.txt")
    assert read_regular(tmp_path / "a.txt", 7) == read_regular(str(tmp_path / "link"), 7) == b"content"


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        open_regular(tmp_path / "missing")


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
