"""What is promised of training at full size. Minutes and gigabytes: run by `make test-full`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import squares
import torch

from image_reward.models.blip_config import BlipConfig
from image_reward.models.initial import new_network
from image_reward.training import RewardTraining, train


@pytest.mark.full
def test_from_the_pretraining_layout_the_loss_leaves_log_2_within_20_steps_and_12_gib(tmp_path: Path) -> None:
    """8 comparisons of 4 images, one a step, with the paper's freezing and learning rate."""
    towers = {n.removeprefix("blip."): t for n, t in new_network(BlipConfig(), seed=0).state_dict().items() if n.startswith("blip.")}
    torch.save({"model": towers}, tmp_path / "model_large.pth")
    del towers
    config = RewardTraining(
        output=str(tmp_path / "run"), start=str(tmp_path / "model_large.pth"), epochs=3, max_steps=20, batch_images=4, micro_images=4,
        schedule="constant", dropout=False, workers=0, log_every=1, cpu=True,
    )  # fmt: skip
    comparisons = squares.comparisons(8, sizes=(4,))
    train(config, comparisons, comparisons)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    before, after = (line["loss"] for line in lines if line["kind"] == "validation" and line["step"] in (0, 20))
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "linux" else 1 << 30)
    print(f"loss over the 8 comparisons: {before:.4f} before, {after:.4f} after 20 steps; at most {gib:.1f} GiB")
    assert after < before - 0.05
    assert after < 0.69
    assert gib < 12
