from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs

from image_reward.errors import JobError
from image_reward.jobs.files import Access, Member
from image_reward.jobs.rows import Input, Names, image_named, open_input


def read_all(given: Path | str, shard_size: int = 2, names: Names | None = None, prompt: str | None = None) -> tuple[Input, list[Any]]:
    """The input, and its rows as (columns, prompt, image, problem)."""
    source = open_input(str(given), names, prompt)
    found = []
    for shard in source.scan(shard_size):
        rows = source.read(shard)
        assert len(rows.table) == shard.num_rows <= shard_size
        found += list(zip(rows.table.to_pylist(), rows.prompts, rows.images, rows.problems, strict=True))
    return source, found


def test_csv_shards_begin_at_records_not_at_lines(tmp_path: Path) -> None:
    text = (
        '\ufeffid,prompt,image\r\n1,"a ""cat""\nand, a dog",a.png\r\n\r\n2,5" screen,b.png\r\n3,"x",/abs/c.png\n4,é,s3://b/d.png\n5,,e.png'
    )
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8", newline="")
    for size in (1, 2, 100):
        _, rows = read_all(tmp_path / "rows.csv", size)
        assert [row[1] for row in rows] == ['a "cat"\nand, a dog', '5" screen', "x", "é", None]
        assert [row[2] for row in rows] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png", "/abs/c.png", "s3://b/d.png", f"{tmp_path}/e.png"]
        assert rows[0][0] == {"id": "1", "prompt": 'a "cat"\nand, a dog', "image": "a.png"}
        assert not any(row[3] for row in rows)


def test_a_wrong_record_is_a_problem_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(
        b"prompt,image\na,a.png\nb\nc,c.png,more\n\xff,d.png\n" + b'"' + b"x" * 200_000 + b'",e.png\nf,f.png\n'
    )
    _, rows = read_all(tmp_path / "rows.csv")
    problems = [row[3] for row in rows]
    assert problems[0] is None
    assert problems[1] == "row 2 has 1 cells and the header 2; quote cells that hold commas"
    assert "row 3 has 3 cells" in problems[2]
    assert problems[3] == "row 4 is not UTF-8"
    assert "field larger than field limit" in problems[4]
    assert rows[5][1] == "f"
    assert problems[5] is None
    assert rows[3][0] == {"prompt": "\ufffd", "image": "d.png"}


def test_a_quote_that_is_not_closed_costs_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text, prompts in [
        ('image,prompt\n0.png,"a\n1.png,b\n2.png,c\n', [None, "b", "c"]),  # the rest of the file would be its prompt
        ('prompt,image\n"a,0.png\nb,1.png\n"c d",2.png\n', [None, "b", "c d"]),  # 2.png would be scored for all three lines
        ('image,prompt\n0.png,a\n1.png,"b\n' + "2.png,c\n" * 20_000, ["a", None, *"c" * 20_000]),  # longer than a cell may be
    ]:
        path.write_text(text)
        for size in (1, 2, 1000) if len(text) < 1000 else (1000,):
            _, rows = read_all(path, size)
            assert [row[1] for row in rows] == prompts
            assert [n for n, row in enumerate(rows) if row[3]] == [prompts.index(None)]
            assert "is not CSV: " in rows[prompts.index(None)][3]
            assert "close every quote" in rows[prompts.index(None)][3]


