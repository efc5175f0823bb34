from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from image_reward.cli import main


def test_rows_go_to_standard_output_or_a_file(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", str(scored), "--min-reward", "-100"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "2 rows kept\n"
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["id"] for row in rows] == ["0", "1"]
    output = tmp_path / "best.csv"
    assert main(["filter", str(scored), "--best-per-prompt", "1", "--output", str(output)]) == 0
    assert capsys.readouterr().err == f"1 row kept: {output}\n"
    with output.open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [max(rows, key=lambda row: row["reward"])["id"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --min-reward, --top-fraction and --best-per-prompt"),
        (["--min-reward", "0", "--top-fraction", "0.5"], "give one of"),
        (["--top-fraction=2"], "--top-fraction is a share of the rows, more than 0 and at most 1, not 2"),
        (["--best-per-prompt=0"], "--best-per-prompt must be at least 1, not 0"),
        (["--min-reward=nan"], "--min-reward is not a number"),
        (["--min-reward", "0", "--output", "best.txt"], "--output best.txt: rows are written as .parquet, .csv or .jsonl"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err
