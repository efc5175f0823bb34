from __future__ import annotations

import pytest

from image_reward.scorers.distribution import published_distribution


def test_the_published_rewards_of_imagereward() -> None:
    distribution = published_distribution("ImageReward-v1.0")
    assert distribution is not None
    assert distribution.num_images == 6000
    assert len(distribution.quantiles) == 101
    assert list(distribution.quantiles) == sorted(distribution.quantiles)
    assert distribution.percentile(distribution.quantiles[30]) == pytest.approx(30)
    assert distribution.percentile(-9) == 0
    assert distribution.percentile(9) == 100
    assert distribution.in_words(-9) == "better than none"
    assert distribution.in_words(9) == "better than all"
    assert distribution.in_words(0.0) == "better than 51 %"


def test_no_distribution_is_made_up() -> None:
    assert published_distribution("some other model") is None
    assert published_distribution(None) is None
