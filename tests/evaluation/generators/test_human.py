from __future__ import annotations

from pathlib import Path

import pytest

from image_reward.evaluation.generators import published_ranking, read_ranking
from image_reward.prompt_sets import Prompt, prompt_set

PROMPTS = [Prompt("p1", "a cat", "animals"), Prompt("p2", "a green car", "things")]


def test_human_rankings(tmp_path: Path) -> None:
    path = tmp_path / "human.json"
    path.write_text('{"a": 7, "b": 9, "c": 7, "d": 1}')
    assert read_ranking(path, ["a", "b", "c"], higher_is_better=True).ranks == {"a": 2, "b": 1, "c": 2}
    assert read_ranking(path, ["a", "b", "d"], higher_is_better=False).ranks == {"a": 2, "b": 3, "d": 1}
    with pytest.raises(ValueError, match="lacks e; it has a, b, c, d"):
        read_ranking(path, ["a", "e"], higher_is_better=True)
    path.write_text('{"a": "first"}')
    with pytest.raises(ValueError, match="should be a JSON object"):
        read_ranking(path, ["a"], higher_is_better=True)


def test_published_wins_are_for_the_paper_s_generators_and_prompts() -> None:
    prompts = prompt_set("ImageReward")
    found = published_ranking(["openjourney", "Stable Diffusion 2.1-base", "DALLE2", "vd", "mine"], prompts[:10])
    assert found is not None
    assert found.values == {"openjourney": 507, "Stable Diffusion 2.1-base": 463, "DALLE2": 390, "vd": 340}
    assert list(found.ranks.values()) == [1, 2, 3, 4]
    assert published_ranking(["openjourney", "sd2-1"], prompts) is None
    assert published_ranking(["openjourney", "sd2-1", "dalle2"], PROMPTS) is None
