from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read_all

from image_reward.errors import JobError
from image_reward.jobs.files import Access
from image_reward.jobs.inputs import image_named, open_input
from image_reward.jobs.rows import Names


def test_parquet_of_paths_bytes_and_structs_over_row_groups(tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"p{i}" for i in range(7)], "image": [f"{i}.png" for i in range(7)], "n": range(7)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    pq.write_table(table, tmp_path / "b.parquet")
    _, rows = read_all(tmp_path, 2)
    assert [row[0]["n"] for row in rows] == [*range(7), *range(7)]
    assert rows[8][2] == f"{tmp_path}/1.png"
    inside = pa.array([{"bytes": b"12", "path": "x.png"}, {"bytes": None, "path": "y.png"}, None])
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "picture": inside}), tmp_path / "hf.pq.parquet")
    source, rows = read_all(tmp_path / "hf.pq.parquet", 2, Names(image="picture"))
    assert [row[2] for row in rows] == [b"12", f"{tmp_path}/y.png", None]
    assert [row[0]["picture"] for row in rows] == ["hf.pq.parquet#0", "y.png", None]
    assert image_named(source.base, "hf.pq.parquet#0", "picture", Access()) == b"12"
    assert image_named(source.base, "y.png", "picture", Access()) == f"{tmp_path}/y.png"
    assert image_named(source.base, "hf.pq.parquet#y.png", "picture", Access()) == f"{tmp_path}/hf.pq.parquet#y.png"
    for name, column in (("hf.pq.parquet#3", "picture"), ("hf.pq.parquet#0", "image")):  # of another file of that name
        with pytest.raises(JobError, match=rf"hf\.pq\.parquet has no row {name[-1]} with an '{column}'"):
            image_named(source.base, name, column, Access())
    pq.write_table(pa.table({"prompt": ["a"], "image": [b"34"]}), tmp_path / "bytes.parquet")
    assert read_all(tmp_path / "bytes.parquet")[1][0][2] == b"34"
    with pytest.raises(JobError, match=r"has other columns than .*a\.parquet: prompt string, image string instead of"):
        read_all(tmp_path)
    pq.write_table(pa.table({"prompt": ["a"], "image": [3]}), tmp_path / "numbers.parquet")
    with pytest.raises(JobError, match="the column 'image' holds int64; images are paths, bytes"):
        read_all(tmp_path / "numbers.parquet")


def save_to_disk(folder: Path, tables: list[pa.Table], **state: Any) -> None:
    """What ``datasets.Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]} | state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_hugging_face_data_set_on_disk(tmp_path: Path) -> None:
    tables = [
        pa.table({"text": [f"{part}{i}" for i in range(3)], "image": [{"bytes": f"{part}{i}".encode(), "path": None} for i in range(3)]})
        for part in "ab"
    ]
    save_to_disk(tmp_path / "all" / "train", tables)
    (tmp_path / "all" / "dataset_dict.json").write_text("{}")
    source, rows = read_all(tmp_path / "all" / "train", 2, Names(prompt="text"))
    assert [(row[1], row[2]) for row in rows] == [(f"{part}{i}", f"{part}{i}".encode()) for part in "ab" for i in range(3)]
    assert image_named(source.base, rows[4][0]["image"], "image", Access()) == b"b1"
    with pytest.raises(JobError, match="several splits; give one of them: train"):
        read_all(tmp_path / "all")
    save_to_disk(tmp_path / "shuffled", tables, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(JobError, match="flatten_indices"):
        read_all(tmp_path / "shuffled")


def test_ids_of_every_kind_are_read(tmp_path: Path) -> None:
    """Ids that are not UTF-8, and times that Python has nothing for, cost no other row."""
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in range(4)))
    bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffa")])
    for ids, repeated in ((bad, 1), (pa.array([1, 1, 2], pa.timestamp("ns")), 1), (pa.array([b"a", b"b", b"\xff"]), 0)):
        pq.write_table(pa.table({"prompt": list("abc"), "image": list("abc"), "id": ids}), tmp_path / "rows.parquet")
        source = open_input(str(tmp_path / "rows.parquet"))
        [shard] = source.scan(9)
        assert (source.num_repeated_ids, shard.num_rows) == (repeated, 3)
        assert [problem is None for problem in source.read(shard).problems] == [True, ids is not bad, True]


def test_a_damaged_parquet_file_is_named_wherever_the_damage_is(tmp_path: Path) -> None:
    table = pa.table({"prompt": list("abcd"), "image": ["0.png"] * 4, "id": list("efgh")})
    pq.write_table(table, tmp_path / "rows.parquet", compression="NONE", use_dictionary=False)
    whole = (tmp_path / "rows.parquet").read_bytes()
    messages = []
    for place in range(4, len(whole) - 8, 7):
        (tmp_path / "rows.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_all(tmp_path / "rows.parquet", 9)
        except JobError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all("rows.parquet" in message for message in messages)


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("bytes", pa.list_(pa.int64()))]),
        pa.struct([("bytes", pa.string())]),
        pa.struct([("path", pa.int64())]),
        pa.struct([("url", pa.string())]),
        pa.list_(pa.string()),
    ],
)
def test_columns_that_hold_no_images_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "image": pa.array([None], kind)}), tmp_path / "rows.parquet")
    with pytest.raises(JobError, match=r"rows\.parquet: the column 'image' holds .*; images are paths, bytes, or \{bytes, path\}"):
        read_all(tmp_path / "rows.parquet")


def test_columns_that_hold_images_in_every_type_of_bytes_and_text(tmp_path: Path) -> None:
    for values, expected in [
        (pa.array([b"12"], pa.large_binary()), b"12"),
        (pa.array([b"12"], pa.binary(2)), b"12"),
        (pa.array([{"bytes": b"12"}]), b"12"),
        (pa.array(["a.png"]).dictionary_encode(), f"{tmp_path}/a.png"),
        (pa.array(["a.png"], pa.large_string()), f"{tmp_path}/a.png"),
    ]:
        pq.write_table(pa.table({"prompt": ["a"], "image": values}), tmp_path / "rows.parquet")
        _, [row] = read_all(tmp_path / "rows.parquet")
        assert row[2] == expected
