from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from image_reward.jobs.report import job_report
from image_reward.jobs.results import JobSummary, RewardSummary, ShownRow
from image_reward.reports.document import Cards, Grid, Plot, Report

BEST, WORST = ShownRow("a cat", "a.png", 1.25, 3), ShownRow(None, "b.png", -0.5, 0)
SCORER = RewardSummary("S", "reward", 2, 0.375, 0.875, {"0.25": -0.5, "0.5": 0.0, "0.75": 1.25}, [-0.5, 0.5, 1.25], [1, 1], [BEST], [WORST])
EMPTY = RewardSummary("T", "reward:T", 0, None, None, {}, [], [], [], [])
SUMMARY = JobSummary("runs/x", 4, 2, {"PromptError": 2}, {"PromptError": "the row has\nno prompt"}, 2, 0, 0, 1, 0, [SCORER])


def grids(report: Report) -> dict[str, Grid]:
    return {block.title: block for block in report.blocks if isinstance(block, Grid)}


def test_rewards_counts_and_errors_are_tables() -> None:
    report = job_report(SUMMARY, Path, plots=False)
    assert (report.title, report.lead) == ("Rewards of runs/x", "4 rows; 2 have a reward and 2 an error.")
    assert "the mean reward is" in report.answer
    tables = grids(report)
    assert [column.title for column in tables["Rewards"].columns] == [
        "scorer",
        "rows",
        "mean",
        "standard deviation",
        "25 %",
        "50 %",
        "75 %",
    ]
    assert tables["Rewards"].rows == [["S", "2", "0.3750", "0.8750", "-0.5000", "0.0000", "1.2500"]]
    assert ["ids that occur more than once", "1"] in tables["What occurs more than once"].rows
    assert tables["Errors"].rows == [["PromptError", "2", "the row has no prompt"]]
    assert not [block for block in report.blocks if isinstance(block, Plot)]


def test_a_scorer_without_rewards_has_dashes() -> None:
    table = grids(job_report(replace(SUMMARY, scorers=[SCORER, EMPTY]), Path))["Rewards"]
    assert table.rows[1] == ["T", "0", "-", "-", "-", "-", "-"]


def test_the_best_and_the_worst_are_shown_as_images(image_folder: Path) -> None:
    blocks = job_report(SUMMARY, lambda name: image_folder / name).blocks
    best, worst = (block for block in blocks if isinstance(block, Cards))
    assert (best.title, best.cards[0].title, best.cards[0].lines) == ("The best", "+1.2500", ["a cat", "a.png"])
    assert (worst.title, worst.cards[0].lines) == ("The worst", ["", "b.png"])
    [plot] = [block for block in blocks if isinstance(block, Plot)]
    assert plot.description == "2 rewards from -0.50 to 1.25; half of them lie between -0.50 and 1.25, the median is 0.00."


def test_rows_whose_images_are_gone_are_a_table(tmp_path: Path) -> None:
    tables = grids(job_report(SUMMARY, lambda name: tmp_path / name))
    assert tables["The best"].rows == [["4", "+1.2500", "a cat", "a.png"]]
    assert "some of them cannot be opened from here" in tables["The best"].caption


def test_a_defect_is_not_taken_for_an_image_that_is_gone() -> None:
    def fail(_: str) -> bytes:
        raise ValueError("shape mismatch")

    with pytest.raises(ValueError, match="shape mismatch"):
        job_report(SUMMARY, fail)


def test_the_data_are_the_summary() -> None:
    report = job_report(SUMMARY, Path, plots=False)
    assert report.data == SUMMARY.as_dict()
    assert report.data["scorers"][0]["best"] == [{"prompt": "a cat", "image": "a.png", "reward": 1.25, "row": 3}]
    json.dumps(report.data, allow_nan=False)


@pytest.mark.parametrize("which", ["best", "worst"])
def test_of_several_scorers_each_is_named(image_folder: Path, which: str) -> None:
    blocks = job_report(replace(SUMMARY, scorers=[SCORER, EMPTY]), lambda name: image_folder / name).blocks
    assert f"The {which} by S" in [block.title for block in blocks if isinstance(block, Cards)]
