from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from image_reward.errors import ImageReadError, InputError
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import multi_reward_function, reward_function

PROMPTS = ("a cat", "a dog", "a cat")  # flow_grpo passes tuples


@pytest.fixture
def bytes_() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)


def test_floats_and_bytes_score_as_the_image_file_would(scorer: ImageRewardScorer, bytes_: np.ndarray) -> None:
    reward = reward_function(scorer)
    expected = scorer.score(list(PROMPTS), list(bytes_))
    assert len(set(expected)) == 3
    floats = torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() / 255
    for images in (bytes_, torch.from_numpy(bytes_), floats, floats.clone().requires_grad_(), floats.numpy()):
        scores, info = reward(images, PROMPTS, {})
        assert scores == pytest.approx(expected, abs=1e-6)
        assert all(isinstance(score, float) for score in scores)
        assert info == {}
    assert reward(floats.bfloat16(), PROMPTS)[0] == pytest.approx(expected, abs=0.5)
    assert reward(floats, PROMPTS, [{} for _ in PROMPTS])[0] == pytest.approx(expected, abs=1e-6)


def test_a_model_may_be_a_folder(scorer: ImageRewardScorer, bytes_: np.ndarray, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    assert reward_function(tmp_path, "cpu")(bytes_, PROMPTS)[0] == pytest.approx(reward_function(scorer)(bytes_, PROMPTS)[0], abs=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 4, 8, 8),
            r"images must be floats \[N, 3, H, W\] in \[0, 1\] or uint8 \[N, H, W, 3\], not Tensor torch.float32 \[2, 4, 8, 8\]",
        ),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), r"not ndarray uint8 \[2, 3, 8, 8\]"),
        (torch.zeros(3, 8, 8), r"not Tensor torch.float32 \[3, 8, 8\]"),
        (np.zeros((2, 8, 8, 3), dtype=np.int64), "values must be uint8, or floats"),
        (torch.full((2, 3, 8, 8), -1.0), "holds values from -1 to -1; floats must be in"),
    ],
)
def test_images_of_other_kinds(scorer: ImageRewardScorer, images: Any, message: str) -> None:
    with pytest.raises(ImageReadError, match=message):
        reward_function(scorer)(images, ["a cat", "a dog"], {})


def test_prompts_that_do_not_match_the_images(scorer: ImageRewardScorer) -> None:
    with pytest.raises(ValueError, match="1 prompts and 2 images"):
        reward_function(scorer)(torch.zeros(2, 3, 8, 8), ["a cat"], {})


def test_several_scorers_at_once(scorer: ImageRewardScorer, bytes_: np.ndarray, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    weights = {str(tmp_path): 2.0, "ImageReward-mini": -0.5}
    own = scorer.score(list(PROMPTS), list(bytes_))
    mini = reward_function("ImageReward-mini", "cpu")(bytes_, PROMPTS)[0]
    rewards = multi_reward_function(weights, "cpu")
    for arguments in ((), ([{}] * 3, None, True)):
        scores, info = rewards(bytes_, PROMPTS, *arguments)
        assert list(scores) == [*weights, "avg"]
        assert scores[str(tmp_path)] == pytest.approx(own, abs=1e-5)
        assert scores["ImageReward-mini"] == pytest.approx(mini, abs=1e-5)
        assert scores["avg"] == pytest.approx([2 * a - 0.5 * b for a, b in zip(own, mini, strict=True)], abs=1e-4)
        assert info == {}
    assert rewards(bytes_, PROMPTS, {}, only_strict=False)[0] == scores
    for wrong in ({}, {"avg": 1.0}):
        with pytest.raises(InputError, match="at least one scorer"):
            multi_reward_function(wrong)
