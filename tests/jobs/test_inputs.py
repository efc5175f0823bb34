from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs

from image_reward.errors import FileKindError, JobError
from image_reward.jobs.files import Access, Member
from image_reward.jobs.inputs import image_named, open_input
from image_reward.jobs.rows import Input, Names

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


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
    with pytest.raises(JobError, match=r"the first line of .*old\.csv is not CSV: its lines end in a carriage return alone"):
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
        assert rows[4][3] == "the sample 4 has 0 images; it must have one (its files: txt)"
        assert rows[5][3] == "the sample 5 has 2 images; it must have one (its files: jpg, png, txt)"
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
        ("a.csv", "prompt,image,image\n1,2,3\n", "which is not a header"),
        ("a.csv", "prompt,image\n", "holds no rows"),
        ("a.csv", "", "which is not a header"),
        ("a.jsonl", '[{"prompt": 1}]', "is one JSON list"),
        ("a.parquet", "PAR1 no", "is not a whole Parquet file"),
        *((f"a.{kind}", POINTER, rf"a\.{kind} is a Git LFS pointer") for kind in ("csv", "jsonl", "parquet", "tar")),
        ("a.csv", "<!DOCTYPE html>\n", r"a\.csv is an HTML or XML page"),
        ("a.xlsx", "x", "is not a known kind of rows"),
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


# --- hostile input ---


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **header: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in header.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def test_samples_with_the_same_key_are_rows_of_their_own(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, data in [("a.png", b"1"), ("a.txt", b"one"), ("a.PNG", b"2"), ("a.txt", b"two"), ("b.png", b"x"), ("b.txt", b"b")]:
            add(archive, name, data)
        add(archive, "a.png", b"3")
        add(archive, "a.txt", b"three")
        add(archive, "c/a.png", b"4")
        add(archive, "c/a.txt", b"four")
    for size in (1, 2, 9):
        source, rows = read_all(tmp_path / "0.tar", size)
        assert [row[1] for row in rows] == ["one", "two", "b", "three", "four"]
        assert [row[0]["id"] for row in rows] == ["a", "a", "b", "a", "c/a"]
        assert source.num_repeated_ids == 1
        named = [image_named(source.base, row[0]["image"], "image", Access()) for row in rows]
        assert named == [Access().read(row[2]) for row in rows] == [b"1", b"2", b"x", b"3", b"4"]


def test_a_name_with_number_signs_is_found_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "x#1.tar", {"a#b.png": b"A", "a#b.txt": b"one"})
    source, [row] = read_all(tmp_path / "x#1.tar")
    assert row[0]["image"] == "x#1.tar#a#b.png"
    assert image_named(source.base, row[0]["image"], "image", Access()) == b"A"


def test_a_member_that_is_not_stored_byte_by_byte_is_a_problem_of_its_row(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "a.png", b"A")
        add(archive, "a.txt", b"one")
        add(archive, "hard.png", type=tarfile.LNKTYPE, linkname="a.png")
        add(archive, "hard.txt", b"two")
        add(archive, "link.png", type=tarfile.SYMTYPE, linkname="a.png")
        add(archive, "folder", type=tarfile.DIRTYPE)
        add(archive, "pipe.png", type=tarfile.FIFOTYPE)
        add(archive, "text.png", b"B")
        add(archive, "text.txt", type=tarfile.SYMTYPE, linkname="a.txt")
    sparse = tarfile.TarInfo("sparse.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:410], header[483:495] = b"00000000000\00000000001000\0", b"00000100000\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
    plain = (tmp_path / "0.tar").read_bytes().rstrip(b"\0")
    plain += bytes(-len(plain) % 512)
    (tmp_path / "0.tar").write_bytes(plain + bytes(header) + b"x" * 512 + bytes(1024))
    _, rows = read_all(tmp_path / "0.tar")
    assert [row[0]["id"] for row in rows] == ["a", "hard", "link", "pipe", "text", "sparse"]
    assert rows[0][3] is None
    for row, word in zip(
        rows[1:],
        ["hard.png is a link", "link.png is a link", "pipe.png is a link or", "text.txt is a link", "sparse.png is sparse"],
        strict=True,
    ):
        assert word in row[3]
    assert "make the tar again with --dereference --hard-dereference" in rows[1][3]
    assert "make the tar again without --sparse" in rows[5][3]


def test_a_tar_that_does_not_end_as_it_should_is_noticed(tmp_path: Path) -> None:
    write_tar(tmp_path / "whole.tar", {f"{n}.{kind}": b"data" for n in range(3) for kind in ("png", "txt")})
    whole = (tmp_path / "whole.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: 4 * 1024])  # at the header of a member
    source, rows = read_all(cut)
    assert len(rows) == 2
    assert source.notes == [f"{cut} has no mark at its end: it may have been cut there, and rows may be missing"]
    for damaged in (whole[:4500], whole[:5000], whole[: 4 * 1024] + b"\0garbage" * 512, whole[: 4 * 1024] + b"?" * 10_000):
        cut.write_bytes(damaged)
        with pytest.raises(JobError, match=r"cut\.tar is not a whole, uncompressed tar: .* at byte"):
            read_all(cut)
    cut.write_bytes(whole + whole)
    source, rows = read_all(cut)
    assert len(rows) == 3
    assert "goes on after the mark of its end" in source.notes[0]
    for size in (-1024, 1 << 62, 1 << 34):
        with tarfile.open(cut, "w", format=tarfile.GNU_FORMAT) as archive:
            add(archive, "a.png", b"A")
        header = bytearray(whole[:512])
        header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512]))
        cut.write_bytes(whole[: 4 * 1024] + bytes(header) + whole[4 * 1024 + 512 :])
        with pytest.raises(JobError, match=r"cut\.tar is not a whole, uncompressed tar: .*at byte"):
            read_all(cut)
    cut.write_bytes(gzip.compress(whole))
    with pytest.raises(JobError, match=r"cut\.tar is compressed with gzip; unpack it with gunzip"):
        read_all(cut)
    cut.write_bytes(bytes(10_240))
    with pytest.raises(JobError, match=r"cut\.tar holds no rows"):
        read_all(cut)


