from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import tyro

import seeded
from image_reward import __version__
from image_reward.cli import main
from image_reward.cli.options import SeveralModelOptions


def paths(folder: Path, *names: str) -> list[str]:
    return [str(folder / f"{name}.png") for name in names]


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rank_prints_a_table(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path) -> None:
    assert main(["rank", "cat", str(image_folder), "--model", model_folder]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].strip() == "cat"
    rows = [line.split() for line in out if ".png" in line]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [Path(row[1]).name for row in rows] == ["b.png", "c.png", "a.png"]
    assert rows[0][2:6] == ["+0.6501", "better", "than", "72"]
    assert "6,000 published images" in " ".join(out)


def test_rank_as_json_top_and_copies(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path, tmp_path: Path) -> None:
    best = tmp_path / "best"
    arguments = ("rank", "cat", *paths(image_folder, "a", "b", "c"), "--model", model_folder, "--top", "2", "--copy-to", str(best))
    found = run_json(capsys, *arguments)
    assert found["model"] == "tiny"
    assert found["prompt"] == "cat"
    assert [Path(row["image"]).name for row in found["images"]] == ["b.png", "c.png"]
    assert found["images"][0]["rank"] == 1
    assert found["images"][0]["reward"] == pytest.approx(0.65009, abs=1e-4)
    assert found["images"][0]["percentile"] == pytest.approx(72.32, abs=0.05)
    assert sorted(path.name for path in best.iterdir()) == ["1_b.png", "2_c.png"]
    assert (best / "1_b.png").read_bytes() == (image_folder / "b.png").read_bytes()
    assert main(list(arguments)) == 0  # the same copies again are no conflict
    (best / "2_c.png").write_bytes(b"something else")
    assert main(list(arguments)) == 1
    assert "already exists and differs" in capsys.readouterr().err
    assert (best / "2_c.png").read_bytes() == b"something else"


def test_score_keeps_the_order_given(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path) -> None:
    found = run_json(capsys, "score", "cat", *paths(image_folder, "c", "a", "c"), "--model", model_folder)
    assert [Path(row["image"]).name for row in found["images"]] == ["c.png", "a.png", "c.png"]
    assert "rank" not in found["images"][0]
    assert main(["score", "cat", *paths(image_folder, "b"), "--model", model_folder]) == 0
    assert "+0.6501" in capsys.readouterr().out


