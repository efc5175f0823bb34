from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import seeded
from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.scorers import ImageRewardScorer
from upstream import Original


@pytest.fixture
def network(scorer: ImageRewardScorer) -> ImageRewardNetwork:
    return scorer.network


@pytest.fixture
def pixels(scorer: ImageRewardScorer) -> Tensor:
    return torch.stack([scorer.prepare.transform(image) for image in seeded.images()])


def tokens(scorer: ImageRewardScorer, *prompts: str) -> tuple[Tensor, Tensor]:
    found = scorer.prepare.tokenizer(prompts)
    return found.ids, found.mask


def test_default_sizes_are_the_released_models() -> None:
    with torch.device("meta"):
        state = ImageRewardNetwork(BlipConfig()).state_dict()
    assert len(state) == 624
    assert sum(tensor.numel() for tensor in state.values()) * 4 == pytest.approx(1_786_880_927, rel=2e-4)  # the rest is names


def test_layer_norms_have_the_originals_epsilons(network: ImageRewardNetwork) -> None:
    """Rewards hardly show them: activations here have a variance of about one."""
    for tower, eps in ((network.blip.visual_encoder, 1e-6), (network.blip.text_encoder, 1e-12)):
        assert {module.eps for module in tower.modules() if isinstance(module, torch.nn.LayerNorm)} == {eps}


def test_contrastive_score_equals_the_original(scorer: ImageRewardScorer, original: Original) -> None:
    blip = scorer.network.blip
    short = [i for i, prompt in enumerate(original.prompts) if prompt != seeded.LONG_PROMPT]
    ids, mask = tokens(scorer, *[original.prompts[i] for i in short])
    pixels = torch.stack([scorer.prepare.transform(image) for image in original.images])
    with torch.inference_mode():
        images, texts = blip.project_images(blip.visual_encoder(pixels)), blip.project_prompts(ids, mask)
    np.testing.assert_allclose(texts @ images.T, original.blip_itc[short], rtol=0, atol=1e-5)


def test_padding_does_not_matter(network: ImageRewardNetwork, scorer: ImageRewardScorer, pixels: Tensor) -> None:
    ids, mask = tokens(scorer, "cat")
    padded = torch.nn.functional.pad(ids, (0, 20), value=99)
    with torch.inference_mode():
        plain = network(pixels[:1], ids)
        torch.testing.assert_close(network(pixels[:1], padded, torch.nn.functional.pad(mask, (0, 20))), plain, rtol=0, atol=1e-5)
        assert (network(pixels[:1], padded) - plain).abs() > 1e-3  # without the mask, padding is read as words


def test_one_image_may_meet_many_prompts(network: ImageRewardNetwork, scorer: ImageRewardScorer, pixels: Tensor) -> None:
    ids, mask = tokens(scorer, "cat", "a dog", "two red birds", "sea")
    with torch.inference_mode():
        together = network(pixels[:2], ids, mask)  # image 0 with the first two prompts, image 1 with the others
        apart = torch.cat([network(pixels[i // 2 : i // 2 + 1], ids[i : i + 1], mask[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


def test_the_image_is_encoded_once(network: ImageRewardNetwork, scorer: ImageRewardScorer, pixels: Tensor) -> None:
    seen: list[int] = []
    network.blip.visual_encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    ids, mask = tokens(scorer, *seeded.PROMPTS[:4])
    network(pixels[:1], ids, mask)
    assert seen == [1]


def test_the_original_order_of_operations_gives_the_same_rewards(network: ImageRewardNetwork, pixels: Tensor) -> None:
    with torch.inference_mode():
        fused = network.blip.visual_encoder(pixels)
        network.blip.visual_encoder.original_order = True
        torch.testing.assert_close(network.blip.visual_encoder(pixels), fused, rtol=0, atol=1e-4)


def test_gradients_reach_every_weight_and_checkpointing_does_not_change_them(
    network: ImageRewardNetwork, scorer: ImageRewardScorer, pixels: Tensor
) -> None:
    ids, mask = tokens(scorer, "cat", "a dog")
    unused = {"blip.vision_proj.weight", "blip.vision_proj.bias", "blip.text_proj.weight", "blip.text_proj.bias"}

    def gradients() -> dict[str, Tensor]:
        network.zero_grad()
        network(pixels[:2], ids, mask).sum().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    plain = gradients()
    assert {name for name, _ in network.named_parameters()} - set(plain) == unused
    network.set_gradient_checkpointing()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-5)


def test_compiles_without_graph_breaks(network: ImageRewardNetwork, scorer: ImageRewardScorer, pixels: Tensor) -> None:
    ids, mask = tokens(scorer, "cat", "a dog")
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(pixels[:2], ids, mask), network(pixels[:2], ids, mask))
    assert counter.frame_count == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.004)])
def test_half_types(scorer: ImageRewardScorer, pixels: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    ids, mask = tokens(scorer, "a dog")
    with torch.inference_mode():
        exact = scorer.network(pixels[:1], ids, mask)
        scorer.cast(dtype)
        found = scorer.network(pixels[:1].to(dtype), ids, mask)
    assert found.dtype == torch.float32
    assert scorer.network.mlp.layers[0].weight.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=tolerance)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size \(100\) must be a multiple of patch_size \(16\)"):
        BlipConfig(image_size=100)
    with pytest.raises(ValueError, match=r"text_width \(768\) must be a multiple of text_heads \(7\)"):
        replace(BlipConfig(), text_heads=7)


def test_prompts_that_cannot_be_divided_among_images_are_refused(network: ImageRewardNetwork, pixels: Tensor) -> None:
    with pytest.raises(ValueError, match="3 prompts cannot be divided among 2 images"):
        network(pixels[:2], torch.tensor([[101, 102]] * 3))
