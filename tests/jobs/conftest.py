from __future__ import annotations

from typing import Any

import pytest
import stubs

from image_reward.jobs import score


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[stubs.InlinePool]:
    """Let jobs run within this process; holds the pools that they used."""
    pools: list[stubs.InlinePool] = []

    def pool(engine: str, work: Any, workers: int | None, *_: object) -> tuple[stubs.InlinePool, bool]:
        assert engine == "local"
        pools.append(stubs.InlinePool(work(0, None), workers or 2))
        return pools[-1], False

    monkeypatch.setattr(score, "_pool", pool)
    return pools
