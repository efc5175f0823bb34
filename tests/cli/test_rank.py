from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from image_reward.cli import main
from image_reward.cli.options import ModelOptions
from image_reward.scorers import load


def test_rank_prints_a_table(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path) -> None:
    assert main(["rank", "cat", str(image_folder), "--model", model_folder]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].strip() == "cat"
    rows = [line.split() for line in out if ".png" in line]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [Path(row[1]).name for row in rows] == ["b.png", "c.png", "a.png"]
    assert rows[0][2:6] == ["+0.6501", "better", "than", "72"]
    assert "6,000 published images" in " ".join(out)


def test_rank_as_json_top_and_copies(
    run_json: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    model_folder: str,
    images: list[str],
    image_folder: Path,
    tmp_path: Path,
) -> None:
    best = tmp_path / "best"
    arguments = ("rank", "cat", *images, "--model", model_folder, "--top", "2", "--copy-to", str(best))
    printed = run_json(*arguments)
    assert printed["model"] == "tiny"
    assert printed["prompt"] == "cat"
    assert [Path(row["image"]).name for row in printed["images"]] == ["b.png", "c.png"]
    assert printed["images"][0]["rank"] == 1
    assert printed["images"][0]["reward"] == pytest.approx(0.65009, abs=1e-4)
    assert printed["images"][0]["percentile"] == pytest.approx(72.32, abs=0.05)
    assert sorted(path.name for path in best.iterdir()) == ["1_b.png", "2_c.png"]
    assert (best / "1_b.png").read_bytes() == (image_folder / "b.png").read_bytes()
    assert main(list(arguments)) == 0  # the same copies again are no conflict
    (best / "2_c.png").write_bytes(b"something else")
    assert main(list(arguments)) == 1
    assert "already exists and differs" in capsys.readouterr().err
    assert (best / "2_c.png").read_bytes() == b"something else"


def test_a_gallery_on_request(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path, tmp_path: Path) -> None:
    for command in ("rank", "score"):
        page = tmp_path / f"{command}.html"
        assert main([command, "cat", str(image_folder), "--model", model_folder, "--gallery", str(page)]) == 0
        captured = capsys.readouterr()
        assert captured.err == f"gallery: {page}\n"
        assert page.read_text(encoding="utf-8").index("b.png") < page.read_text(encoding="utf-8").index("c.png")
        assert ".png" in captured.out
    assert main(["rank", "cat", str(image_folder), "--model", model_folder, "--gallery", "/proc/page.html"]) == 1
    captured = capsys.readouterr()
    assert "c.png" in captured.out  # the ranking is not lost
    (tmp_path / "folder.html").mkdir()
    for place, words in (
        ("folder.html", "is a folder"),
        ("none/page.html", "does not exist"),
        ("cat.png", "give it a name that ends in .html"),
    ):
        for command in ("rank", "score"):
            assert main([command, "cat", str(image_folder), "--model", model_folder, "--gallery", str(tmp_path / place)]) == 2
            captured = capsys.readouterr()
            assert words in captured.err
            assert captured.out == ""


def test_top_is_positive(capsys: pytest.CaptureFixture[str], model_folder: str, images: list[str]) -> None:
    assert main(["rank", "cat", images[0], "--model", model_folder, "--top", "0"]) == 2
    assert "--top must be at least 1, not 0" in capsys.readouterr().err


@pytest.fixture
def with_broken(images: list[str], tmp_path: Path) -> list[str]:
    """a.png, a truncated file, b.png, and one that is no image."""
    (tmp_path / "half.png").write_bytes(Path(images[0]).read_bytes()[:-40])
    (tmp_path / "text.png").write_text("not an image")
    return [images[0], str(tmp_path / "half.png"), images[1], str(tmp_path / "text.png")]


