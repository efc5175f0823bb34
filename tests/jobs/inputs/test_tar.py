from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from reading import add, read_all, write_tar

from image_reward.errors import JobError
from image_reward.jobs.files import Access, Member
from image_reward.jobs.inputs import image_named
from image_reward.jobs.rows import Names


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
    (tmp_path / "damaged.tar").write_bytes(b"not a tar")
    with pytest.raises(JobError, match=r"damaged\.tar is not a whole, uncompressed tar"):
        image_named(str(tmp_path), "damaged.tar#a.png", "image", Access())
    (tmp_path / "bad.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:700])
    with pytest.raises(JobError, match=r"bad\.tar is not a whole, uncompressed tar"):
        read_all(tmp_path / "bad.tar")


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


def test_keys_of_samples_are_told_apart_as_they_are_written(tmp_path: Path) -> None:
    """Also those with letters that become longer in lower case; extensions are alike in any case."""
    write_tar(tmp_path / "0.tar", {"İİ/İİab.PNG": b"A", "İİ/İİab.Txt": b"one", "İİ/İİAB.png": b"B", "İİ/İİAB.txt": b"two"})
    _, rows = read_all(tmp_path / "0.tar")
    assert [(row[0]["id"], row[1], row[3]) for row in rows] == [("İİ/İİab", "one", None), ("İİ/İİAB", "two", None)]
