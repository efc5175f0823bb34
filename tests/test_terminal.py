from __future__ import annotations

import io
import json

import pytest

from image_reward.terminal import StatusLine, duration, encodable_output, note, printable


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


# --- progress ------------------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_state_is_written_over_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "11")
    line = StatusLine(seconds=0)
    line.show(lambda: "one\x1b[2J")
    line.show(lambda: "much longer than the terminal")
    line.note("a note")
    line.show(lambda: "two")
    line.end()
    line.end()
    assert terminal.getvalue() == "\r\x1b[Kone\\x1b[2J\r\x1b[Kmuch longe\r\x1b[Ka note\n\r\x1b[Ktwo\n"


def test_elsewhere_a_state_is_a_line_if_it_is_time(capsys: pytest.CaptureFixture[str]) -> None:
    line = StatusLine(seconds=1e9)
    line.show(lambda: pytest.fail("it is not time"))
    line.show(lambda: "now", now=True)
    line.clear()
    line.note("a note")
    line.end()
    assert capsys.readouterr().err == "now\na note\n"


def test_programs_get_whole_lines_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "11")
    StatusLine(seconds=0, rewrite=False).show(lambda: "longer than eleven")
    assert terminal.getvalue() == "longer than eleven\n"


def test_durations_in_words() -> None:
    words = ["0 s", "59 s", "1 min 1 s", "9 min 59 s", "10 min", "1 h 0 min"]
    assert [duration(seconds) for seconds in (0.4, 59, 61, 599, 601, 3600)] == words
