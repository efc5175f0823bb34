"""The examples for metrics, trainers and trackers, run as they are; each is skipped without the library that it is for."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import image_reward as ir

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = sorted((EXAMPLES / "shapes").glob("*.png"))
PROMPT = "a large green square above a yellow triangle on a blue background"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An example's module, by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield import_module
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def mini() -> ir.Scorer:
    return ir.load("ImageReward-mini", "cpu")


@pytest.fixture(scope="module")
def rewards(mini: ir.Scorer) -> list[float]:
    return mini.score(PROMPT, list(IMAGES))


def test_torchmetrics(example: Any, rewards: list[float]) -> None:
    pytest.importorskip("torchmetrics")
    metric = example("torchmetrics_reward").MeanReward("ImageReward-mini")
    low = int(np.argmin(rewards))
    assert rewards[low] < 0
    assert metric([IMAGES[low]], [PROMPT]).item() == pytest.approx(rewards[low], abs=1e-5)  # not clamped
    metric.reset()
    for start in range(0, len(IMAGES), 4):
        metric.update(IMAGES[start : start + 4], [PROMPT] * len(IMAGES[start : start + 4]))
    assert metric.compute().item() == pytest.approx(np.mean(rewards), abs=1e-5)
    assert metric.higher_is_better
    assert not metric.is_differentiable


def test_torchmetrics_over_two_processes(rewards: list[float], tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    program = [sys.executable, str(Path(__file__).parent / "sync_metric.py")]
    arguments = [str(tmp_path / "store"), str(EXAMPLES / "shapes"), PROMPT]
    running = [
        subprocess.Popen([*program, str(rank), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        answers = [process.communicate() for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (output, errors) in zip(running, answers, strict=True):
        assert process.returncode == 0, errors
        assert float(output.split()[-1]) == pytest.approx(np.mean(rewards), abs=1e-5)


def test_flow_grpo(example: Any, rewards: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("flow_grpo_reward")
    images = np.stack([np.array(Image.open(path).convert("RGB")) for path in IMAGES])
    prompts, metadata = (PROMPT,) * len(IMAGES), [{}] * len(IMAGES)
    make = module.reward_function
    monkeypatch.setattr(
        module, "reward_function", lambda model, device: make("ImageReward-mini" if model == "ImageReward-v1.0" else "", device)
    )
    scores, info = module.imagereward_score("cpu")(images, prompts, metadata)
    assert scores == pytest.approx(rewards, abs=1e-5)
    details, _ = module.multi_score("cpu", {"ImageReward-mini": 0.5})(images, prompts, metadata, only_strict=True)
    assert details["avg"] == pytest.approx([0.5 * reward for reward in rewards], abs=1e-5)
    assert info == {}


def test_trl(example: Any, rewards: list[float]) -> None:
    reward = example("trl_reward").reward_function("ImageReward-mini")
    conversation = [{"role": "system", "content": "draw"}, {"role": "user", "content": PROMPT}]
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    # The keywords that TRL 1.16 passes besides the columns of the data set.
    others = {"completion_ids": [[1], [2], [3]], "trainer_state": None, "category": ["a", "b", "c"]}
    made = reward(prompts=[PROMPT, conversation, PROMPT], completions=[Image.open(IMAGES[0]), IMAGES[1], None], **others)
    assert made[:2] == pytest.approx(rewards[:2], abs=1e-5)
    assert made[2] is None
    assert reward(prompts=[parts], completions=[IMAGES[0]]) == pytest.approx(rewards[:1], abs=1e-5)
    assert reward(prompts=[PROMPT], completions=[None]) == [None]


def test_datasets(example: Any, rewards: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module = example("datasets_map")
    columns = {"image": [str(path) for path in IMAGES], "prompt": [PROMPT] * len(IMAGES)}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")

    def scored(function: Any) -> Any:
        rows = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
        return rows.map(function, batched=True, batch_size=4)

    add = module.AddRewards("ImageReward-mini")
    first = scored(add)
    assert first["reward"][:] == pytest.approx(rewards, abs=1e-5)
    assert add.scorer is not None
    assert scored(add)._fingerprint == first._fingerprint  # the loaded scorer is no part of it
    assert scored(module.AddRewards("ImageReward-mini"))._fingerprint == first._fingerprint
    assert datasets.fingerprint.Hasher.hash(module.AddRewards("other")) != datasets.fingerprint.Hasher.hash(add)


def test_tensorboard(example: Any, mini: ir.Scorer, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    ranking = mini.rank(PROMPT, [str(path) for path in IMAGES])
    with SummaryWriter(str(tmp_path)) as writer:
        example("log_ranking").log_to_tensorboard(writer, ranking, PROMPT)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("reward/best")[0].value == pytest.approx(max(ranking.rewards))
    assert len(events.Tags()["images"]) == len(IMAGES)


def test_stopping_early(example: Any, mini: ir.Scorer) -> None:
    pytest.importorskip("diffusers")
    import tiny_pipelines
    import torch

    pipe, _ = tiny_pipelines.build("stable_diffusion")
    pipe.set_progress_bar_config(disable=True)
    calls: list[int] = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    arguments = {"num_inference_steps": 6, "guidance_scale": 1.0}
    image, seed, reward, finished = example("stop_early").best_of_promising(pipe, "a red circle", mini, range(5), step=2, **arguments)
    assert 1 <= len(finished) < 5
    assert len(calls) == 6 * len(finished) + 3 * (5 - len(finished)) + 5  # each preview is one call
    whole = pipe("a red circle", generator=torch.Generator().manual_seed(seed), **arguments).images[0]
    assert np.array_equal(np.asarray(whole), np.asarray(image))
    assert reward == mini.score("a red circle", whole)


@pytest.mark.filterwarnings("default")  # the library's own
def test_wandb_offline(example: Any, mini: ir.Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="for want of wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    ranking = mini.rank(PROMPT, [str(path) for path in IMAGES])
    run = wandb.init(mode="offline", project="rewards", dir=str(tmp_path))
    example("log_ranking").log_to_wandb(run, ranking, PROMPT)
    run.finish()
    (table,) = tmp_path.rglob("ranking*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[:2] for row in rows] == [[item.rank, item.reward] for item in ranking]
    assert sum(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "artifacts" / "staging").iterdir()) == len(IMAGES)


@pytest.mark.filterwarnings("default")  # the library's own
def test_mlflow(example: Any, mini: ir.Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="for want of mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    ranking = mini.rank(PROMPT, [str(path) for path in IMAGES])
    with mlflow.start_run() as run:
        example("log_ranking").log_to_mlflow(mlflow, ranking, PROMPT)
    (table,) = tmp_path.rglob("ranking.json")
    values = json.loads(table.read_text())
    assert values["columns"][:2] == ["rank", "reward"]
    assert [row[:2] for row in values["data"]] == [[item.rank, pytest.approx(item.reward)] for item in ranking]
    assert mlflow.get_run(run.info.run_id).data.metrics["reward_best"] == pytest.approx(max(ranking.rewards))
    assert len(list(tmp_path.rglob("rank_*/*.png"))) == len(IMAGES)