def test_members_that_state_sizes_to_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    for type_ in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = tarfile.TarInfo("long")
        info.type, info.size = type_, 50 << 30
        with path.open("wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(60 << 30)
        with pytest.raises(JobError, match=r"0\.tar is not a whole, uncompressed tar: a header of 53,687,091,200 bytes"):
            read_all(path)
    with path.open("wb") as file:
        for name, size in (("a.txt", 50 << 30), ("a.png", 20 << 30), ("b.json", 20 << 20)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.seek(size, os.SEEK_CUR)
        file.write(bytes(1024))
    _, rows = read_all(path)
    assert rows[0][3] == "the sample's text cannot be read: a.txt has 53,687,091,200 bytes; at most 16,777,216 are read"
    assert "b.json has 20,971,520 bytes" in read_all(path, names=Names(prompt="x"))[1][1][3] or "0 images" in rows[1][3]
    with pytest.raises(ValueError, match=r"0\.tar: an image of 21,474,836,480 bytes; at most 1,073,741,824 are read"):
        Access().read(rows[0][2])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[" * 100_000, "the sample's text cannot be read: "),
        (b'["prompt"]', "the sample's json is not an object but ['prompt']"),
        (b'"a prompt"', "the sample's json is not an object but 'a prompt'"),
        (b"7", "the sample's json is not an object but 7"),
        (b'{"caption": ["a"]}', "the prompt in the sample's json is not text but ['a']"),
        (b'{"title": "a"}', "the sample's json has no prompt or caption or text; it has title"),
        (b'{"caption": "caf\xe9"}', "the sample's text cannot be read: "),
    ],
)
def test_the_json_of_a_sample_may_be_anything(tmp_path: Path, text: bytes, problem: str) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": b"A", "a.json": text, "b.png": b"B", "b.json": b'{"caption": "fine"}'})
    _, rows = read_all(tmp_path / "0.tar", 9)
    assert rows[0][3].startswith(problem)
    assert (rows[1][1], rows[1][3]) == ("fine", None)


def test_a_key_that_is_there_twice_is_a_problem_of_its_row(tmp_path: Path) -> None:
    """``json`` alone would score the last of two prompts without a word."""
    twice = '{"prompt": "one", "image": "0.png", "prompt": "two"}'
    (tmp_path / "rows.jsonl").write_text(
        twice + '\n{"prompt": "fine", "image": "1.png", "more": {"a": 1, "a": 2}}\n{"prompt": "c", "image": "2"}'
    )
    _, rows = read_all(tmp_path / "rows.jsonl", 9)
    assert [row[3] and row[3].partition(" is ")[2] for row in rows] == [
        "not JSON: the key 'prompt' occurs twice in one object",
        "not JSON: the key 'a' occurs twice in one object",
        None,
    ]
    write_tar(tmp_path / "0.tar", {"a.png": b"A", "a.json": twice.encode(), "b.png": b"B", "b.txt": b"fine"})
    _, rows = read_all(tmp_path / "0.tar", 9)
    assert [row[3] for row in rows] == ["the sample's text cannot be read: the key 'prompt' occurs twice in one object", None]


def test_keys_of_samples_are_told_apart_as_they_are_written(tmp_path: Path) -> None:
    """Also those with letters that become longer in lower case; extensions are alike in any case."""
    write_tar(tmp_path / "0.tar", {"İİ/İİab.PNG": b"A", "İİ/İİab.Txt": b"one", "İİ/İİAB.png": b"B", "İİ/İİAB.txt": b"two"})
    _, rows = read_all(tmp_path / "0.tar")
    assert [(row[0]["id"], row[1], row[3]) for row in rows] == [("İİ/İİab", "one", None), ("İİ/İİAB", "two", None)]


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


def test_text_that_cannot_be_encoded_costs_its_row_alone(tmp_path: Path) -> None:
    """Half a character in JSON, names that are not UTF-8, Parquet that was written unchecked."""
    write_tar(tmp_path / "0.tar", {"a.png": b"A", "a.json": b'{"caption": "a cat \\ud83d"}', "b.png": b"B", "b.txt": "\ufeffé".encode()})
    _, rows = read_all(tmp_path / "0.tar", 9)
    assert rows[0][0]["prompt"] == "a cat \ufffd"
    assert rows[0][3] == "the prompt in the sample's json holds half of a character (a lone surrogate)"
    assert rows[1][1] == "é"
    with tarfile.open(tmp_path / "latin.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "caf\xe9.png", b"A")
        add(archive, "caf\xe9.txt", b"one")
    source, [row] = read_all(tmp_path / "latin.tar")
    assert row[0] == {"id": "caf\ufffd", "image": "latin.tar#caf\ufffd.png", "prompt": "one"}
    assert image_named(source.base, row[0]["image"], "image", Access()) == b"A"
    folder = tmp_path / "folder"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9")
    stubs.draw(folder, 1)
    (folder / "0.png").rename(folder / f"{name}.png")
    (folder / f"{name}.txt").write_bytes("\ufeffone".encode())
    _, [row] = read_all(folder)
    assert (row[0], row[1]) == ({"image": "caf\ufffd.png", "prompt": "one"}, "one")
    assert len(Access().read(row[2])) > 50
    lines = [
        r'{"prompt": "a", "image": "0.png", "\ud800": 1, "?": 2, "\ufffd": 3}',
        r'{"prompt": "b \ud800", "image": "1.png", "\ud800": 1}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    _, rows = read_all(tmp_path / "rows.jsonl", 9)
    assert rows[0][3] == "row 1 is an object with keys that differ only in halves of characters"
    assert rows[1][0]["\ufffd"] == 1
    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"prompt": bad, "image": ["0.png", "1.png"], "list": [["x"], ["y"]]}), tmp_path / "rows.parquet")
    _, rows = read_all(tmp_path / "rows.parquet", 9)
    assert [row[3] for row in rows] == [None, "row 2 is not UTF-8 in the column 'prompt'"]
    assert [row[0]["prompt"] for row in rows] == ["a", "\ufffd"]


