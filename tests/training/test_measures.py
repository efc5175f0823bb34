"""What a run measures of itself, against the same by hand."""

from __future__ import annotations

import itertools
import statistics

import pytest
import squares
import torch

from image_reward.images import ImageTransform
from image_reward.prompts import PromptTokenizer
from image_reward.scorers import TwoTowerProcessor
from image_reward.training.data import TrainingSteps
from image_reward.training.measures import Measures


def test_sums_over_micro_batches_give_what_all_images_together_give() -> None:
    comparisons = squares.comparisons(6, ties=True)
    steps = TrainingSteps(comparisons, TwoTowerProcessor(ImageTransform(16), PromptTokenizer()), "davidson", micro_images=64)
    rewards = [torch.randn(len(c.images), generator=torch.Generator().manual_seed(i)) for i, c in enumerate(comparisons)]
    parts = ([0, 1], [2], [3, 4, 5])
    measures = Measures()
    for part in parts:
        micro = steps.micro_batch(part)
        measures += Measures.of(torch.cat([rewards[i] for i in part]), torch.tensor(2.0 * micro.num_terms), micro)
    pairs = [
        (float(r[i]), float(r[j]))
        for c, r in zip(comparisons, rewards, strict=True)
        for i, j in itertools.permutations(range(len(c.images)), 2)
        if c.ranks[i] < c.ranks[j]
    ]
    assert measures.loss == pytest.approx(2.0)
    assert measures.accuracy == pytest.approx(sum(better > worse for better, worse in pairs) / len(pairs))
    squared = sum(statistics.variance(r.tolist()) * (len(r) - 1) for r in rewards)
    assert measures.std == pytest.approx((squared / sum(len(r) - 1 for r in rewards)) ** 0.5)
    everything = torch.cat(rewards).tolist()
    assert measures.mean_and_std() == pytest.approx((statistics.mean(everything), statistics.pstdev(everything)))
    assert measures.as_dict() == {"loss": measures.loss, "accuracy": measures.accuracy, "std": measures.std}


def test_nothing_measured_is_none() -> None:
    assert Measures().as_dict() == {"loss": None, "accuracy": None, "std": None}
