from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients import HOST
from fastapi.testclient import TestClient

from image_reward.scorers import ImageRewardScorer
from image_reward.serving import Limits, Settings, create_app


@pytest.fixture
def limits() -> Limits:
    """To be overridden."""
    return Limits()


@pytest.fixture
def client(scorer: ImageRewardScorer, limits: Limits) -> Iterator[TestClient]:
    settings = Settings(limits=limits, flow_grpo=True, local_names=("127.0.0.1",))
    with TestClient(create_app([scorer], settings), base_url=HOST) as client:
        yield client
