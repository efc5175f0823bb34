"""A run's folder: the configuration, the state to go on from, the best model, the log and what it looks like."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from image_reward.checkpoints import save_checkpoint
from image_reward.config import ScorerConfig
from image_reward.errors import TrainingError
from image_reward.files import remove_unfinished, written_whole
from image_reward.training.config import RewardTraining, read_toml

CONFIG, STATE, LOG, RESULT, MODEL = "config.toml", "state.pt", "log.jsonl", "result.json", "model"


class RunFolder:
    """Every file but the log appears whole or not at all, so that a kill or a full disk leaves the last good one."""

    def __init__(self, path: Path, config: RewardTraining) -> None:
        """Raises ``ValueError`` when the folder belongs to a run of another configuration, or is no run's."""
        self.path = path
        if (path / CONFIG).exists():
            if changes := read_toml(path / CONFIG, RewardTraining()).difference(config):
                raise ValueError(
                    f"{path} holds a run of another configuration ({'; '.join(changes)}); give another output, "
                    "or the same configuration to go on with that run"
                )
            return
        remove_unfinished(path)
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty and not the folder of a run ({CONFIG} is missing); give another output")
        path.mkdir(parents=True, exist_ok=True)
        self._write(CONFIG, config.to_toml())

    # --- the state ---

    def save_state(self, state: Mapping[str, Any]) -> None:
        try:
            with written_whole(self.path / STATE) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
            raise self._not_saved(error) from error

    def load_state(self) -> dict[str, Any] | None:
        path = self.path / STATE
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def save_model(self, weights: Mapping[str, torch.Tensor], config: ScorerConfig, card: str) -> None:
        try:
            save_checkpoint(self.path / MODEL, weights, config, card)
        except Exception as error:  # safetensors' errors and OSError share no base class
            raise self._not_saved(error) from error

    def _not_saved(self, error: Exception) -> TrainingError:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "write" in str(error).lower()
        state = self.load_state()
        kept = f"the state of step {state['step']} is whole" if state else "no state was saved before"
        return TrainingError(
            f"saving to {self.path} failed{': the disk may be full' if full else ''} ({error}); {kept}. "
            "Free space and give the same command again to go on from there"
        )

    def _write(self, name: str, text: str) -> None:
        with written_whole(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    # --- the log ---

    def log(self, values: Mapping[str, Any]) -> None:
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def history(self) -> list[dict[str, Any]]:
        path = self.path / LOG
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")] if path.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop the lines that a killed run wrote after its last saved state: they are about to be written again."""
        if (self.path / LOG).exists():
            self._write(LOG, "".join(json.dumps(line) + "\n" for line in self.history() if line["step"] <= step))

    # --- the result ---

    def result(self) -> dict[str, Any] | None:
        path = self.path / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_result(self, result: Mapping[str, Any]) -> None:
        self._write(RESULT, json.dumps(result, indent=2) + "\n")

    def draw_curves(self) -> Path | None:
        """Loss and pairwise accuracy against steps as ``curves.png``; None without matplotlib."""
        try:
            import matplotlib
        except ImportError:
            return None
        with matplotlib.rc_context(fname=str(files("image_reward").joinpath("assets/image_reward.mplstyle"))):
            return self._draw_curves()

    def _draw_curves(self) -> Path:
        from matplotlib.figure import Figure

        history = self.history()
        figure = Figure(figsize=(10, 4))
        for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for kind, style in (("train", {"alpha": 0.4}), ("validation", {"marker": "o"})):
                points = [(line["step"], line[key]) for line in history if line["kind"] == kind and line.get(key) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), label=kind, **style)
            axes.set(xlabel="step", ylabel={"loss": "loss", "accuracy": "pairwise accuracy"}[key])
            axes.legend()
        with written_whole(self.path / "curves.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return self.path / "curves.png"


def training_card(config: RewardTraining, result: Mapping[str, Any]) -> str:
    """What the model card says of the training: data, recipe and results."""
    shared = result["num_shared_prompts"]
    rows = {
        "data": ", ".join(config.data) or "given by a program",
        "learnt from": f"{result['num_comparisons']:,} comparisons of {result['num_images']:,} images",
        "validation": f"{result['num_validation']:,} comparisons" + (f"; {shared:,} of their prompts were learnt too" if shared else ""),
        "start": config.start,
        "loss": config.loss,
        "steps": f"{result['best_step']:,} of {result['steps']:,}, each of up to {config.batch_images} images",
        "pairwise accuracy": _percent(result["accuracy"]) + " on validation, a scorer's tie counted as wrong",
        "pairwise accuracy, training data": _percent(result["training_accuracy"]),
        "scale": "reward 0 and 1 are the mean and one standard deviation above it, over the training images",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if not value.startswith("unknown"))
    recipe = "\n".join(f"{name} = {value!r}" for name, value in asdict(config).items() if name not in ("network", "output"))
    return f"\n## Training\n\n| | |\n|---|---|\n{table}\n\n```text\n{recipe}\n```\n"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