def test_every_unreadable_image_is_named_before_a_model_is_loaded(with_broken: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("rank", "score"):
        assert main([command, "cat", *with_broken, "--model", "no-such-model"]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert "2 of 4 images cannot be read: " in line
        assert "half.png" in line
        assert "text.png" in line
        assert line.endswith("--skip-unreadable leaves out what cannot be read")
        assert main([command, "cat", with_broken[1], "--skip-unreadable", "--model", "no-such-model"]) == 1  # nothing would be left
        printed = capsys.readouterr()
        assert "half.png" in printed.err
        assert "--skip-unreadable" not in printed.err


def test_unreadable_images_are_left_out_on_request(with_broken: list[str], model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command, order in (("rank", "ba"), ("score", "ab")):
        assert main([command, "cat", *with_broken, "--skip-unreadable", "--model", model_folder, "--json"]) == 1
        printed = capsys.readouterr()
        result = json.loads(printed.out)
        assert [Path(row["image"]).stem for row in result["images"]] == list(order)
        assert [row["image"] for row in result["skipped"]] == with_broken[1::2]
        assert all(row["error"] for row in result["skipped"])
        assert [Path(name).name in line for name, line in zip(with_broken[1::2], printed.err.splitlines(), strict=True)] == [True, True]
        assert main([command, "cat", *with_broken[::2], "--skip-unreadable", "--model", model_folder, "--json"]) == 0
        assert "skipped" not in json.loads(capsys.readouterr().out)


def test_missing_images_are_unreadable_ones(
    with_broken: list[str], model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named or listed on standard input, twice, or as a link to nothing in a folder; messages name options as the command line does."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link\n.png").symlink_to("nowhere")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{with_broken[1]}\nmissing.png\n"))
    arguments = [
        "score",
        "cat",
        with_broken[0],
        "missing.png",
        "missing.png",
        "-",
        str(tmp_path / "folder"),
        "--model",
        model_folder,
        "--json",
    ]
    assert main([*arguments, "--skip-unreadable"]) == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert [row["image"] for row in result["images"]] == with_broken[:1]
    assert [Path(row["image"]).name for row in result["skipped"]] == ["missing.png", "half.png", "link\n.png"]
    assert result["skipped"][0]["error"] == "no such image: missing.png"
    assert "pass --allow-truncated" in result["skipped"][1]["error"]
    assert len(printed.err.splitlines()) == 3
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{with_broken[1]}\n"))
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("image-reward: 3 of 4 images cannot be read: no such image: missing.png; ")


@pytest.mark.parametrize("room", [1 << 29, 0], ids=["kept", "decoded again"])
def test_images_that_were_checked_get_the_rewards_of_their_files(
    room: int, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every kind that is converted when it is opened, a turned one with --orient too; one image is there twice."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "alpha.png", exif=exif)
    picture.convert("RGB").save(tmp_path / "turned.tif", exif=exif)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", exif=exif)
    picture.convert("RGB").quantize(9).save(tmp_path / "palette.png", transparency=3)
    picture.convert("L").save(tmp_path / "grey.png", transparency=7)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    names = sorted(str(path) for path in tmp_path.iterdir() if path.is_file())
    monkeypatch.setattr("image_reward.cli.options._MOST_DECODED", room)
    expected = load(model_folder, orient=True).score("cat", names)
    assert main(["score", "cat", *names, names[0], "--orient", "--json", "--model", model_folder]) == 0
    rewards = [row["reward"] for row in json.loads(capsys.readouterr().out)["images"]]
    assert rewards[:-1] == pytest.approx(expected, abs=1e-5)
    assert rewards[-1] == rewards[0]


def test_an_image_is_decoded_once(images: list[str], model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone when the model has been loaded."""
    copies = [str(Path(image).with_name(f"copy{number}.png")) for number, image in enumerate(images)]
    for command in ("rank", "score"):
        for image, copy in zip(images, copies, strict=True):
            Path(copy).write_bytes(Path(image).read_bytes())

        def load_late(options: ModelOptions) -> Any:
            for copy in copies:
                Path(copy).unlink()
            return load(options.model)

        monkeypatch.setattr(ModelOptions, "load", load_late)
        assert main([command, "cat", *copies, "--model", model_folder]) == 0
