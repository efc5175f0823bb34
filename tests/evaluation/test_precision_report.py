from __future__ import annotations

import json

from image_reward.evaluation.precision_report import precision_report
from image_reward.reports.document import Grid
from image_reward.scorers.precision import agreement


def test_differences_flips_and_speeds_are_in_the_table() -> None:
    found = agreement([[0.0, 1.0, 1.1], [0.0, 0.5, 1.0]], [[0.0, 1.1, 1.0], [0.0, 0.5, 1.0]])
    report = precision_report("S", "int8", found, 2.0, 3.0)
    assert report.title == "S in int8 against float32"
    assert report.lead == "2 prompts, each with 3 images."
    assert report.answer == (
        "In int8, S scores 1.50 times as many images per second as in float32 and changes the order of 16.67 % of the pairs of images."
    )
    [grid] = report.blocks
    assert isinstance(grid, Grid)
    cells = dict(grid.rows)
    assert cells["largest difference of a reward"] == "0.1000"
    assert cells["pairs whose order flips"] == "1 of 6 (16.67 %)"
    assert cells["images per second, int8"] == "3.00 (1.50x)"
    assert report.data["images_per_second"] == {"float32": 2.0, "reduced": 3.0, "ratio": 1.5}
    assert report.data["num_flips"] == 1
    json.dumps(report.data, allow_nan=False)


def test_one_image_has_no_order_to_flip() -> None:
    [grid] = precision_report("S", "bfloat16", agreement([[0.5]], [[0.25]]), 1.0, 1.0).blocks
    assert isinstance(grid, Grid)
    cells = dict(grid.rows)
    assert cells["rank correlation (Spearman)"] == cells["largest float32 difference of a flipped pair"] == "-"
    assert cells["pairs whose order flips"] == "0 of 0 (0.00 %)"
