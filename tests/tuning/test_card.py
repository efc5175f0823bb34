from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import tiny_pipelines
import tiny_runs
import torch
from PIL import Image

from image_reward.tuning import Tuning, TuningResult, lora
from image_reward.tuning.card import tuning_card
from image_reward.tuning.lora import KOHYA, WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2


def test_the_card_of_a_run(tmp_path: Path) -> None:
    result = tiny_runs.run(tiny_runs.config(tmp_path / "run", kohya=True, watch=("greenness",), least_rise=100.0, model="somebody/tiny"))
    folder = Path(result.model)
    assert {path.name for path in folder.iterdir()} == {"README.md", "curves.png", WEIGHTS, KOHYA}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: somebody/tiny\nlibrary_name: diffusers\n")
    assert result.verdict in card
    assert f"| reward: redness | {result.untuned_reward:.4f} | {result.reward:.4f} |" in card
    assert "| greenness |" in card
    strengths = [line.split("|")[1].strip() for line in card.split("Strengths of the LoRA")[1].splitlines() if re.match(r"\| [01]", line)]
    assert strengths == ["0", "0.25", "0.5", "0.75", "1"]
    assert "lora_rank = 4" in card
    assert "<lora:NAME:0.75>" in card
    assert "transformer_2" not in card
    assert str(tmp_path) not in card.replace(str(tmp_path / "run"), "run")
    with Image.open(folder / "curves.png") as picture:
        picture.verify()


def test_the_lines_that_load_it(tmp_path: Path) -> None:
    result = tiny_runs.run(tiny_runs.config(tmp_path / "run", max_steps=2, evaluate_every=1, auto_stop=False, least_rise=100.0))
    pipe, own = tiny_pipelines.build("stable_diffusion")
    ours, _ = tiny_pipelines.build("stable_diffusion")
    lora.load(ours, result.model)
    card = (Path(result.model) / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].splitlines()[3:]
    exec("\n".join(lines).replace("path/of/this/folder", result.model), {"pipe": pipe})
    arguments = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt", "return_dict": False, **own}
    images = []
    for each in (pipe, ours):
        each.set_progress_bar_config(disable=True)
        with lora.strength(ours, 0.75):
            images.append(each(**arguments, generator=torch.Generator().manual_seed(1))[0])
    assert torch.equal(*images)


def test_the_generator_in_the_package_is_loaded_by_name() -> None:
    result = TuningResult("runs/x/lora", 2, 2, False, "It rose.", 0.0, 1.0, None)
    lines = tuning_card(Tuning(model="shapes-generator"), result, []).split("```python\n")[1].splitlines()[:3]
    assert lines == ["import image_reward.tuning", "", "pipe = image_reward.tuning.load_pipeline('shapes-generator')"]