def test_a_gallery_on_request(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path, tmp_path: Path) -> None:
    for command in ("rank", "score"):
        page = tmp_path / f"{command}.html"
        assert main([command, "cat", str(image_folder), "--model", model_folder, "--gallery", str(page)]) == 0
        captured = capsys.readouterr()
        assert captured.err == f"gallery: {page}\n"
        assert page.read_text(encoding="utf-8").index("b.png") < page.read_text(encoding="utf-8").index("c.png")
        assert ".png" in captured.out
    assert main(["rank", "cat", str(image_folder), "--model", model_folder, "--gallery", "/proc/nowhere/page.html"]) == 1
    captured = capsys.readouterr()
    assert "c.png" in captured.out  # the ranking is not lost
    assert main(["rank", "cat", str(image_folder), "--model", model_folder, "--gallery", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"image-reward: {tmp_path} is a folder; give the name of a file\n"


def test_compare(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path) -> None:
    a, b = paths(image_folder, "a", "b")
    found = run_json(capsys, "compare", "cat", a, b, "--model", model_folder)
    assert found["a_better"] + found["tie"] + found["b_better"] == pytest.approx(1)
    assert found["a_better"] == pytest.approx(0.3653, abs=1e-4)
    assert main(["compare", "cat", a, b, "--model", model_folder]) == 0
    assert "36.5 %" in capsys.readouterr().out


def test_exit_codes(capsys: pytest.CaptureFixture[str], model_folder: str, image_folder: Path, tmp_path: Path) -> None:
    a = paths(image_folder, "a")[0]
    assert main(["rank", "cat", a, "--model", model_folder, "--top", "0"]) == 2
    assert "--top must be at least 1" in capsys.readouterr().err
    assert main(["rank", "cat", "--model", model_folder]) == 2
    assert "no images" in capsys.readouterr().err
    assert main(["rank", "cat", a, "missing.png", "--model", model_folder]) == 1
    assert capsys.readouterr().err == "image-reward: no such image: missing.png\n"
    assert main(["rank", "cat", a, "--model", "ImageReward-v1"]) == 1
    assert "Did you mean ImageReward-v1.0?" in capsys.readouterr().err
    assert main(["rank", "cat", a, "--model", model_folder, "--device", "tpu9"]) == 1
    assert "no device is called 'tpu9'" in capsys.readouterr().err
    assert main(["rank", "cat", a, "--model", model_folder, "--batch-size", "0"]) == 1
    assert "--batch-size must be at least 1" in capsys.readouterr().err
    for wrong in (["rank"], ["rang"], ["rank", "cat", a, "--dtype", "int4"], ["models", "convert", "a", "b", "--dtype", "int8"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    (tmp_path / "bad.png").write_text("text")
    assert main(["score", "cat", str(tmp_path / "bad.png"), "--model", model_folder]) == 1
    assert "bad.png is not an image" in capsys.readouterr().err
    assert main(["score", "cat", "two\nlines.png", "--model", model_folder]) == 1
    assert capsys.readouterr().err == "image-reward: no such image: two\\nlines.png\n"


def test_a_long_prompt_is_one_line_on_standard_error(model_folder: str, image_folder: Path) -> None:
    command = [sys.executable, "-m", "image_reward.cli", "score", seeded.LONG_PROMPT, *paths(image_folder, "a", "b", "c"), "--json"]
    done = subprocess.run([*command, "--model", model_folder, "--batch-size", "1"], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("warning: the last 26 of 61 tokens of the prompt")
    assert done.stderr.count("\n") == 1
    assert len(json.loads(done.stdout)["images"]) == 3
    done = subprocess.run([*command, "--model", model_folder, "--long-prompts", "error"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "shorten it" in done.stderr


def test_json_is_valid_in_any_encoding(model_folder: str, image_folder: Path) -> None:
    command = [sys.executable, "-m", "image_reward.cli", "score", "一只猫", *paths(image_folder, "a"), "--json", "--model", model_folder]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert json.loads(subprocess.check_output(command, env=environment))["prompt"] == "一只猫"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"image-reward {__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "rank" in capsys.readouterr().out


def test_models_list_and_path(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import replace

    from image_reward.scorers import MODELS

    spec = MODELS["ImageReward-v1.0"]
    there = replace(spec.files["weights"], size=5, original_cache=str(tmp_path))
    monkeypatch.setitem(MODELS, "ImageReward-v1.0", replace(spec, files={"weights": there}))
    assert main(["models", "list"]) == 0
    assert "ImageReward-v1.0" in capsys.readouterr().out
    assert main(["models", "path", "ImageReward-v1.0"]) == 1
    assert "models download ImageReward-v1.0" in capsys.readouterr().err
    (tmp_path / "ImageReward.pt").write_bytes(b"12345")
    assert main(["models", "path", "ImageReward-v1.0"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "ImageReward.pt")
    assert main(["models", "list", "--json"]) == 0
    assert {row["name"]: row["paths"] for row in json.loads(capsys.readouterr().out)}["ImageReward-v1.0"] == [
        str(tmp_path / "ImageReward.pt")
    ]
    assert main(["models", "path", "something"]) == 2
    assert main(["models", "verify", "ImageReward-v1.0"]) == 1  # five bytes are not the model
    assert "sha256" in capsys.readouterr().err


def test_models_convert_verify_info(capsys: pytest.CaptureFixture[str], model_folder: str, tmp_path: Path) -> None:
    released = tmp_path / "released.pt"
    torch.save(seeded.weights(seeded.TINY, 7), released)
    config = str(Path(model_folder) / "config.json")
    converted = tmp_path / "converted"
    assert main(["models", "convert", str(released), str(converted), "--config", config]) == 0
    assert sorted(path.name for path in converted.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert main(["models", "convert", str(released), str(converted), "--config", config]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["models", "verify", str(converted)]) == 0
    assert "parameters, all finite" in capsys.readouterr().out
    assert main(["models", "verify", str(released)]) == 1
    assert "give its config if it is of another size" in capsys.readouterr().err
    info = run_json(capsys, "models", "info", str(converted))
    assert info["network"]["text_width"] == 48
    assert info["max_tokens"] == 35
    assert info["linear_layers"] == {"plain": 3 * 4 + 2 * 10 + 2}  # so small that no other way is worth it
    assert main(["models", "info", str(converted)]) == 0
    assert "network.vision_width" in capsys.readouterr().out
    half = tmp_path / "half"
    assert main(["models", "convert", str(converted), str(half), "--dtype", "float16"]) == 0
    assert os.path.getsize(half / "model.safetensors") < 0.6 * os.path.getsize(converted / "model.safetensors")  # noqa: PTH202


@dataclass
class Several(SeveralModelOptions):
    """A command that takes several models."""


def test_several_models(model_folder: str) -> None:
    one, other = tyro.cli(Several, args=["--model", model_folder, "--batch-size", "3", "--model", "ImageReward-mini"]).load_all()
    assert (one.name, other.name) == (Path(model_folder).name, "ImageReward-mini")
    assert one.batch_size == other.batch_size == 3
    assert tyro.cli(Several, args=[]).model == ()
