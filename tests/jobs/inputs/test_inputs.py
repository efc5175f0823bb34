from __future__ import annotations

import csv
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stubs
from reading import add, read_all, write_tar

import object_store
from image_reward.errors import AddressError, FileKindError, ImageReadError, JobError, PackageError
from image_reward.jobs.files import Access
from image_reward.jobs.inputs import image_named, open_input
from image_reward.jobs.rows import Names

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


def test_columns_that_cannot_be_told_apart(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["0.png"], ["b"]], names=["prompt", "image", "prompt"]), tmp_path / "rows.parquet")
    with pytest.raises(JobError, match=r"several columns of one name: prompt, image, prompt; rename or drop one"):
        read_all(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("prompt,image\na,0.png\n")
    with pytest.raises(JobError, match="the column 'image' cannot hold both images and prompts"):
        read_all(tmp_path / "rows.csv", names=Names(prompt="image"))


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


EMPTY = ["", " ", "\u3000", " \u2003 "]


def write_csv(path: Path, separator: str) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerows([["prompt", "image"], *([prompt, "a.png"] for prompt in EMPTY), ["cat ", "a.png"]])


def write_folder(path: Path, prompts: Sequence[str]) -> None:
    path.mkdir()
    for number, prompt in enumerate(prompts):
        (path / f"{number}.png").touch()
        (path / f"{number}.txt").write_text(prompt, encoding="utf-8")


WRITERS: dict[str, Callable[[Path, Sequence[str]], object]] = {
    "rows.csv": lambda path, _: write_csv(path, ","),
    "semicolons.csv": lambda path, _: write_csv(path, ";"),
    "tabs.csv": lambda path, _: write_csv(path, "\t"),
    "rows.jsonl": lambda path, prompts: path.write_text("".join(json.dumps({"prompt": p, "image": "a.png"}) + "\n" for p in prompts)),
    "rows.parquet": lambda path, prompts: pq.write_table(pa.table({"prompt": prompts, "image": ["a.png"] * len(prompts)}), path),
    "texts.tar": lambda path, prompts: write_tar(
        path, {f"{n}.{kind}": content for n, p in enumerate(prompts) for kind, content in (("png", b"x"), ("txt", p.encode()))}
    ),
    "objects.tar": lambda path, prompts: write_tar(
        path,
        {
            f"{n}.{kind}": content
            for n, p in enumerate(prompts)
            for kind, content in (("png", b"x"), ("json", json.dumps({"prompt": p}).encode()))
        },
    ),
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_prompt_is_none_in_every_format(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, [*EMPTY, "cat "])
    _, rows = read_all(tmp_path / name)
    assert [row[1] for row in rows][:-1] == [None] * len(EMPTY)
    assert rows[-1][1] in ("cat ", "cat")  # a file of text ends in a line break that is not the prompt's
    assert [row[3] for row in rows] == [None] * len(rows)


def test_an_empty_prompt_for_all_rows_is_meant(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image\na.png\n")
    assert [row[1] for row in read_all(tmp_path / "rows.csv", prompt="")[1]] == [""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,picture\n1,2\n", r"no column 'image'; it has prompt, picture\. Name it with --image-column"),
        ("a.csv", "text,image\n1,2\n", r"no column 'prompt'; it has text, image\. Name it with --prompt-column or --prompt TEXT"),
        ("a.csv", "prompt,image,reward\n1,2,3\n", "has a column 'reward' already"),
        ("a.csv", "prompt,image,image\n1,2\n", "has 2 columns called 'image'; rename or delete all but one"),
        ("a.csv", "sep=;\nprompt;image\n1;2\n", "begins with 'sep=;', which only Excel understands"),
        ("a.csv", "prompt,image\n", "holds no rows"),
        ("a.csv", "", "holds no rows, and no header"),
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


def test_the_web_only_on_request_and_only_known_places(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AddressError, match="is on the web, and fetching was not allowed; pass --allow-https"):
        open_input("https://example.org/rows.csv")
    with pytest.raises(ImageReadError, match=r"ftp:// is not read here; known are s3://, gs://, gcs://, az://, abfs://, hdfs://"):
        Access(allow_https=True).read("ftp://example.org/a.png")
    object_store.uninstall_gcsfs(monkeypatch)
    with pytest.raises(PackageError, match="gs:// needs a package that is not installed: pip install gcsfs"):
        open_input("gs://bucket/rows.csv")


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
