from __future__ import annotations

import pytest

from image_reward.metrics import Interval
from image_reward.reports.numbers import between, counted, decimal, p_value, percent, short, with_interval


def test_what_is_not_defined_is_a_dash() -> None:
    assert decimal(None) == percent(None) == with_interval(None) == with_interval(Interval(None, None, None, 0)) == "-"
    assert between(None, None) == "- to -"


def test_an_interval_follows_its_number_where_there_is_one() -> None:
    assert with_interval(Interval(0.5, 0.25, 0.75, 9)) == "0.5000 [0.2500, 0.7500]"
    assert with_interval(Interval(0.5, None, None, 9)) == "0.5000"
    assert with_interval(Interval(0.5, 0.25, 0.75, 9), percent) == "50.00 [25.00, 75.00]"


@pytest.mark.parametrize(("p", "text"), [(0.00099, "< 0.001"), (0.001, "0.001"), (1.0, "1.000")])
def test_small_p_values_are_bounds(p: float, text: str) -> None:
    assert p_value(p) == text


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(num, "image") for num in (0, 1, 1000)] == ["0 images", "1 image", "1,000 images"]


def test_long_texts_are_cut_to_one_line_of_that_length() -> None:
    assert short("a\n  cat") == "a cat"
    assert short("x" * 90) == "x" * 90
    assert short("x" * 91) == "x" * 89 + "…"
