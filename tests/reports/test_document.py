from __future__ import annotations

import pytest

from image_reward.metrics import holm, two_sided_p
from image_reward.reports.document import Column, Grid, compared, few_prompts, few_resamples


def test_a_row_of_another_length_is_refused() -> None:
    columns = [Column("generator", "left"), Column("reward"), Column("interval", "center")]
    with pytest.raises(ValueError, match="row 2 of the table 'Rates' has 1 cells for 3 columns"):
        Grid(columns, [["a", "b", "c"], ["a"]], "Rates")


def test_a_table_is_headed_if_a_column_has_a_title() -> None:
    assert Grid([Column(""), Column("number")], []).headed
    assert not Grid([Column(""), Column("")], []).headed


@pytest.mark.parametrize(("num", "start"), [(0, " With 0 distinct prompts,"), (1, " With 1 prompt,"), (19, " With 19 distinct prompts,")])
def test_few_prompts_are_a_warning(num: int, start: str) -> None:
    assert few_prompts(num).startswith(start)
    assert few_prompts(num).endswith("take at least 20.")


def test_enough_prompts_are_none() -> None:
    assert few_prompts(20) == ""


def test_versions_of_the_same_images_side_by_side() -> None:
    rows = compared(["one", "two"], {"before": ["a", "b"], "after": ["c", "d"]}, {"before": [["0.5"], ["1.5"]]})
    assert [row.title for row in rows] == ["one", "two"]
    assert [[(card.title, card.image, list(card.lines)) for card in row.cards] for row in rows] == [
        [("before", "a", ["0.5"]), ("after", "c", [])],
        [("before", "b", ["1.5"]), ("after", "d", [])],
    ]
    for versions, lines in (({"before": ["a"]}, {}), ({"before": ["a", "b"]}, {"before": [["0.5"]]})):
        with pytest.raises(ValueError, match="'before' has 1 for 2 titles"):
            compared(["one", "two"], versions, lines)


@pytest.mark.parametrize("num_tests", [1, 2, 15, 231, 435])
def test_the_resamples_that_are_asked_for_are_enough_and_one_less_is_not(num_tests: int) -> None:
    """By the p-values that the smallest possible count gives, corrected as reports correct them."""
    needed = int(few_resamples(1, num_tests, 0.95).split("at least ")[1].split(" ")[0].replace(",", ""))
    for num, enough in ((needed, True), (needed - 1, False)):
        p_values = holm([two_sided_p([1.0] * num)] * num_tests)
        assert (min(p_values) <= 0.05 + 1e-12) == enough
        assert (few_resamples(num, num_tests, 0.95) == "") == enough
    assert few_resamples(39, 0, 0.95) == ""
