from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import tiny_pipelines
import torch

from image_reward.tuning import sample
from image_reward.tuning.config import Tuning
from image_reward.tuning.methods import Rollout, draft, images, noise_like, refl, rollout, sparse


def drawn(**settings: Any) -> list[Rollout]:
    return [rollout(Tuning(**settings).resolved(), random.Random(seed)) for seed in range(400)]


def test_refl_draws_one_of_the_last_ten_of_forty_steps() -> None:
    rollouts = drawn(method="refl")
    assert {each.stop_at for each in rollouts} == set(range(30, 40))
    assert all(each.grad_steps == {each.stop_at} and each.steps == 40 and not each.detach_input for each in rollouts)


def test_sparse_prefers_late_steps_and_reaches_all() -> None:
    rollouts = drawn(denoising_steps=8, grad_steps=1)
    counts = Counter(step for each in rollouts for step in each.grad_steps)
    weights = {step: (step + 1) ** 2 / 204 for step in range(8)}
    assert all(abs(counts[step] / 400 - weights[step]) < 0.07 for step in range(8))
    assert {len(each.grad_steps) for each in drawn(denoising_steps=8, grad_steps=3)} == {3}
    assert all(each.detach_input for each in rollouts)


def test_draft_repeats_the_last_step_alone() -> None:
    assert draft(10, 1, repeats=2) == Rollout(10, frozenset({9}), repeats=2)
    assert draft(10, 3, repeats=2) == Rollout(10, frozenset({7, 8, 9}))
    assert refl(4, random.Random(0)).stop_at == 3


@pytest.mark.parametrize("chosen", [refl(4, random.Random(0)), draft(4, 2), draft(4, 1, 3), sparse(4, 2, random.Random(0))])
def test_images_carry_gradients(chosen: Rollout) -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    made = list(images(pipe, chosen, ["a cat", "a dog"], [3, 8], **own))
    assert len(made) == chosen.repeats
    assert all(each.shape == (2, 3, 16, 16) and each.requires_grad for each in made)
    if chosen.repeats > 1:  # other noise, but near the image that they come from
        assert not torch.equal(made[0], made[1])
        plain = sample(pipe, ["a cat", "a dog"], steps=4, grad_steps=0, seed=[3, 8], **own)
        assert (made[0] - plain).abs().mean() < (plain - plain.flip(0)).abs().mean()


def test_noise_of_an_image_is_its_own() -> None:
    latents = torch.zeros(3, 4, 2, 2)
    noise = noise_like(latents, [5, 6, 5])
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1:2], noise_like(latents[:1], [6]))
