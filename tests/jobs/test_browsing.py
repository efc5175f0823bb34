from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stubs

from image_reward.errors import JobError
from image_reward.jobs.browsing import ScoredPages

NUM = 100


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> ScoredPages:
    """100 rows in 4 parts, of which rows 7 and 50 have no reward; the reward is -n/255 for image n, plus words."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "in").mkdir()
    names = stubs.draw(folder / "in", 10)
    rows = [{"id": n, "prompt": f"{'a ' * (n % 4)}{['Cat', 'dog'][n % 8 // 4]} 100%", "image": names[n % 10]} for n in range(NUM)]
    rows[7]["image"] = "none.png"
    rows[50]["prompt"] = "nan"
    (folder / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stubs.score_here(folder / "in" / "rows.jsonl", folder / "out", lambda _: [stubs.Brightness(weight=-1.0)], shard_size=30)
    return ScoredPages(folder / "out")


def ids(pages: ScoredPages, **asked: Any) -> list[int]:
    num, rows = pages.page("reward", **{"limit": 1000, **asked})
    assert num == len(rows)
    return [int(row["id"]) for row in rows]


def rewards(pages: ScoredPages) -> dict[int, float]:
    return {int(row["id"]): row["reward"] for row in pages.page("reward", limit=1000)[1]}


def test_what_there_is(pages: ScoredPages) -> None:
    assert (pages.name, pages.columns, pages.num_rows) == ("out", ["reward"], NUM)
    low, high, counts = pages.histogram("reward")
    values = rewards(pages).values()
    assert (low, high, sum(counts)) == (min(values), max(values), NUM - 2)
    assert counts[-1]
    assert low is not None
    assert high is not None
    assert counts[0] == sum(value < low + (high - low) / len(counts) for value in values)


def test_orders(pages: ScoredPages) -> None:
    values = rewards(pages)
    assert ids(pages) == sorted(values, key=lambda n: (-values[n], n))
    assert ids(pages, descending=False) == sorted(values, key=lambda n: (values[n], n))
    assert ids(pages, order="place", descending=False, errors=True) == list(range(NUM))
    assert ids(pages, order="place", descending=True) == sorted(values, reverse=True)
    assert ids(pages, errors=True)[-2:] == [7, 50]
    assert ids(pages, errors=True, descending=False)[-2:] == [7, 50]
    names = [row["image"] for row in pages.page("reward", order="image", descending=False)[1]]
    assert names == sorted(names)


def test_filters(pages: ScoredPages) -> None:
    values = rewards(pages)
    assert set(ids(pages, low=2.0, high=3.0)) == {n for n, value in values.items() if 2 <= value <= 3}
    assert set(ids(pages, low=2.0, errors=True)) == {n for n, value in values.items() if value >= 2} | {7, 50}
    assert set(ids(pages, text="CAT")) == {n for n in values if n % 8 < 4}
    assert set(ids(pages, text="3.png")) == {n for n in values if n % 10 == 3}
    assert ids(pages, text="_og") == ids(pages, text="'; DROP TABLE parts; --") == []  # no pattern, and no SQL
    assert len(ids(pages, text="100%")) == len(values)


def test_pages_follow_each_other(pages: ScoredPages) -> None:
    num, first = pages.page("reward", limit=40)
    _, second = pages.page("reward", limit=40, offset=40)
    _, third = pages.page("reward", limit=40, offset=80)
    assert [row["id"] for row in first + second + third] == list(map(str, ids(pages)))
    assert num == NUM - 2
    assert pages.page("reward", offset=10**9) == (num, [])


def test_errors_are_shown(pages: ScoredPages) -> None:
    row = next(row for row in pages.page("reward", errors=True, order="place", descending=False)[1] if row["id"] == "7")
    assert row["reward"] is None
    assert "none.png" in row["error"]


def test_pictures(pages: ScoredPages) -> None:
    row = pages.page("reward")[1][0]
    assert Path(pages.picture(row["part"], row["row"])).name == row["image"]
    for part, number in ((99, 0), (0, 30), (0, 10**9)):
        with pytest.raises(LookupError):
            pages.picture(part, number)


def test_no_folder_of_a_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no manifest\.json"):
        ScoredPages(tmp_path)
