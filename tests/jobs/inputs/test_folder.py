from __future__ import annotations

from pathlib import Path

import pytest
import stubs
from PIL import Image
from reading import read_all

from image_reward.errors import JobError
from image_reward.jobs.inputs import folder, open_input


def test_a_link_to_nothing_is_an_image_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere.png")
    _, rows = read_all(tmp_path, prompt="cat")
    assert [(row[0]["image"], row[2]) for row in rows] == [("a.png", str(tmp_path / "a.png"))]


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


def test_a_folder_is_listed_again_only_if_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubs.draw(tmp_path, 2)
    stubs.draw(tmp_path / "more", 1)
    began = open_input(str(tmp_path), prompt="cat")
    shards = began.scan(2)
    plan = began.plan(shards, 2)
    with monkeypatch.context() as patched:
        patched.setattr(folder, "list_images", lambda *_, **__: pytest.fail("the folder is listed again"))
        again = open_input(str(tmp_path), prompt="cat")
        assert again.resume(plan, 2) == shards
        assert again.fingerprint() == began.fingerprint()
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")  # written over, which changes no folder
    assert again.resume(plan, 2) == shards
    with pytest.raises(JobError, match="have changed while they were being read"):
        again.check_unchanged()
    (tmp_path / "more" / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert again.resume(plan, 2) is None
