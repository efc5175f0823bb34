from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from image_reward.types import Preference, RankedImage, Ranking


def test_a_ranking_is_a_sequence_from_best_to_worst() -> None:
    ranking = Ranking.from_rewards([0.5, 2.0, 0.5, -1.0], ["a.png", Path("b.png"), "c.png", "d.png"])
    assert [item.rank for item in ranking] == [1, 2, 3, 4]
    assert [item.image for item in ranking] == [Path("b.png"), "a.png", "c.png", "d.png"]
    assert len(ranking) == 4
    assert ranking[0] == RankedImage(1, 2.0, Path("b.png"), 1)
    assert ranking[-1] == RankedImage(4, -1.0, "d.png", 3)
    assert ranking[1:3] == [RankedImage(2, 0.5, "a.png", 0), RankedImage(3, 0.5, "c.png", 2)]
    assert ranking.paths == ["b.png", "a.png", "c.png", "d.png"]
    assert pickle.loads(pickle.dumps(ranking)) == ranking
    with pytest.raises(IndexError):
        ranking[4]


def test_top_k() -> None:
    ranking = Ranking.from_rewards([0.5, 2.0, -1.0])
    assert [item.index for item in ranking.top_k(2)] == [1, 0]
    assert len(ranking.top_k(9)) == 3
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        ranking.top_k(0)


def test_images_that_are_not_paths_have_none() -> None:
    picture = Image.new("RGB", (2, 2))
    ranking = Ranking.from_rewards([0.0, 1.0], [picture, b"bytes"])
    assert ranking.paths == [None, None]
    assert ranking[1].image is picture
    assert Ranking.from_rewards([0.0]).paths == [None]
    with pytest.raises(ValueError, match="1 images and 2 rewards"):
        Ranking.from_rewards([0.0, 1.0], ["a.png"])


def test_json_holds_ranks_and_rewards_alone() -> None:
    assert Ranking.from_rewards([0.0, 1.0], ["a.png", "b.png"]).as_dict() == {"ranking": [2, 1], "rewards": [0.0, 1.0]}


def test_json_of_a_preference_has_no_images() -> None:
    preference = Preference(0.5, 0.25, 0.25, (1.0, 0.5), ("a.png", b"bytes"))
    assert preference.as_dict() == {"a_better": 0.5, "tie": 0.25, "b_better": 0.25, "rewards": (1.0, 0.5)}
    assert preference == Preference(0.5, 0.25, 0.25, (1.0, 0.5))
