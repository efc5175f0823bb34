from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")

import peft
import tiny_pipelines
import torch

from image_reward.scorers import ImageRewardScorer
from image_reward.tuning import objectives, sample


@pytest.mark.parametrize("sampling", [{"grad_steps": 2}, {"grad_steps": {0, 1}, "detach_input": True}, {"grad_steps": {1}, "stop_at": 1}])
def test_tuning_raises_the_reward(sampling: dict[str, Any], scorer: ImageRewardScorer) -> None:
    torch.manual_seed(0)
    pipe, own = tiny_pipelines.build("stable_diffusion")
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    arguments = {"prompts": ["a cat", "a dog"], "steps": 3, "seed": 0, **own}

    def rewards(**sampling: Any) -> torch.Tensor:
        return scorer.rewards(arguments["prompts"], sample(pipe, **arguments, **sampling))

    untuned = rewards(grad_steps=0).detach()
    optimizer = torch.optim.AdamW([weight for weight in pipe.unet.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(8):
        objectives.hinge(rewards(**sampling), target=float(untuned.max()) + 1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert rewards(grad_steps=0).mean() > untuned.mean()
