from __future__ import annotations

from typing import Any

import pytest

from image_reward.models.blip_config import BlipConfig
from image_reward.training import MaskedLanguageTraining, RewardTraining


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be greater than 0, not 0"),
        ({"lr": float("nan")}, "lr must be greater than 0, not nan"),
        ({"lr": float("inf")}, "lr must be greater than 0, not inf"),
        ({"clip": -1.0}, "clip must be at least 0, not -1.0"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"evaluate_every": -2}, "evaluate_every must be at least 1, not -2"),
        ({"freeze": 1.5}, "freeze must be from 0 to 1, not 1.5"),
        ({"validation_share": 1.0}, "validation_share must be from 0 to less than 1, not 1.0"),
        ({"ema": 1.0}, "ema must be from 0 to less than 1, not 1.0"),
        ({"seed": -1}, "seed must be at least 0 and less than 4,294,967,296, not -1"),
        ({"start": "scratch"}, "has nothing worth freezing: set freeze = 0 and lora_rank = 0"),
        ({"start": "scratch", "freeze": 0.0, "lora_rank": 2}, "has nothing worth freezing: set freeze = 0 and lora_rank = 0"),
        ({"lora_rank": 2, "shard": True}, "lora_rank and shard cannot be combined"),
        ({"cache_features": True, "freeze": 0.0}, "cache_features keeps the output of frozen layers, and freeze is 0"),
        ({"cache_features": True, "lora_rank": 2}, "cache_features needs frozen layers, and lora_rank changes every layer"),
        ({"lora_alpha": 8.0}, "lora_alpha is 8.0, and lora_rank is 0, so it would have no effect: leave lora_alpha out, or set lora_rank"),
        ({"lora_rank": 2, "freeze": 0.5}, "freeze is 0.5, and lora_rank freezes .*: leave freeze out, or set lora_rank = 0"),
        ({"tie_lr": 0.1}, "tie_lr is 0.1, and the loss pairwise has no tie .*, or use the loss davidson or rao-kupper"),
        ({"loss": "soft", "tie_lr": 0.1}, "tie_lr is 0.1, and the loss soft has no tie parameter"),
        ({"validation": ("a",), "validation_share": 0.2}, "validation_share is 0.2, and validation names the data"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardTraining(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be greater than 0, not 0"),
        ({"mask_ratio": 0.0}, "mask_ratio must be above 0 and at most 1, not 0.0"),
        ({"short_share": 1.1}, "short_share must be from 0 to 1, not 1.1"),
        ({"workers": -1}, "workers must be at least 0, not -1"),
        ({"seed": 2**32}, "seed must be at least 0 and less than"),
        ({"own_vocabulary": True, "network": BlipConfig(vocab_size=99)}, "vocab_size is 99, and own_vocabulary counts .* leave one"),
    ],
)
def test_settings_of_pretraining_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLanguageTraining(**settings)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    RewardTraining(freeze=1.0, validation_share=0.0, ema=0.0, clip=0.0, warmup_steps=0, seed=2**32 - 1)
    RewardTraining(start="scratch", freeze=0.0)
    RewardTraining(loss="davidson", tie_lr=0.1)
    RewardTraining(lora_rank=2, lora_alpha=8.0, freeze=0.0)
    MaskedLanguageTraining(mask_ratio=1.0, short_share=0.0)


def test_settings_without_effect_on_the_result_are_settings() -> None:
    assert set(RewardTraining.without_effect) <= set(RewardTraining.__dataclass_fields__)
    assert RewardTraining(workers=0, output="elsewhere").difference(RewardTraining()) == []
    assert RewardTraining(lr=0.5).difference(RewardTraining()) == ["lr: 0.5 there, 1e-05 here"]
