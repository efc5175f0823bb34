from __future__ import annotations

from image_reward.evaluation.prompt_sets_report import prompt_sets_report
from image_reward.prompt_sets import PromptSet
from image_reward.reports.document import Grid


def test_every_set_has_a_row() -> None:
    [grid] = prompt_sets_report({"Mine": PromptSet("cats", "MIT", 1632, {"": "https://example.org/cats.json"})}).blocks
    assert isinstance(grid, Grid)
    assert grid.rows == [["Mine", "1,632", "cats", "MIT"]]
