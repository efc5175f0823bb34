from __future__ import annotations

import io

import pytest

from image_reward.cli.progress import progress, state


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_left_on_a_terminal_and_nothing_is_written_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (Terminal(), io.StringIO()):
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr("time.monotonic", iter(range(0, 1000, 10)).__next__)
        with progress("images") as update:
            update(1, None)
            update(5, 10)
        written = terminal.getvalue()
        if terminal.isatty():
            assert "5 of 10 images, " in written
            assert written.endswith("\r\x1b[K")
        else:
            assert written == ""
    assert not capsys.readouterr().out


def test_what_is_left_is_in_proportion_to_what_is_done() -> None:
    assert state("images", 25, 100, 10.0) == "25 of 100 images, 30 s left"
    assert state("images", 100, 100, 10.0) == "100 of 100 images"
    assert state("rows", 1234, None, 10.0) == "1,234 rows"
