from __future__ import annotations

from pathlib import Path

import pytest
import torch

import seeded
from image_reward import CheckpointError
from image_reward.scorers import ImageRewardScorer, load


def test_the_towers_are_cast_and_the_head_is_not(scorer: ImageRewardScorer) -> None:
    image = seeded.images()[0]
    before = scorer.score("cat", image)
    scorer.cast(torch.bfloat16)
    assert {p.dtype for p in scorer.network.blip.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in scorer.network.mlp.parameters()} == {torch.float32}
    assert scorer.score("cat", image) == pytest.approx(before, abs=0.3)
    assert scorer.rewards("cat", torch.rand(1, 3, 64, 64)).dtype == torch.float32


def test_exact_encodes_one_image_at_a_time(scorer: ImageRewardScorer) -> None:
    scorer.set_exact(True)
    sizes: list[int] = []
    scorer.network.blip.visual_encoder.patch_embed.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    rewards = scorer.score("cat", seeded.images()[:3])
    assert sizes == [1, 1, 1]
    scorer.set_exact(False)
    assert scorer.score("cat", seeded.images()[:3]) == pytest.approx(rewards, abs=1e-4)
    assert sizes[3:] == [3]


def test_a_tensor_of_another_network_is_refused() -> None:
    tensors = seeded.weights(seeded.TINY, 7)
    tensors["mlp.layers.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match=r"mlp\.layers\.0\.weight"):
        ImageRewardScorer.from_tensors(tensors, seeded.TINY, "seeded weights")


def test_the_model_card_says_what_is_saved(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"{sum(p.numel() for p in scorer.network.parameters()):,} parameters, float32" in card
    assert load(tmp_path / "saved").score("cat", seeded.images()[0]) == pytest.approx(scorer.score("cat", seeded.images()[0]), abs=1e-5)
