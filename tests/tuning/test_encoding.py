from __future__ import annotations

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import tiny_pipelines
import torch

from image_reward.errors import InputError
from image_reward.tuning import sample
from image_reward.tuning.encoding import EncodedPrompts

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_images_are_the_same_without_text_encoders(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    prompts = ["a cat", "a dog"]
    plain = sample(pipe, prompts, steps=2, grad_steps=1, seed=3, **own)
    encoders = {part: getattr(pipe, part) for part in pipe.components if part.startswith("text_encoder")}
    assert EncodedPrompts.possible(pipe)
    encoded = EncodedPrompts(pipe)
    encoded.add(prompts, own)
    assert encoded.can_be_batched(prompts)
    with encoded.instead_of_encoders(free=True):
        assert all(getattr(pipe, part) is None for part in encoders)
        cached = sample(pipe, prompts, steps=2, grad_steps=1, seed=3, **own)
        with pytest.raises(InputError, match="was not encoded before"):
            sample(pipe, "a tree", steps=1, grad_steps=0, seed=3, **own)
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-4)
    assert all(getattr(pipe, part) is encoder for part, encoder in encoders.items())
    assert "encode_prompt" not in vars(pipe)
