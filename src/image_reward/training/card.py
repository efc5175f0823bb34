"""How a trained model documents its training: a section of its model card, and its learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from image_reward.files import written_whole
from image_reward.reports.numbers import counted
from image_reward.reports.plots import figure, style
from image_reward.runs import RunFolder
from image_reward.training.config import FEW_PAIRS, RewardTraining


def training_card(config: RewardTraining, result: Mapping[str, Any]) -> str:
    """The section of the model card on the training: data, results and recipe."""
    shared, pairs = result["num_shared_prompts"], result["num_validation_pairs"]
    rows = {
        "data": ", ".join(config.data) or "passed by a program",
        "trained on": f"{counted(result['num_comparisons'], 'comparison')} of {counted(result['num_images'], 'image')}",
        "validation": f"{result['num_validation']:,} comparisons, {pairs:,} ordered pairs"
        + (", too few to tell steps apart" if 0 < pairs < FEW_PAIRS else "")
        + (f"; {shared:,} of their prompts are training prompts too" if shared else ""),
        "start": config.start,
        "loss": config.loss,
        "steps": f"{result['best_step']:,} of {result['steps']:,}, each of up to {config.batch_images} images",
        "pairwise accuracy": _percent(result["accuracy"]) + " on validation, a scorer's tie counted as wrong",
        "pairwise accuracy, training data": _percent(result["training_accuracy"]),
        "scale": "rewards of the training images have mean 0 and standard deviation 1",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if not value.startswith("unknown"))
    recipe = "\n".join(f"{name} = {value!r}" for name, value in asdict(config).items() if name not in ("network", "output"))
    return f"\n## Training\n\n| | |\n|---|---|\n{table}\n\n```text\n{recipe}\n```\n"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"


def draw_curves(folder: RunFolder) -> Path | None:
    """Loss and pairwise accuracy against steps as ``curves.png``; None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    history = folder.history()
    drawn = figure(10, 4)
    with style():
        for axes, key in zip(drawn.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for kind, look in (("train", {"alpha": 0.4}), ("validation", {"marker": "o"})):
                points = [(line["step"], line[key]) for line in history if line["kind"] == kind and line.get(key) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), label=kind, **look)
            axes.set(xlabel="step", ylabel={"loss": "loss", "accuracy": "pairwise accuracy"}[key])
            if axes.get_lines():
                axes.legend()
        with written_whole(folder.path / "curves.png") as temporary:
            drawn.savefig(temporary, format="png", dpi=120)
    return folder.path / "curves.png"
