from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import seeded
from image_reward.scorers import ImageReward, ImageRewardScorer

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _isolated_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the caches of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests run in parallel processes


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """What the original computes on the tiny network: rewards, rankings, blip_itc by seed; pixels; token_ids."""
    return json.loads((DATA / "scores_tiny.json").read_text())


def tiny(kind: type[ImageRewardScorer], seed: int = 7, **options: Any) -> Any:
    return kind.from_tensors(seeded.weights(seeded.TINY, seed), seeded.TINY, "seeded weights", name="tiny", **options)


@pytest.fixture
def scorer() -> ImageRewardScorer:
    return tiny(ImageRewardScorer)


@pytest.fixture
def model() -> ImageReward:
    """The same network under the names of image-reward 1.5."""
    return tiny(ImageReward)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeded images as PNG files: a.png, b.png, c.png."""
    folder = tmp_path_factory.mktemp("images")
    for name, arguments in zip("abc", seeded.IMAGES, strict=False):
        seeded.image(*arguments).save(folder / f"{name}.png")
    return folder
