from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import image_reward as ir
from image_reward.comparisons import shapes
from image_reward.errors import InputError, TrainingError
from image_reward.models.blip_config import BlipConfig
from image_reward.training import MaskedLanguageTraining, RewardTraining, pretrain, train

NETWORK = BlipConfig(
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=1,
    vision_heads=2,
    text_width=32,
    text_layers=2,
    text_heads=2,
    text_hidden=64,
    max_positions=24,
    projection_width=8,
    head_widths=(16,),
)


def config(folder: Path, **changes: object) -> MaskedLanguageTraining:
    settings = {"steps": 150, "batch_images": 24, "lr": 5e-3, "warmup_steps": 10, "workers": 0, "own_vocabulary": True}
    return MaskedLanguageTraining(output=str(folder), network=NETWORK, max_tokens=24, **(settings | changes))


def test_masked_words_are_learnt_and_training_goes_on_from_there(tmp_path: Path) -> None:
    world = shapes.comparisons(40, seed=0)
    result = pretrain(config(tmp_path / "words"), world)
    assert result.steps == 150
    assert result.accuracy > 0.45  # the most frequent word alone is a fifth of all
    scorer = ir.load(result.model)
    vocabulary = scorer.prepare.tokenizer.vocabulary
    assert vocabulary is not None
    assert vocabulary[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert {"red", "circle", "large", "background"} <= set(vocabulary)
    assert "elephant" not in vocabulary
    assert scorer.config.network == replace(NETWORK, vocab_size=len(vocabulary))

    start = RewardTraining(
        start=result.model, output=str(tmp_path / "run"), freeze=0.0, max_steps=3, lr=1e-3, workers=0, batch_images=32, dropout=False
    )
    trained = ir.load(train(start, world).model)
    assert trained.prepare.tokenizer.vocabulary == vocabulary
    with pytest.raises(InputError, match="is not empty"):
        pretrain(config(tmp_path / "words"), world)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    world = shapes.comparisons(10, seed=0)
    first, second = (
        ir.load(pretrain(config(tmp_path / name, steps=3, short_share=0.5), world).model).state_dict() for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="try a lower lr"):
        pretrain(config(tmp_path / "words", lr=1e30, warmup_steps=0, clip=1e30, steps=20), shapes.comparisons(6, seed=0))
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize(
    ("wrong", "message"), [({"steps": 0}, "steps must be"), ({"mask_ratio": 0.0}, "mask_ratio"), ({"short_share": 2.0}, "short")]
)
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **wrong)
