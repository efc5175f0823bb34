from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from image_reward.jobs.arrow import python_rows, without_views

NANOSECONDS = pa.array([1, 2], pa.timestamp("ns"))
FAR_DAYS = pa.array([1, 2**23], pa.date32())
FOREIGN_ZONE = pa.array([1, 2], pa.timestamp("us", "Mars/Olympus"))


@pytest.mark.parametrize("times", [NANOSECONDS, FAR_DAYS, FOREIGN_ZONE], ids=["nanoseconds", "far days", "foreign zone"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda times: times,
        lambda times: pa.ListArray.from_arrays([0, 1, 2], times),
        lambda times: pa.LargeListArray.from_arrays([0, 1, 2], times),
        lambda times: pa.FixedSizeListArray.from_arrays(times, 1),
        lambda times: pa.StructArray.from_arrays([times], ["time"]),
        lambda times: pa.MapArray.from_arrays([0, 1, 2], pa.array(["a", "b"]), times),
        lambda times: times.dictionary_encode(),
    ],
    ids=["plain", "list", "large list", "fixed size list", "struct", "map", "dictionary"],
)
def test_times_that_python_has_nothing_for_are_read_however_they_are_nested(times: pa.Array, nest: Any) -> None:
    rows = python_rows(pa.table({"value": nest(times)}))
    assert len(rows) == 2
    assert "1970" in str(rows[0]["value"])


def test_views_are_plain_where_they_lie_and_nothing_else_changes() -> None:
    schema = pa.schema([("a", pa.string_view()), ("b", pa.list_(pa.binary_view())), ("c", pa.dictionary(pa.int8(), pa.string()))])
    plain = pa.schema([("a", pa.string()), ("b", pa.list_(pa.binary())), ("c", pa.dictionary(pa.int8(), pa.string()))])
    assert without_views(schema) == plain