def test_columns_that_cannot_be_told_apart(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["0.png"], ["b"]], names=["prompt", "image", "prompt"]), tmp_path / "rows.parquet")
    with pytest.raises(JobError, match=r"several columns of one name: prompt, image, prompt; rename or drop one"):
        read_all(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("prompt,image\na,0.png\n")
    with pytest.raises(JobError, match="the column 'image' cannot hold both images and prompts"):
        read_all(tmp_path / "rows.csv", names=Names(prompt="image"))
    (tmp_path / "old.csv").write_bytes(b"prompt,image\ra,0.png\r")
    with pytest.raises(JobError, match=r"the first line of .*old\.csv is not CSV: new-line character"):
        read_all(tmp_path / "old.csv")


def test_a_link_to_nothing_is_an_image_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere.png")
    _, rows = read_all(tmp_path, prompt="cat")
    assert [(row[0]["image"], row[2]) for row in rows] == [("a.png", str(tmp_path / "a.png"))]


def test_json_lines_with_columns_of_every_type(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "image": "a.png", "n": 1, "x": 1, "ok": True, "mixed": 1, "list": [1, 2]},
        {"prompt": None, "image": "b.png", "n": 2, "x": 0.5, "mixed": "text", "big": 2**70},
        {"prompt": "", "image": None, "late": "é"},
        {"prompt": 7, "image": "d.png"},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n\n[1]\n{"prompt": \n{"prompt": "z", "image": "z.png"}'
    (tmp_path / "rows.jsonl").write_text(text)
    source, rows = read_all(tmp_path / "rows.jsonl")
    types = {field.name: str(field.type) for field in source.schema}
    assert types == {"image": "string", "n": "int64", "x": "double", "ok": "bool"} | dict.fromkeys(
        ("prompt", "mixed", "list", "big", "late"), "string"
    )
    assert [row[1] for row in rows] == ["a", None, "", 7, None, None, "z"]
    assert rows[0][0]["list"] == "[1, 2]"
    assert rows[1][0]["big"] == str(2**70)
    assert [row[3] is None for row in rows] == [True, True, True, True, False, False, True]
    assert rows[4][3] == "row 5 is not an object but [1]"
    assert rows[5][3].startswith("row 6 is not JSON: ")
    assert rows[2][2] is None


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


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_a_web_dataset(tmp_path: Path) -> None:
    long = "f/" + "n" * 150  # a name that takes a header of its own
    members = {"a/0.jpg": b"A" * 600, "a/0.txt": b"one\n", "a/1.json": b'{"caption": "two"}', "a/1.png": b"B", "._x.jpg": b""}
    members |= {
        f"{long}.webp": b"C",
        f"{long}.txt": "drei é".encode(),
        "3.jpg": b"D",
        "4.txt": b"five",
        "5.png": b"",
        "5.jpg": b"",
        "5.txt": b"x",
    }
    write_tar(tmp_path / "0.tar", members)
    for size in (1, 2, 9):
        source, rows = read_all(tmp_path / "0.tar", size)
        assert [row[0]["id"] for row in rows] == ["a/0", "a/1", long, "3", "4", "5"]
        assert [row[1] for row in rows] == ["one", "two", "drei é", None, "five", "x"]
        assert [row[3] for row in rows][:3] == [None, None, None]
        assert rows[3][3] == "the sample has neither a .txt nor a .json with its prompt"
        assert rows[4][3] == "the sample 4 has 0 images; it must have one"
        assert rows[5][3] == "the sample 5 has 2 images; it must have one"
        assert isinstance(rows[0][2], Member)
        assert [Access().read(row[2]) for row in rows[:3]] == [b"A" * 600, b"B", b"C"]
        assert image_named(source.base, rows[2][0]["image"], "image", Access()) == b"C"
    (tmp_path / "bad.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    with pytest.raises(JobError, match=r"bad\.tar is not a whole, uncompressed tar"):
        read_all(tmp_path / "bad.tar")


def test_a_folder_of_images_with_captions(tmp_path: Path) -> None:
    stubs.draw(tmp_path, 2)
    stubs.draw(tmp_path / "more", 1)
    (tmp_path / "0.txt").write_text("zero\n")
    (tmp_path / "more" / "0.txt").write_bytes(b"\xff")
    (tmp_path / ".hidden.png").touch()
    source, rows = read_all(tmp_path)
    assert [(row[0]["image"], row[1]) for row in rows] == [("0.png", "zero"), ("1.png", None), ("more/0.png", None)]
    assert rows[1][3] == "there is no 1.txt with its prompt"
    assert rows[2][3].startswith("more/0.txt cannot be read: ")
    assert rows[2][2] == str(tmp_path / "more" / "0.png")
    _, rows = read_all(tmp_path, prompt="cat")
    assert [row[1] for row in rows] == ["cat"] * 3
    assert rows[0][0] == {"image": "0.png", "prompt": "cat"}
    (tmp_path / "0.png").unlink()
    with pytest.raises(JobError, match="have changed while they were being read"):
        source.check_unchanged()


def test_one_prompt_for_all_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image\na.png\n")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png"}\n')
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "rows.parquet")
    write_tar(tmp_path / "rows.tar", {"a.png": b"x"})
    for suffix in ("csv", "jsonl", "parquet", "tar"):
        _, rows = read_all(tmp_path / f"rows.{suffix}", prompt="cat")
        assert [(row[1], row[0]["prompt"], row[3]) for row in rows] == [("cat", "cat", None)]
    with pytest.raises(JobError, match="one prompt for all rows, or a column of prompts, not both"):
        read_all(tmp_path / "rows.csv", prompt="cat", names=Names(prompt="caption"))
    (tmp_path / "both.csv").write_text("image,prompt\na.png,x\n")
    with pytest.raises(JobError, match="has a column 'prompt' of prompts; leave --prompt out"):
        read_all(tmp_path / "both.csv", prompt="cat")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,picture\n1,2\n", r"no column 'image'; it has prompt, picture\. Name it with --image-column"),
        ("a.csv", "text,image\n1,2\n", r"no column 'prompt'; it has text, image\. Name it with --prompt-column or --prompt TEXT"),
        ("a.csv", "prompt,image,reward\n1,2,3\n", "has a column 'reward' already"),
        ("a.csv", "prompt,image,image\n1,2,3\n", "which is no header"),
        ("a.csv", "prompt,image\n", "holds no rows"),
        ("a.csv", "", "which is no header"),
        ("a.jsonl", '[{"prompt": 1}]', "is one JSON list"),
        ("a.parquet", "PAR1 no", "is not a whole Parquet file"),
        ("a.xlsx", "x", "is of no known kind of rows"),
    ],
)
def test_inputs_that_cannot_be(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(JobError, match=message):
        read_all(tmp_path / name)


def test_what_is_not_there_or_not_clear(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file of rows: .*none\.csv"):
        read_all(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("prompt,image\na,b\n")
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(JobError, match=r"rows of several kinds \(\.csv, \.jsonl\); give one kind"):
        read_all(tmp_path)
    assert len(read_all(f"{tmp_path}/*.csv")[1]) == 1
    stubs.draw(tmp_path / "both", 1)
    (tmp_path / "both" / "a.csv").write_text("prompt,image\na,b\n")
    with pytest.raises(JobError, match=r"holds both a\.csv and images such as 0\.png"):
        read_all(tmp_path / "both")
    (tmp_path / "b.csv").write_text("image,prompt\na,b\n")
    with pytest.raises(JobError, match=r"b\.csv has the columns image, prompt, and .*a\.csv prompt, image"):
        read_all(f"{tmp_path}/*.csv")


def test_the_web_only_on_request_and_only_known_places() -> None:
    with pytest.raises(JobError, match="is on the web, and fetching was not allowed; pass --allow-https"):
        open_input("https://example.org/rows.csv")
    with pytest.raises(JobError, match=r"ftp:// is not read here; known are s3, gs, gcs, az, abfs, hdfs and https"):
        Access(allow_https=True).read("ftp://example.org/a.png")
    with pytest.raises(JobError, match="s3:// needs a package that is not installed: pip install s3fs"):
        open_input("s3://bucket/rows.csv")


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "", "", "c", "b", "a"]
    (tmp_path / "rows.csv").write_text("prompt,image,id\n" + "".join(f"p,i.png,{name}\n" for name in ids))
    source, _ = read_all(tmp_path / "rows.csv")
    assert source.num_repeated_ids == 2
    assert source.repeated_id in ("that of rows 1 and 3", "that of rows 2 and 7")  # empty ids are none
    with pytest.raises(JobError, match=r"2 ids in the column 'id' occur more than once"):
        read_all(tmp_path / "rows.csv", names=Names(id="id"))


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,image\na,b\n")
    source = open_input(str(file))
    shards = source.scan(1)
    file.write_text("prompt,image\na,b\nc,d\n")
    with pytest.raises(JobError, match="has changed while it was being read"):
        source.read(shards[0])
    file.unlink()
    with pytest.raises(JobError, match="is gone; put it back"):
        source.check_unchanged()
