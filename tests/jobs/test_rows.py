from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_reward.errors import JobError
from image_reward.jobs.inputs import open_input
from image_reward.jobs.rows import Names, _Ids, cut, cut_records, named_images


def test_rows_are_cut_into_shards_of_a_size() -> None:
    assert list(cut(5, 2)) == [(0, 2, 2, 0), (2, 4, 2, 2), (4, 5, 1, 4)]
    assert list(cut(0, 2)) == []
    records = [(10, 15), (15, 17), (20, 30)]
    assert list(cut_records(iter(records), 2)) == [(10, 17, 2, 0), (20, 30, 1, 2)]


def test_an_input_is_read_where_it_was_not_scanned(tmp_path: Path) -> None:
    """Workers get it pickled."""
    (tmp_path / "rows.csv").write_text("id,prompt,image\n1,a,0.png\n2,b,/abs/1.png\n3,c,\n")
    source = open_input(str(tmp_path / "rows.csv"))
    shards = source.scan(2)
    there = pickle.loads(pickle.dumps(source))
    rows = there.read(shards[1])
    assert (rows.prompts, rows.images) == (["c"], [None])
    assert there.read(shards[0]).images == [f"{tmp_path}/0.png", "/abs/1.png"]
    assert there.place(shards[1], rows, 0) == f"{tmp_path}/rows.csv, row 3 (id 3)"


def test_a_plan_is_of_the_same_files_columns_and_shard_size_or_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,prompt,image,caption\n1,a,0.png,x\n2,b,1.png,y\n3,c,2.png,z\n")
    source = open_input(str(path))
    shards = source.scan(2)
    plan = source.plan(shards, 2)
    again = open_input(str(path))
    assert again.resume(plan, 2) == shards
    assert again.read(shards[1]).prompts == ["c"]
    assert open_input(str(path)).resume(plan, 3) is None
    assert open_input(str(path), Names(prompt="caption")).resume(plan, 2) is None
    assert open_input(str(path)).resume(plan.replace_schema_metadata(None), 2) is None
    path.write_text(path.read_text() + "4,d,3.png,w\n")
    assert open_input(str(path)).resume(plan, 2) is None


def test_images_inside_rows_are_named_by_their_place(tmp_path: Path) -> None:
    images = [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    for name, column in (("1.parquet", images), ("2.parquet", images[::-1])):
        pq.write_table(pa.table({"prompt": ["p", "q"], "image": column}), tmp_path / name)
    source = open_input(str(tmp_path / "*.parquet"))
    one, two = source.scan(2)
    assert source.read(one).images == [b"x", f"{tmp_path}/b.png"]
    assert source.read(one).table["image"].to_pylist() == ["1.parquet#0", "b.png"]
    assert source.read(two).table["image"].to_pylist() == ["b.png", "2.parquet#1"]


def test_columns_that_the_result_needs_are_not_hidden(tmp_path: Path) -> None:
    for name in ("error", "reward", "reward:CLIP", "File_Row_Number"):
        (tmp_path / "rows.csv").write_text(f"prompt,image,{name}\na,0.png,x\n")
        with pytest.raises(JobError, match=f"has a column '{name}' already, which the result would hide"):
            open_input(str(tmp_path / "rows.csv")).scan(10)


def test_the_schema_of_the_result_has_text_for_images() -> None:
    schema = pa.schema([("image", pa.binary()), ("prompt", pa.string_view()), ("n", pa.int8())], metadata={"pandas": "notes"})
    assert named_images(schema, "image") == pa.schema([("image", pa.string()), ("prompt", pa.string()), ("n", pa.int8())])
    assert named_images(schema, "image").metadata is None


def test_ids_that_repeat_are_found_over_batches() -> None:
    with _Ids() as ids:
        for n in range(150_000):
            ids.add(n % 100_000 if n % 3 else None)
        num, where = ids.repeated()
    repeated = sorted(n for n in range(50_000) if n % 3 and (n + 100_000) % 3)
    assert num == len(repeated)
    assert where == f"that of rows {repeated[0] + 1:,} and {repeated[0] + 100_001:,}"
    with _Ids() as ids:
        for value in (1, "2", None, "", "", None):
            ids.add(value)
        assert ids.repeated() == (0, "")
