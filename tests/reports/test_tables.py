from __future__ import annotations

import pytest
from rich.console import Console

from image_reward.reports.document import Column, Grid
from image_reward.reports.tables import GridTable, show


def test_output_that_is_no_terminal_is_wide_enough_for_paths(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/long/path" * 12
    show(GridTable(Grid([Column("image", "left"), Column("reward")], [[path, "+0.1"]])))
    assert any(path in line and "+0.1" in line for line in capsys.readouterr().out.splitlines())


def test_a_table_too_wide_for_the_terminal_goes_into_several_and_loses_nothing() -> None:
    columns = [Column("generator", "left"), *(Column(f"column {number}") for number in range(9))]
    rows = [[name, *(f"{value:.4f} to {value + number:.4f}" for number in range(9))] for name, value in (("first", 0.1), ("second", -0.2))]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(GridTable(Grid(columns, rows, "Means", "All.")))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert all(cell in text for row in rows for cell in row)
    assert all(column.title in text for column in columns)
    tables = sum("generator" in line for line in lines)
    assert tables == sum("first" in line for line in lines) == sum("second" in line for line in lines) > 1
    assert text.count("Means, continued") == tables - 1
    assert text.count("All.") == 1


def test_long_words_are_folded_before_numbers_are_cut() -> None:
    console = Console(width=60)
    with console.capture() as capture:
        console.print(GridTable(Grid([Column("prompt", "left"), Column("reward")], [["a cat on a chair " * 9, "-12345.6789"]])))
    assert "-12345.6789" in capture.get()
    assert capture.get().count("chair") == 9


def test_a_table_whose_columns_have_no_titles_has_no_header() -> None:
    console = Console(width=60)
    with console.capture() as capture:
        console.print(GridTable(Grid([Column("", "left"), Column("")], [["a", "1"]])))
    assert [line.split() for line in capture.get().splitlines() if line.strip()] == [["a", "1"]]


def test_text_is_never_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(GridTable(Grid([Column("[b]x[/b]", "left")], [["[red]y[/red]"]], "[i]title[/i]", "[u]z[/u]")))
    out = capsys.readouterr().out
    assert all(text in out for text in ("[b]x[/b]", "[red]y[/red]", "[i]title[/i]", "[u]z[/u]"))


def test_strong_rows_are_bold() -> None:
    console = Console(force_terminal=True, width=40)
    with console.capture() as capture:
        console.print(GridTable(Grid([Column("name", "left")], [["plain"], ["best"]], strong=frozenset([1]))))
    plain, best = (next(line for line in capture.get().splitlines() if name in line) for name in ("plain", "best"))
    assert "\x1b[1m" in best
    assert "\x1b[1m" not in plain


def test_columns_are_as_wide_as_what_is_printed_of_names_that_no_terminal_shows(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["l\udce9.png", "e\x1b[2J.png", "plain.png"]
    show(GridTable(Grid([Column("image", "left"), Column("reward")], [[name, "+0.1000"] for name in names])))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.endswith("+0.1000 ")]
    assert [line.split()[0] for line in lines] == [r"l\udce9.png", r"e\x1b[2J.png", "plain.png"]
    assert len({len(line) for line in lines}) == 1
