from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import stubs

from image_reward.errors import JobError
from image_reward.jobs.browsing import ScoredPages
from image_reward.jobs.files import Folder
from image_reward.jobs.results import Scored

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


def test_a_picture_is_found_without_reading_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 rows whose prompts are 2 MB that do not compress, only the names of images are read."""
    (tmp_path / "in").mkdir()
    (name,) = stubs.draw(tmp_path / "in", 1)
    rows = [{"prompt": random.Random(n).randbytes(18_000).hex(), "image": name} for n in range(60)]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stubs.score_here(tmp_path / "in" / "rows.jsonl", tmp_path / "out", lambda _: [stubs.Brightness()])
    pages = ScoredPages(tmp_path / "out")
    num_read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            nonlocal num_read
            num = super().readinto(buffer) or 0
            num_read += num
            return num

        def read(self, size: int = -1) -> bytes:
            nonlocal num_read
            content = super().read(size)
            num_read += len(content)
            return content

    monkeypatch.setattr(Folder, "open", lambda self, name: Counting(f"{self.path}/{name}"))
    assert Path(pages.picture(0, 59)).name == name
    assert (tmp_path / "out" / "part-000000.parquet").stat().st_size > 1_000_000
    assert 0 < num_read < 200_000


def test_histograms_are_counted_once_until_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"prompt": "a", "image": name} for name in stubs.draw(tmp_path / "in", 6)]
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stubs.score_here(tmp_path / "in" / "rows.jsonl", tmp_path / "out", lambda _: [stubs.Brightness()], shard_size=3)
    pages = ScoredPages(tmp_path / "out")
    num_queries = 0

    def database(scored: Scored) -> Any:
        nonlocal num_queries
        num_queries += 1
        return original(scored)

    original = Scored.database
    monkeypatch.setattr(Scored, "database", database)
    first = pages.histogram("reward")
    assert [pages.histogram("reward") for _ in range(3)] == [first] * 3
    assert num_queries == 1
    one, other = (tmp_path / "out" / f"part-00000{n}.parquet" for n in range(2))
    one.write_bytes(other.read_bytes())
    os.utime(one, ns=(0, 0))
    assert pages.histogram("reward") != first
    assert num_queries == 2


def test_no_folder_of_a_job(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no manifest\.json"):
        ScoredPages(tmp_path)