def test_numbers_that_a_float_cannot_hold_are_kept_as_text(tmp_path: Path) -> None:
    rows = [{"n": 4611686018427387905, "m": 2**53 + 1}, {"n": 0.5, "m": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"prompt": "a", "image": "b"}) + "\n" for row in rows))
    _, rows = read_all(tmp_path / "rows.jsonl")
    assert [row[0]["n"] for row in rows] == ["4611686018427387905", "0.5"]
    assert [row[0]["m"] for row in rows] == [9007199254740993, 1]


def test_a_list_or_another_encoding_is_not_taken_for_lines(tmp_path: Path) -> None:
    for text in (b'\xef\xbb\xbf[{"prompt": "a"}]', b'\n \r\n[\n{"prompt": "a"},\n{}]', b"  [" + b" " * (20 << 20)):
        (tmp_path / "rows.jsonl").write_bytes(text)
        with pytest.raises(JobError, match=r"rows\.jsonl is one JSON list; write one object on each line"):
            read_all(tmp_path / "rows.jsonl")
    for name, text in (("rows.jsonl", '{"prompt": "a", "image": "b"}'), ("rows.csv", "prompt,image\na,b\n")):
        (tmp_path / name).write_text(text, encoding="utf-16")
        with pytest.raises(JobError, match=f"{name} is UTF-16 text; save it as UTF-8"):
            read_all(tmp_path / name)
    for text, separator in (("prompt;image\na;b\n", ";"), ("prompt\timage\na\tb\n", r"\\t")):
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(JobError, match=f"the cells of .*rows.csv are separated by '{separator}'; save it with commas"):
            read_all(tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf\n\n{"prompt": "a", "image": "b"}\n')
    assert [row[1] for row in read_all(tmp_path / "rows.jsonl")[1]] == ["a"]


def test_a_line_without_end_is_a_problem_of_its_row(tmp_path: Path) -> None:
    long = b"x" * (20 << 20)
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "a", "image": "0.png"}\n' + long + b'\n{"prompt": "b", "image": "1.png"}\n')
    (tmp_path / "rows.csv").write_bytes(b"prompt,image\na,0.png\n" + long + b"\nb,1.png\n")
    for name in ("rows.jsonl", "rows.csv"):
        for size in (1, 9):
            _, rows = read_all(tmp_path / name, size)
            assert [row[1] for row in rows] == ["a", None, "b"]
            assert rows[1][3] == "row 2 is a line of more than 16,777,216 bytes"
            assert rows[2][3] is None


