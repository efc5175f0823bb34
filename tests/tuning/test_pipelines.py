from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import tiny_pipelines
import torch

from image_reward.errors import InputError
from image_reward.tuning import load_pipeline
from image_reward.tuning.pipelines import PACKAGED, SHAPES_GENERATOR, check_pipeline


def test_a_folder_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, "bfloat16", "cpu")
    assert type(loaded) is type(pipe)
    assert {weight.dtype for part in tiny_pipelines.parts(loaded).values() for weight in part.parameters()} == {torch.bfloat16}


def test_the_generator_of_the_package_needs_no_network() -> None:
    assert PACKAGED[SHAPES_GENERATOR].is_dir()
    check_pipeline(SHAPES_GENERATOR)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://bucket/pipeline", "the pipeline s3://bucket/pipeline is not a folder on this machine or a hub id OWNER/NAME"),
        ("pipeline", "pipeline: no such pipeline; give a folder, a hub id OWNER/NAME, or shapes-generator"),
    ],
)
def test_what_is_not_a_pipeline(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, FileNotFoundError)) as caught:
        load_pipeline(name)
    assert str(caught.value) == message
