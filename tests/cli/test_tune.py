"""`image-reward tune`, as a command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")

import tiny_pipelines
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import judges
import own_process
from image_reward.cli import main
from image_reward.recipes import read_toml
from image_reward.tuning import Tuning

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipelines.build("stable_diffusion")[0].save_pretrained(folder)
    return str(folder)


def options(pipeline: str, folder: Path, **changes: Any) -> list[str]:
    (folder / "prompts.txt").write_text("a cat\na dog\na cow\na hen\na fox\n")
    values = {
        "model": pipeline, "prompts": folder / "prompts.txt", "output": folder / "run", "reward": "ImageReward-mini", "denoising-steps": 2,
        "height": 16, "width": 16, "max-steps": 2, "batch-images": 2, "micro-images": 2, "lora-rank": 2,
        "num-held-out": 2, "images-per-prompt": 1,
    } | changes  # fmt: skip
    return ["tune", "--cpu", *(word for name, value in values.items() for word in (f"--{name}", str(value)))]


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_a_run_and_its_repetition(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(model, tmp_path)) == 0
    first = capsys.readouterr()
    assert first.out.startswith(f"{tmp_path}/run/lora: step 2. The reward ")
    assert first.out.endswith(f"{tmp_path}/run/report.html\n")
    assert "sparse on 3 prompts, 2 images a step, 2 steps on 1 x cpu" in first.err
    assert main(options(model, tmp_path)) == 0
    assert capsys.readouterr().out == first.out
    assert main(options(model, tmp_path, lr=1)) == 1
    assert "holds a run with other settings (lr: 0.0001 there, 1.0 here)" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_a_killed_command_goes_on_to_the_same_bits(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Kept weights are those of an evaluation; step 3 is saved without one.
    settings = {"max-steps": 5, "save-every": 1, "evaluate-every": 2, "log-every": 1, "ema": 0.9}
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (options(model, tmp_path, output=folder, **settings) for folder in folders)
    own_process.killed_at("step 4/5 ", *killed)
    assert torch.load(folders[1] / "state.pt", weights_only=True)["run"]["step"] == 3
    assert not (folders[1] / "result.json").exists()
    for command in (whole, killed):
        assert main(command) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "continued after step 3" in capsys.readouterr().err
    for name in ("state.pt", "untuned.pt"):
        assert own_process.same(*(torch.load(folder / name, weights_only=True) for folder in folders)), name
    assert own_process.same(*(load_file(folder / "lora/pytorch_lora_weights.safetensors") for folder in folders))
    for name in ("log.jsonl", "evaluations/000004.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    verdicts = [json.loads((folder / "result.json").read_text())["verdict"] for folder in folders]
    assert verdicts[0] == verdicts[1]


def test_what_can_be_seen_before_anything_is_loaded(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(code: int, **changes: Any) -> str:
        assert main(options(model, tmp_path, **changes)) == code
        assert not (tmp_path / "run" / "state.pt").exists()
        return capsys.readouterr().err

    assert "no generator: use --model FOLDER_OR_ID" in said(2, model="")
    assert "is not a folder of a diffusers pipeline" in said(1, model=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    assert "is not empty and not the folder of a run" in said(1, output=tmp_path / "other")
    (tmp_path / "empty.txt").touch()
    assert "empty.txt is empty" in said(1, prompts=tmp_path / "empty.txt", output=tmp_path / "a")


def test_a_dry_run_says_what_memory_is_needed(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options(model, tmp_path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "Memory to tune" in printed
    assert "2 steps of 1 micro-batches" in " ".join(printed.split())
    assert not (tmp_path / "run").exists()


def test_a_reward_without_gradients_is_refused_before_anything_is_loaded(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judges.write(tmp_path / "judge")
    members = [{"model": name} for name in ("ImageReward-mini", "judge")]
    (tmp_path / "both.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": 1, "members": members}))

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("image_reward.tuning.loop.TunedGenerator", never)
    refused = "gives no gradients to pixels; choose a scorer that does, or --method best-of, which needs none"
    rewards = {judge: "judge", tmp_path / "both.json": "judge"}
    for reward, name in (rewards | {"UnifiedReward-2.0-Qwen3-VL-8B": "UnifiedReward-2.0-Qwen3-VL-8B"}).items():
        for more in ([], ["--dry-run"]):
            assert main([*options(model, tmp_path, reward=reward), *more]) == 1
            assert f"{name} {refused}" in " ".join(capsys.readouterr().err.split())
            assert not (tmp_path / "run").exists()
            AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*options(model, tmp_path, reward=judge, method="best-of"), "--dry-run"]) == 0


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("tune_*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_configuration(path: Path) -> None:
    config = read_toml(path, Tuning())
    assert config.model
    assert config.prompts
