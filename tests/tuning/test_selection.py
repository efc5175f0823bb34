from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import tiny_pipelines
import torch
from PIL import Image

import image_reward
from image_reward import comparisons
from image_reward.errors import InputError, PromptError
from image_reward.scorers import ImageRewardScorer, Scorer
from image_reward.tuning import best_of, preference_pairs

ARGUMENTS = {"height": 16, "width": 16, "num_inference_steps": 2}


@pytest.fixture
def pipe() -> Any:
    pipe = tiny_pipelines.build("stable_diffusion")[0]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


class Rows(list[float]):
    """A batch that holds the rewards themselves."""

    def to(self, device: object) -> Rows:  # noqa: ARG002
        return self

    def select(self, rows: list[int]) -> Rows:
        return Rows(self[row] for row in rows)


class Brightness(Scorer[Any]):
    """Mean brightness in [0, 1]: a scorer that has no gradients and reads no prompt."""

    name, reads_prompt = "brightness", False

    def __init__(self) -> None:
        super().__init__()
        self.prepare = lambda _, images: Rows(float(np.asarray(image.convert("L")).mean()) / 255 for image in images)

    def forward(self, batch: Rows) -> torch.Tensor:
        return torch.tensor(batch)


def test_the_best_image_and_its_seed(pipe: Any, scorer: ImageRewardScorer) -> None:
    best = best_of(pipe, "a cat", 5, scorer, seed=40, batch_size=2, **ARGUMENTS)
    assert best.prompt == "a cat"
    assert best.seeds == [40, 41, 42, 43, 44]
    assert best.rewards == pytest.approx(scorer.score("a cat", best.images), abs=1e-5)
    assert best.reward == max(best.rewards)
    assert best.image is best.images[best.rewards.index(best.reward)]
    again = pipe("a cat", generator=torch.Generator().manual_seed(best.seed), **ARGUMENTS).images[0]
    assert difference(best.image, again) <= 1  # of 255: a batch rounds differently
    assert len(set(best.rewards)) == 5


def test_images_do_not_depend_on_the_batch_size(pipe: Any) -> None:
    one, three, four = (best_of(pipe, "a cat", 4, Brightness(), batch_size=size, **ARGUMENTS) for size in (1, 3, 4))
    for a, b, c in zip(one.images, three.images, four.images, strict=True):
        assert max(difference(a, b), difference(a, c)) <= 1
    assert one.seeds == three.seeds == four.seeds == [0, 1, 2, 3]
    brightness = [np.asarray(image.convert("L")).mean() for image in one.images]
    assert one.index == int(np.argmax(brightness))


def test_a_model_may_be_a_folder(pipe: Any, scorer: ImageRewardScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    best = image_reward.best_of(pipe, "a cat", 2, str(tmp_path), **ARGUMENTS)
    assert best.rewards == pytest.approx(best_of(pipe, "a cat", 2, scorer, **ARGUMENTS).rewards, abs=1e-5)


def test_any_pipeline_makes_images() -> None:
    for name in ("flux", "wan"):
        pipe, own = tiny_pipelines.build(name)
        pipe.set_progress_bar_config(disable=True)
        best = best_of(pipe, "a cat", 2, Brightness(), num_inference_steps=1, **own)
        assert [image.size for image in best.images] == [(16, 16)] * 2
    with pytest.raises(InputError, match="WanPipeline made videos of 2 frames; ask for an image by num_frames=1"):
        best_of(pipe, "a cat", 2, Brightness(), num_inference_steps=1, **own | {"num_frames": 5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"height": 15}, "StableDiffusionPipeline refused the call: .*divisible by"),
        ({"generator": None}, "best_of.. sets generator of the pipeline itself"),
        ({"num_images_per_prompt": 3}, "best_of.. sets num_images_per_prompt of the pipeline itself"),
    ],
)
def test_arguments_that_make_no_sense(pipe: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        best_of(pipe, "a cat", **{"n": 2, "model": Brightness(), **ARGUMENTS, **arguments})
    with pytest.raises(PromptError, match="a prompt is a string, not list"):
        best_of(pipe, ["a cat"], 2, Brightness())  # type: ignore[arg-type]


def test_pairs_are_comparisons_that_can_be_saved_and_read(pipe: Any, scorer: ImageRewardScorer, tmp_path: Path) -> None:
    prompts = ["a cat", "two dogs"]
    pairs = preference_pairs(pipe, prompts, 3, scorer, folder=tmp_path / "images", seed=10, **ARGUMENTS)
    comparisons.write(pairs, tmp_path / "pairs.jsonl")
    read = list(comparisons.read(tmp_path / "pairs.jsonl"))
    assert [(pair.prompt, pair.ranks, pair.id, pair.source) for pair in read] == [
        ("a cat", (1, 2), "0", "tiny"),
        ("two dogs", (1, 2), "1", "tiny"),
    ]
    for row, pair in enumerate(read):
        best = best_of(pipe, prompts[row], 3, scorer, seed=10 + 3 * row, **ARGUMENTS)
        winner, loser = scorer.score(pair.prompt, list(pair.images))
        assert (winner, loser) == pytest.approx((max(best.rewards), min(best.rewards)), abs=1e-5)
        assert Path(pair.images[0]).name == f"{row}-{best.seed}.png"


def test_pairs_in_memory(pipe: Any) -> None:
    (pair,) = preference_pairs(pipe, ["a cat"], 3, Brightness(), **ARGUMENTS)
    best = best_of(pipe, "a cat", 3, Brightness(), **ARGUMENTS)
    assert difference(pair.images[0], best.image) == 0
    assert difference(pair.images[1], best.images[int(np.argmin(best.rewards))]) == 0


class Indifferent(Brightness):
    name = "indifferent"

    def forward(self, batch: Rows) -> torch.Tensor:
        return torch.zeros(len(batch))


def test_equal_rewards_give_no_pair(pipe: Any) -> None:
    assert preference_pairs(pipe, ["a cat", "a dog"], 2, Indifferent(), **ARGUMENTS) == []
    assert best_of(pipe, "a cat", 2, Indifferent(), **ARGUMENTS).index == 0


def test_pairs_that_make_no_sense(pipe: Any) -> None:
    with pytest.raises(InputError, match="a pair needs n of at least 2 images, not 1"):
        preference_pairs(pipe, ["a cat"], 1, Brightness())
    with pytest.raises(PromptError, match="prompts are a list of strings"):
        preference_pairs(pipe, "a cat", 2, Brightness())
