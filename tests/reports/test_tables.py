from __future__ import annotations

import pytest
from rich.console import Console

from image_reward.reports.document import Column, Grid
from image_reward.reports.tables import grid_table, show


def test_output_that_is_no_terminal_is_wide_enough_for_paths(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/long/path" * 12
    show(grid_table(Grid([Column("image", "left"), Column("reward")], [[path, "+0.1"]])))
    assert any(path in line and "+0.1" in line for line in capsys.readouterr().out.splitlines())


def test_text_is_never_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(grid_table(Grid([Column("[b]x[/b]", "left")], [["[red]y[/red]"]], "[i]title[/i]", "[u]z[/u]")))
    out = capsys.readouterr().out
    assert all(text in out for text in ("[b]x[/b]", "[red]y[/red]", "[i]title[/i]", "[u]z[/u]"))


def test_strong_rows_are_bold() -> None:
    console = Console(force_terminal=True, width=40)
    with console.capture() as capture:
        console.print(grid_table(Grid([Column("name", "left")], [["plain"], ["best"]], strong=frozenset([1]))))
    plain, best = (next(line for line in capture.get().splitlines() if name in line) for name in ("plain", "best"))
    assert "\x1b[1m" in best
    assert "\x1b[1m" not in plain
