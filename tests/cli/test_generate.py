from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import diffusers
import tiny_pipelines
import torch
from PIL import Image

import image_reward
from image_reward.cli import main

SMALL = ("--model", "ImageReward-mini", "--device", "cpu", "--steps", "2", "--height", "16", "--width", "16")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny pipeline, saved."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipelines.build("stable_diffusion")[0].save_pretrained(folder)
    return str(folder)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, without the name of the program; nothing is printed besides, except what libraries log."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("image-reward: ")]
    assert "Traceback" not in printed.err
    return line.removeprefix("image-reward: ")


def test_the_best_images_are_saved(pipeline: str, run_json: Callable[..., Any], tmp_path: Path) -> None:
    """They are those of `best_of`, and carry what makes them again."""
    output = tmp_path / "new" / "folder"
    arguments = ("a red cube", "a größe of blue", "--pipeline", pipeline, "--output", str(output), *SMALL)
    printed = run_json("generate", *arguments, "--best-of", "3", "--keep", "2", "--seed", "40", "--guidance-scale", "3")
    assert (printed["model"], printed["pipeline"], printed["best_of"]) == ("ImageReward-mini", pipeline, 3)
    assert [row["prompt"] for row in printed["prompts"]] == ["a red cube", "a größe of blue"]
    assert [row["seeds"] for row in printed["prompts"]] == [[40, 41, 42], [43, 44, 45]]
    assert sorted(path.name for path in output.iterdir()) == ["00000_1.png", "00000_2.png", "00001_1.png", "00001_2.png"]
    scorer = image_reward.load("ImageReward-mini", device="cpu")
    pipe = diffusers.DiffusionPipeline.from_pretrained(pipeline)
    for row in printed["prompts"]:
        assert [image["reward"] for image in row["images"]] == sorted(row["rewards"], reverse=True)[:2]
        assert [image["rank"] for image in row["images"]] == [1, 2]
        for image in row["images"]:
            assert image["reward"] == row["rewards"][row["seeds"].index(image["seed"])]
            with Image.open(image["image"]) as saved:
                text = saved.text  # type: ignore[attr-defined]
                pixels = np.asarray(saved, dtype=int)
            assert text == {
                "prompt": row["prompt"],
                "seed": str(image["seed"]),
                "reward": str(image["reward"]),
                "model": "ImageReward-mini",
            }
            assert scorer.score(row["prompt"], image["image"]) == pytest.approx(image["reward"], abs=1e-4)
            generator = torch.Generator().manual_seed(image["seed"])
            again = pipe(row["prompt"], generator=generator, num_inference_steps=2, height=16, width=16, guidance_scale=3.0).images[0]
            assert np.abs(np.asarray(again, dtype=int) - pixels).max() <= 1  # of 255: a batch rounds differently


