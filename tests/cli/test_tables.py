from __future__ import annotations

import io

import pytest
from rich.console import Console

from image_reward.cli.tables import facts_table, generated_table, preference_table, reward_table
from image_reward.reports.tables import show
from image_reward.scorers.distribution import Distribution, RewardRow
from image_reward.types import Preference


def printed(capsys: pytest.CaptureFixture[str], table: object) -> str:
    show(table)  # type: ignore[arg-type]
    return " ".join(capsys.readouterr().out.split())


def test_rewards_stand_beside_the_published_images_where_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    published = Distribution("somewhere", 1000, (0.0, 1.0, 3.0))
    out = printed(capsys, reward_table([RewardRow("a.png", 2.0, 1, published), RewardRow("b.png", -1.0, 2, published)], "a cat", "S"))
    assert "1 a.png +2.0000 better than 75 % 2 b.png -1.0000 better than none" in out
    assert "the last column compares with 1,000 published images" in out
    alone = printed(capsys, reward_table([RewardRow("a.png", 2.0, None, None)], "a cat", "S"))
    assert "among published images" not in alone
    assert "rank" not in alone


@pytest.mark.parametrize(("tie", "words"), [(0.0, "99.9 %"), (0.25, "(no difference) 25.0 %")])
def test_preferences_are_in_percent(capsys: pytest.CaptureFixture[str], tie: float, words: str) -> None:
    preference = Preference(0.99999 - tie, tie, 0.00001, (1.0, -1.0))
    out = printed(capsys, preference_table(preference, "a.png", "b.png", "a cat", "S"))
    assert words in out
    assert "b.png -1.0000 < 0.1 %" in out


def test_facts_are_flat(capsys: pytest.CaptureFixture[str]) -> None:
    assert "parameters 1,234 image.size 224" in printed(capsys, facts_table({"name": "S", "parameters": 1234, "image": {"size": 224}}))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_names_and_numbers_of_generated_images_are_whole_at_any_width(width: int) -> None:
    name = "DrawBench-17_1.png"
    row = RewardRow(f"/a/long/folder/of/generated/images/{name}", -1.5, 1, None)
    console = Console(width=width, file=io.StringIO())
    console.print(generated_table([("a photo of a cat " * 9, row, 4_000_000, -1.25)], ""))
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(any(cell in line.split() for line in out.splitlines()) for cell in (name, "4000000", "-1.5000", "-1.2500", "mean"))
    assert "/a/long" not in out
