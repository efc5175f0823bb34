from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import seeded
from image_reward import image_files
from image_reward.errors import ImageReadError
from image_reward.image_files import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, foreign_format, list_images, read_image_file

RINGS = seeded.image("rings", 96, 64, 3)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def names(folder: Path, recursive: bool = False) -> tuple[list[str], list[str]]:
    listing = list_images(folder, recursive)
    return listing.names, listing.passed_over


# --- folders -------------------------------------------------------------------------------------------------------------------------


def test_every_picture_of_a_folder_is_listed_or_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpe", "c.TGA", "d", "e.0001"):
        RINGS.save(tmp_path / name, {".jpe": "JPEG", ".TGA": "TGA"}.get(Path(name).suffix, "PNG"))
    (tmp_path / "f.heic").write_bytes(HEIC)
    (tmp_path / "g").write_bytes(HEIC)
    (tmp_path / "h.mp4").touch()
    for name in (".hidden.png", "._a.png", "a.txt", "a.json", "notes.md", "rows.csv", "weights.bin", "nothing"):
        (tmp_path / name).write_text("text")
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == (["a.png", "b.jpe", "c.TGA", "d", "e.0001"], ["f.heic", "folder.png/", "g", "h.mp4"])
    assert list_images(tmp_path).note() == "3 files and 1 folder were passed over: f.heic, folder.png/, g, h.mp4"


def test_archives_that_may_hold_images_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("empty.txt"))
    (tmp_path / "a.png.gz").write_bytes(gzip.compress(b"image"))
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "d.rar").write_bytes(b"Rar!\x1a\x07")
    (tmp_path / "index.html").write_text("<html>")
    assert names(tmp_path) == ([], ["a.png.gz", "b.zip", "c.pdf", "d.rar", "more.tar"])


def test_the_note_names_the_first_and_counts_all(tmp_path: Path) -> None:
    assert list_images(tmp_path).note() == ""
    (tmp_path / "sub").mkdir()
    assert list_images(tmp_path).note() == "1 folder was passed over: sub/"
    for number in range(7):
        (tmp_path / f"{number}.jxl").touch()
    assert list_images(tmp_path, recursive=True).note() == "7 files were passed over: 0.jxl, 1.jxl, 2.jxl, 3.jxl, 4.jxl, …"


def test_folders_within_are_entered_once_through_links_too(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "deep" / "er").mkdir(parents=True)
    (elsewhere / "more").mkdir(parents=True)
    for path in (root / "deep" / "er" / "a.png", elsewhere / "b.png", elsewhere / "more" / "c.png"):
        path.touch()
    (root / "again").symlink_to(root / "deep")
    (root / "linked").symlink_to(elsewhere)
    (root / "linked2").symlink_to(elsewhere)
    (elsewhere / "more" / "circle").symlink_to(elsewhere)
    (root / "deep" / "up").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    assert names(root, recursive=True) == (["deep/er/a.png", "linked/b.png", "linked/more/c.png"], ["deep/up/", "self"])
    assert names(root) == ([], ["again/", "deep/", "linked/", "linked2/", "self"])


def test_what_cannot_be_opened_is_listed_by_its_name(tmp_path: Path) -> None:
    """Whoever scores it then says what is wrong with it."""
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == (["gone.png", "pipe.png"], [])


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")


def test_suffixes_are_those_of_formats_that_pillow_reads() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert known >= IMAGE_SUFFIXES - {".avif", ".avifs", ".webp", ".jfif", ".qoi"}  # not in every build or version
    assert not IMAGE_SUFFIXES & UNREADABLE_SUFFIXES


# --- content -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEIC, "is a HEIC picture; convert it to PNG or JPEG"),
        (b"\xff\x0a\x01", "is a JPEG XL picture; convert"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL picture"),
        (b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg xmlns="x">', "is an SVG drawing"),
        (b"\n <SVG>", "is an SVG drawing"),
        (b"\x93NUMPY\x01\0v\0{'descr'", "is a NumPy array; read it with numpy.load, and give the array"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "is a sound; give an image"),
        (b"#?RADIANCE\n", "is a Radiance HDR picture; convert"),
        (b"II*\0\x10\0\0\0CR\x02\0", "is a raw photograph"),
        (bytes(128) + b"DICM\2\0", "is a DICOM picture"),
        (b"gimp xcf file\0", "is a GIMP drawing"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "is a video (Windows Media or Flash)"),
        (b'{"error": "Not Found"}', "is text, perhaps a server's message, and not an image"),
        ("déjà vu ".encode() * 200, "is text, perhaps"),
        ("é".encode() * 600, "is text, perhaps"),  # the first 1,023 bytes end within a character
        (b"x" + "é".encode() * 600, "is text, perhaps"),
        (b"\0\0\0\x20ftypisom", "is a video (MP4 or QuickTime); save frames of it as PNG or JPEG"),
        (b"\0\0\0\x14ftypqt  ", "is a video"),
        (b"\x1aE\xdf\xa3", "is a video (WebM or Matroska)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            "is a Git LFS pointer, not the image; fetch the image with",
        ),
        (b"<!DOCTYPE html><title>404", "is a web page or a server's message, not an image; download the image again"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "is a web page or a server's message"),
        (b"%PDF-1.7", "is a PDF document"),
        (b"PK\x03\x04", "is a compressed file; unpack it"),
    ],
)
def test_other_formats_have_a_name_and_a_remedy(content: bytes, message: str) -> None:
    assert (foreign_format(content) or "").startswith(message)


def test_an_unknown_content_has_no_name() -> None:
    for content in (b"", b"\x80hello", b"hello\0", b"\x89PNG\r\n\x1a\n", bytes(2000)):
        assert foreign_format(content) is None


# --- reading -------------------------------------------------------------------------------------------------------------------------


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "LARGEST_FILE", 100)
    (tmp_path / "small").write_bytes(bytes(100))
    assert read_image_file(tmp_path / "small") == bytes(100)
    (tmp_path / "large").write_bytes(bytes(101))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, message in {
        "large": "large is larger than 100 bytes",
        "pipe": "pipe is a named pipe",
        "device": "device is a device",
        "empty": "empty is empty",
        ".": "is a folder",
    }.items():
        with pytest.raises(ImageReadError, match=message):
            read_image_file(tmp_path / name)


def test_what_is_not_a_path_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("gone.png", "a prompt, " * 600, "nul\0byte", "\ud83d", str(tmp_path / "file" / "in.png")):
        with pytest.raises(FileNotFoundError, match="no such image: "):
            read_image_file(path)


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="a file of Linux that blocks")
def test_files_of_proc_do_not_block() -> None:
    with pytest.raises(ImageReadError, match=r"kmsg (is empty|may not be read)"):
        read_image_file("/proc/kmsg")
