from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import seeded
from conftest import tiny
from image_reward.scorers import BlipScorer, Ensemble, ImageRewardScorer, Reference
from image_reward.scorers.identity import identity_of

UNIT = Reference(0.0, 1.0, 9, "nine images")


def ensemble(**options: Any) -> Ensemble:
    blip = BlipScorer.from_tensors(seeded.weights(seeded.TINY, 8), "seeded weights", seeded.TINY.network)
    return Ensemble({"a": tiny(ImageRewardScorer), "b": blip}, references={"a": UNIT, "b": UNIT}, **options)


def test_equal_scorers_are_one() -> None:
    assert identity_of(tiny(ImageRewardScorer)) == identity_of(tiny(ImageRewardScorer))
    assert identity_of(ensemble()) == identity_of(ensemble())


CHANGES = {
    "weights": lambda s: s.network.mlp.layers[-1].bias.data.add_(1e-6),
    "dtype": lambda s: s.cast(torch.bfloat16),
    "config": lambda s: setattr(s, "config", replace(s.config, reward=replace(s.config.reward, mean=0.5))),
    "tokens": lambda s: setattr(s.prepare.tokenizer, "max_tokens", 20),
    "pixels": lambda s: setattr(s.prepare, "transform", replace(s.prepare.transform, fit="pad")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_reward_makes_another(change: str, scorer: ImageRewardScorer) -> None:
    before = identity_of(scorer)
    CHANGES[change](scorer)
    assert identity_of(scorer) != before


@pytest.mark.parametrize(
    "options",
    [{"weights": {"a": 2.0}}, {"penalty": 0.5}, {"reward": "conservative"}, {"references": {"a": UNIT, "b": Reference(0.0, 2.0, 9, "x")}}],
)
def test_an_ensembles_own_settings_count(options: dict[str, Any]) -> None:
    plain = ensemble()
    other = Ensemble(dict(zip("ab", plain.scorers, strict=True)), **{"references": {"a": UNIT, "b": UNIT}} | options)
    assert identity_of(other) != identity_of(plain)


def test_a_device_does_not_count(scorer: ImageRewardScorer) -> None:
    before = identity_of(scorer)
    assert identity_of(scorer.to("cpu").eval().requires_grad_(False)) == before
