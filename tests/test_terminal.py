from __future__ import annotations

import io
import json

import pytest

from image_reward.terminal import encodable_output, note, printable


def test_control_characters_are_spelled_out() -> None:
    assert printable("evil\x1b]0;title\x07\x1b[2J\x9b31m\r\x7f") == r"evil\x1b]0;title\x07\x1b[2J\x9b31m\x0d\x7f"
    assert printable("two\nlines\tof 漢字 é 😀") == "two\nlines\tof 漢字 é 😀"


def test_a_note_is_a_line_that_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    note("a\x1b[2J.png")
    assert capsys.readouterr() == ("", "a\\x1b[2J.png\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "utf-8", "utf-16"])
def test_any_text_can_be_printed_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    value = {"prompt": "ü 漢字 😀 é", "name": "l\udce9.png"}
    with encodable_output():
        print(json.dumps(value, ensure_ascii=False))
    assert json.loads(written.getvalue().decode(encoding)) == value
    assert stream.errors == "strict"


def test_streams_of_another_kind_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stderr", None)
    with encodable_output():
        print("l\udce9")
