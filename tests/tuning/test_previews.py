from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import tiny_pipelines
import torch

from image_reward.errors import InputError
from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import reward_preview, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2

PROMPTS = ["a cat", "a dog"]
WITH_CALLBACK = sorted(set(tiny_pipelines.PIPELINES) - {"pixart"})


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (3, 4)]


def run(pipe: Any, own: dict[str, Any], steps: int = 4, **others: Any) -> torch.Tensor:
    made = pipe(PROMPTS, num_inference_steps=steps, generator=generators(), output_type="pt", return_dict=False, **own, **others)[0]
    return made[:, 0] if made.ndim == 5 else made


@pytest.mark.parametrize("name", WITH_CALLBACK)
def test_it_scores_the_clean_image_that_a_step_predicts(name: str, scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build(name)
    pipe.set_progress_bar_config(disable=True)
    alone = run(pipe, own)
    with reward_preview(pipe, PROMPTS, scorer, steps={1, 3}, **own) as preview:
        images = run(pipe, own, callback_on_step_end=preview)
    assert torch.equal(images, alone)
    assert sorted(preview.rewards) == sorted(preview.images) == [1, 3]
    for step in (1, 3):
        predicted = sample(pipe, PROMPTS, steps=4, grad_steps=0, seed=3, stop_at=step, **own)
        torch.testing.assert_close(preview.images[step], predicted, atol=1e-5, rtol=0)
        assert preview.rewards[step] == pytest.approx(scorer.score(PROMPTS, list(predicted)), abs=2e-2)  # pixels are rounded to 8 bits
    assert preview.rewards[1] != preview.rewards[3]
    assert "step" not in vars(pipe.scheduler)


def test_the_global_generator_is_not_moved(scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    pipe.set_progress_bar_config(disable=True)

    def make(**others: Any) -> torch.Tensor:
        torch.manual_seed(11)
        return pipe("a cat", num_inference_steps=3, eta=1.0, output_type="pt", **own, **others).images

    alone = make()
    with reward_preview(pipe, "a cat", scorer, steps=[0, 1, 2], **own) as preview:
        assert torch.equal(make(callback_on_step_end=preview), alone)
    assert len(preview.rewards) == 3


def test_one_prompt_serves_several_images(scorer: ImageRewardScorer) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    pipe.set_progress_bar_config(disable=True)
    with reward_preview(pipe, "a cat", scorer, steps=[1], **own) as preview:
        pipe("a cat", num_inference_steps=2, num_images_per_prompt=3, callback_on_step_end=preview, output_type="pt", **own)
    assert len(preview.rewards[1]) == 3
    with reward_preview(pipe, PROMPTS, scorer, steps=[1], **own) as preview, pytest.raises(InputError, match="2 prompts and 3 images"):
        pipe("a cat", num_inference_steps=2, num_images_per_prompt=3, callback_on_step_end=preview, output_type="pt", **own)
    assert "step" not in vars(pipe.scheduler)  # after an error too


def test_arguments_that_make_no_sense(scorer: ImageRewardScorer) -> None:
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    for prompts, steps, others, message in (
        (PROMPTS, [-1], {}, r"steps must be whole numbers from 0, not -1"),
        (PROMPTS, [0.5], {}, "not 0.5"),
        ([], [0], {}, "at least one prompt"),
        (PROMPTS, [0], {"heigth": 8}, "takes no heigth"),
        (PROMPTS, [0], {"generator": None}, "sets generator"),
    ):
        with pytest.raises(InputError, match=message), reward_preview(pipe, prompts, scorer, steps=steps, **others):  # type: ignore[arg-type]
            raise AssertionError("it must not begin")
    pixart, _ = tiny_pipelines.build("pixart")
    with pytest.raises(InputError, match="takes no callback_on_step_end"), reward_preview(pixart, PROMPTS, scorer, steps=[0]):
        raise AssertionError("it must not begin")
    with reward_preview(pipe, PROMPTS, scorer, steps=[0]) as preview:
        pass
    with pytest.raises(InputError, match="within the block"):
        preview(pipe, 0, 999, {})
