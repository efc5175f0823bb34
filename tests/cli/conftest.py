from __future__ import annotations

from pathlib import Path

import pytest

from image_reward.scorers import ImageRewardScorer


@pytest.fixture
def model_folder(scorer: ImageRewardScorer, tmp_path: Path) -> str:
    """A tiny model, saved."""
    scorer.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")
