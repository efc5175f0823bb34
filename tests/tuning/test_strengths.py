from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")
pytest.importorskip("matplotlib")

import tiny_pipelines
import torch

from image_reward.errors import InputError
from image_reward.reports.document import Grid, Plot
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import lora, sample
from image_reward.tuning.strengths import strength_report, sweep

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture
def tuned() -> Any:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in lora.attach(pipe, 2, 4):
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return pipe, own


def test_the_ends_are_the_untuned_and_the_tuned_generator(tuned: Any, scorer: ImageRewardScorer) -> None:
    pipe, own = tuned
    rows = sweep(pipe, PROMPTS, {"tiny": scorer, "again": scorer}, seeds=(3, 4), steps=2, **own)
    assert [row.strength for row in rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    texts = ["a cat", "a cat", "two dogs", "two dogs"]

    def rewards() -> list[float]:
        with torch.no_grad():
            images = [sample(pipe, text, steps=2, grad_steps=0, seed=3 + row % 2, **own)[0] for row, text in enumerate(texts)]
        return scorer.score(texts, [image.mul(255).round().div(255) for image in images])

    with lora.disabled(pipe):
        assert rows[0].evaluation.rewards == pytest.approx(rewards(), abs=1e-5)
    assert rows[-1].evaluation.rewards == pytest.approx(rewards(), abs=1e-5)
    assert rows[0].evaluation.drifts == (0.0,) * 4
    drifts = [sum(row.evaluation.drifts) for row in rows]
    assert drifts == sorted(drifts)
    assert drifts[-1] > 0
    for row in rows:
        assert row.evaluation.watched == {"again": row.evaluation.rewards}
        assert (len(row.evaluation.margins), len(row.evaluation.distances)) == (4, 2)


def test_the_report_has_a_table_and_a_plot(tuned: Any, scorer: ImageRewardScorer) -> None:
    pipe, own = tuned
    rows = sweep(pipe, PROMPTS, {"tiny": scorer, "again": scorer}, (0.0, 1.0), seeds=(1,), steps=1, **own)
    report = strength_report(rows)
    table, plot = report.blocks
    assert isinstance(table, Grid)
    assert isinstance(plot, Plot)
    assert [column.title for column in table.columns] == ["strength", "reward", "prompt margin", "drift", "again"]
    assert [row[0] for row in table.rows] == ["0", "1"]
    values = json.loads(json.dumps(report.data))["strengths"]
    assert values[1]["reward"] == pytest.approx(sum(rows[1].evaluation.rewards) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a cat"]}, "at least 2 prompts, and got 1"),
        ({"scorers": {}}, "at least 1 scorer, and got 0"),
        ({"seeds": ()}, "at least 1 seed, and got 0"),
        ({"strengths": ()}, "at least 1 strength, and got 0"),
    ],
)
def test_sweeps_that_make_no_sense(arguments: dict[str, Any], message: str, tuned: Any, scorer: ImageRewardScorer) -> None:
    with pytest.raises(InputError, match=message):
        sweep(tuned[0], **{"prompts": PROMPTS, "scorers": {"tiny": scorer}, **arguments})


def test_a_pipeline_without_a_lora(scorer: ImageRewardScorer) -> None:
    with pytest.raises(InputError, match="has no LoRA of this package"):
        sweep(tiny_pipelines.build("stable_diffusion")[0], PROMPTS, {"tiny": scorer}, steps=1)