@pytest.mark.parametrize(("name", "start"), [("zeros.csv", "prompt,image\na,0.png\n"), ("zeros.jsonl", "{}\n"), ("only_zeros.csv", "")])
def test_a_file_that_goes_on_in_zeros_is_not_read_to_its_end(name: str, start: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(start)
    os.truncate(tmp_path / name, 50 << 30)  # sparse
    with pytest.raises(JobError, match=rf"{name} is not text of rows: .* begins a line of more than 268,435,456 bytes"):
        read_all(tmp_path / name)


def test_rows_that_all_have_keys_of_their_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "a", "image": "b", f"key{n}": n}) + "\n" for n in range(3000)))
    with pytest.raises(JobError, match=r"the objects of .*rows\.jsonl have more than 1,000 different keys, such as 'key998'"):
        read_all(tmp_path / "rows.jsonl")


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_what_is_not_a_regular_file_is_never_opened(tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet", "tar"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
        with pytest.raises(FileKindError, match=f"pipe.{suffix} is a named pipe"):
            read_all(tmp_path / f"pipe.{suffix}")
        with pytest.raises(FileKindError, match=f"zero.{suffix} is a device"):
            read_all(f"{tmp_path}/z*.{suffix}")
    folder = tmp_path / "set"
    folder.mkdir()
    os.mkfifo(folder / "state.json")
    with pytest.raises(FileKindError, match=r"state\.json is a named pipe"):
        read_all(folder)
    images = tmp_path / "images"
    stubs.draw(images, 4)
    os.mkfifo(images / "0.txt")
    (images / "1.txt").symlink_to("/dev/zero")
    (images / "2.txt").mkdir()
    (images / "3.txt").write_text("fine")
    os.mkfifo(images / "pipe.png")
    (images / "pipe.txt").write_text("fine")
    _, rows = read_all(images)
    assert [row[1] for row in rows] == [None, None, None, "fine", "fine"]
    for row, kind in zip(rows, ["a named pipe", "a device", "a folder"], strict=False):
        assert kind in row[3]
    with pytest.raises(ValueError, match=r"pipe\.png is a named pipe"):
        Access().read(rows[4][2])


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path: Path) -> None:
    stubs.draw(tmp_path / "in", 1)
    data = (tmp_path / "in" / "0.png").read_bytes()
    for name in ("photo.heic", "drawing.SVG", "scan.jxl", ".hidden.heic", "old.JPE", "no suffix"):
        (tmp_path / "in" / name).write_bytes(data)
    for name in ("0.txt", "README", "notes.md", "0.json"):
        (tmp_path / "in" / name).write_text("not an image")
    stubs.draw(tmp_path / "elsewhere", 1)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "link2").symlink_to(tmp_path / "elsewhere")
    source, rows = read_all(tmp_path / "in")
    assert [row[0]["image"] for row in rows] == ["0.png", "link/0.png", "no suffix", "old.JPE"]
    assert source.notes == [f"{tmp_path}/in: 3 files were passed over: drawing.SVG, photo.heic, scan.jxl"]
    for name in ("0.png", "link", "link2", "old.JPE", "no suffix"):
        (tmp_path / "in" / name).unlink()
    with pytest.raises(JobError, match=r"in holds no rows\. .*in: 3 files were passed over: drawing\.SVG, photo\.heic, scan\.jxl"):
        read_all(tmp_path / "in")


def test_rows_in_a_folder_that_are_not_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,image\na,b\n")
    for name in ("b.csv.gz", "c.json", "notes.md", ".d.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "more").mkdir()
    source, _ = read_all(tmp_path)
    assert source.notes == [
        f"2 files were passed over in {tmp_path}: b.csv.gz, c.json",
        f"folders in {tmp_path} are not read: more; give {tmp_path}/**/*.csv to read them too",
    ]
    assert read_all(tmp_path / "a.csv")[0].notes == []