def test_a_table_and_a_gallery_of_a_file_of_prompts(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that `benchmark` reads."""
    (tmp_path / "prompts.jsonl").write_text('{"id": "cube-7", "prompt": "a red cube"}\n{"id": "ball", "prompt": "a <b>ball</b>"}\n')
    output, page = tmp_path / "root" / "tiny", tmp_path / "root" / "tiny" / "page.html"
    arguments = ["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(output), "--pipeline", pipeline, *SMALL]
    assert main(["generate", *arguments, "--best-of", "2", "--images-per-batch", "1", "--gallery", str(page)]) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith(f"gallery: {page}\n")
    rows = [line for line in printed.out.splitlines() if ".png" in line]
    assert [("a red cube" in row, "cube-7_1.png" in row) for row in rows] == [(True, True), (False, False)]
    caption = f"In {output}. Rewards of ImageReward-mini; the mean is that of all 2 images of the prompt."
    assert "".join(caption.split()) in "".join(printed.out.split())  # a long path is broken anywhere
    assert sorted(path.name for path in output.iterdir()) == ["ball_1.png", "cube-7_1.png", "page.html"]
    html = page.read_text(encoding="utf-8")
    assert html.count("<img") == 2
    assert html.index("a red cube") < html.index("a &lt;b&gt;ball")

    page.unlink()
    benchmark = ["benchmark", str(output.parent), "--prompts", str(tmp_path / "prompts.jsonl"), "--model", "ImageReward-mini"]
    assert main([*benchmark, "--resamples", "10", "--json"]) == 0
    assert "tiny" in json.loads(capsys.readouterr().out)["generators"]


def test_nothing_is_overwritten(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "a cat", "a dog", "--pipeline", pipeline, "--output", str(tmp_path), "--model", "no-such-model"]
    (tmp_path / "00001_1.png").write_bytes(b"mine")
    assert main(arguments) == 2
    assert error_of(capsys) == f"{tmp_path}/00001_1.png already exists, and nothing is overwritten; give --output another folder"
    (tmp_path / "00001_1.png").rename(tmp_path / "page.html")
    assert main([*arguments, "--gallery", str(tmp_path / "page.html")]) == 2
    assert error_of(capsys) == f"--gallery {tmp_path}/page.html already exists, and nothing is overwritten; give it another name"
    assert (tmp_path / "page.html").read_bytes() == b"mine"
    assert main([*arguments, "--gallery", str(tmp_path / "page.txt")]) == 2
    assert "give it a name that ends in .html" in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--best-of", "0"], "--best-of must be at least 1, not 0"),
        (["a cat", "--best-of", "2", "--keep", "3"], "--keep must be at least 1 and at most --best-of, 2, not 3"),
        (["a cat", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["a cat", "--guidance-scale", "nan"], "--guidance-scale must be a number of at least 0, not nan"),
        (["a cat", "--seed", "-1"], "--seed must be at least 0"),
        (["a cat", " "], "the prompt is empty"),
        (["cat.png"], "cat.png is the name of a file, not a prompt. Files and published sets of prompts are read by --prompts."),
        ([], "give either prompts, each in quotes, or --prompts"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["generate", "--pipeline", pipeline, "--output", str(tmp_path / "out"), "--model", "no-such-model"]
    assert main([*start, *arguments]) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "None"]}')
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    for name, message in {
        "empty": "is not a folder of a diffusers pipeline, which has a model_index.json",
        "file.safetensors": "is a file; give the folder of a diffusers pipeline",
        "none": "no such pipeline; give a folder, a hub id OWNER/NAME, or shapes-generator",
        "broken": "cannot be loaded: ",
        "unknown": "cannot be loaded: ",
    }.items():
        arguments = ["a cat", "--pipeline", str(tmp_path / name), "--output", str(tmp_path / "out"), *SMALL]
        assert main(["generate", *arguments]) == 1
        line = error_of(capsys)
        assert f"{tmp_path / name}" in line
        assert message in line
    assert list((tmp_path / "out").iterdir()) == []


def test_a_pipeline_without_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
        attention_head_dim=2,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    arguments = ["a cat", "--pipeline", str(tmp_path / "ddpm"), "--output", str(tmp_path / "out"), *SMALL]
    assert main(["generate", *arguments]) == 1
    assert error_of(capsys) == f"{tmp_path}/ddpm is a DDPMPipeline, which takes no prompt; give a text-to-image pipeline"


def test_a_pipeline_that_the_hub_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unknown(name: str, **_: object) -> None:
        raise OSError(f"{name} is not known\nhere")

    monkeypatch.setattr(diffusers.AutoPipelineForText2Image, "from_pretrained", unknown)
    assert main(["generate", "a cat", "--pipeline", "some/pipeline", "--output", str(tmp_path), *SMALL]) == 1
    assert error_of(capsys) == (
        "the pipeline some/pipeline is not a folder here, and cannot be loaded from the hub: some/pipeline is not known"
    )


def test_an_image_of_a_pipeline_for_videos(tmp_path: Path, run_json: Callable[..., Any]) -> None:
    tiny_pipelines.build("wan")[0].save_pretrained(tmp_path / "wan")
    arguments = ("a cat", "--pipeline", str(tmp_path / "wan"), "--output", str(tmp_path), "--best-of", "1", *SMALL)
    (row,) = run_json("generate", *arguments)["prompts"]
    with Image.open(row["images"][0]["image"]) as saved:
        assert saved.size == (16, 16)


def test_the_generator_in_the_package(tmp_path: Path, run_json: Callable[..., Any]) -> None:
    arguments = ("--pipeline", "shapes-generator", "--model", "ImageReward-mini", "--device", "cpu", "--steps", "2", "--best-of", "2")
    (row,) = run_json("generate", "a red circle", "--output", str(tmp_path), *arguments)["prompts"]
    with Image.open(row["images"][0]["image"]) as saved:
        assert saved.size == (64, 64)


def test_what_a_pipeline_refuses(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["generate", "a cat", "--pipeline", pipeline, "--output", str(tmp_path), *SMALL[:-4], "--height", "15", "--width", "16"]) == 1
    )
    assert error_of(capsys).startswith("StableDiffusionPipeline refused the call: `height` and `width` have to be divisible by")


def test_a_place_that_cannot_be_written(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for output, code, message in (
        (str(tmp_path / "file"), 2, f"--output {tmp_path}/file is a file; give the name of a folder"),
        ("/proc/nowhere/out", 1, "/proc/nowhere"),
        ("s3://bucket/out", 1, "is an address as a Path"),
    ):
        assert main(["generate", "a cat", "--pipeline", pipeline, "--output", output, "--model", "no-such-model"]) == code
        assert message in error_of(capsys)
    (tmp_path / "prompts.jsonl").write_text('{"id": "../a", "prompt": "a cat"}')
    arguments = ["--pipeline", pipeline, "--output", str(tmp_path / "out"), "--model", "no-such-model"]
    assert main(["generate", "--prompts", str(tmp_path / "prompts.jsonl"), *arguments]) == 1
    assert "the id '../a' cannot begin the name of a file" in error_of(capsys)


def test_without_diffusers(pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["generate", "a cat", "--pipeline", pipeline, "--output", str(tmp_path)]) == 1
    assert error_of(capsys) == "generating images needs diffusers: pip install 'image-reward[tune]', with Python 3.11 or later"
