from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_reward.cli import main


def test_one_run_writes_several_reports(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.html", "b.md", "c.json", "d.html")
    files = [str(tmp_path / name) for name in names]
    assert main(["report", str(scored), "--show", "1", *(part for file in files for part in ("--report", file))]) == 0
    printed = capsys.readouterr()
    assert printed.err == "".join(f"report: {file}\n" for file in files)
    assert "2 have a reward and 1 an error" in printed.out
    pages = {name: (tmp_path / name).read_text(encoding="utf-8") for name in names}
    assert pages["a.html"] == pages["d.html"]
    assert pages["a.html"].count("data:image/") == 2  # the best and the worst
    assert "<svg" in pages["a.html"]
    assert "FileNotFoundError" in pages["b.md"]
    assert json.loads(pages["c.json"])["num_rows"] == 3


def test_as_json(scored: Path, run_json: Callable[..., Any]) -> None:
    printed = run_json("report", str(scored), "--show", "0")
    assert (printed["num_rows"], printed["num_errors"]) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--show", "-1"], "--show must be at least 0, not -1"),
        (["--report", "page.pdf"], "--report page.pdf: a report is written as .html, .md or .json"),
        (["--report", "no/such/page.md"], "the folder no/such does not exist"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err
