from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from squares import NETWORK, rewards_of_noise

from image_reward.models.heads import LinearHead
from image_reward.models.initial import grid_positions, new_head, new_network, whiten_patches

WIDE = replace(NETWORK, image_size=32, vision_width=32, vision_layers=1)


def test_a_fresh_head_spreads_rewards_and_the_originals_does_not() -> None:
    features = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
    head = LinearHead(768).eval()
    new_head(head, torch.Generator().manual_seed(0))
    assert 0.3 < head(features).std().item() < 3
    for name, parameter in head.named_parameters():
        torch.nn.init.normal_(parameter, std=1 / 769) if name.endswith("weight") else torch.nn.init.zeros_(parameter)
    assert head(features).std().item() < 1e-5


def test_a_network_from_scratch_follows_from_its_seed_and_tells_images_apart() -> None:
    network = new_network(NETWORK, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), new_network(NETWORK, seed=3).parameters(), strict=True))
    assert float(rewards_of_noise(network).std()) > 0.05
    assert not torch.equal(rewards_of_noise(network), rewards_of_noise(new_network(NETWORK, seed=4)))
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_grid_positions_tell_rows_from_columns() -> None:
    positions = grid_positions(4, 18).view(4, 4, 18)
    assert torch.equal(positions[2, :, :8], positions[2, :1, :8].expand(4, -1))  # the first half says the row
    assert torch.equal(positions[:, 1, 8:16], positions[:1, 1, 8:16].expand(4, -1))
    assert len(torch.unique(positions.flatten(0, 1), dim=0)) == 16


def test_random_weights_do_not_depend_on_the_default_dtype() -> None:
    expected = new_network(NETWORK, seed=3).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        found = new_network(NETWORK, seed=3).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype for name, tensor in found.items())


def test_the_residual_stream_of_a_deep_tower_does_not_grow() -> None:
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shallow, deep = (
            new_network(replace(NETWORK, vision_layers=layers), seed=0).blip.visual_encoder.begin(pixels, layers).std()
            for layers in (2, 32)
        )
    assert deep < 1.5 * shallow


def test_whitened_patches_are_seen_at_the_same_strength() -> None:
    torch.manual_seed(0)
    network = new_network(WIDE, seed=0)
    pixels = torch.randn(400, 3, 1, 1) + torch.randn(400, 3, 32, 32) * 0.3 + 5  # mostly one colour, a little grain
    whiten_patches(network, pixels, seed=0, floor=0.0)
    seen = network.blip.visual_encoder.patch_embed(pixels).flatten(0, 1)
    assert seen.mean(dim=0).abs().max() < 0.01
    # Seen in a random basis, what is kept has unit variance in every direction.
    torch.testing.assert_close(torch.cov(seen.T, correction=0), torch.eye(32), rtol=0, atol=0.01)


@pytest.mark.parametrize("floor", [0.5, 0.0])
def test_patterns_that_are_nearly_absent_are_damped(floor: float) -> None:
    network, draw = new_network(WIDE, seed=0), torch.Generator().manual_seed(0)
    pixels = torch.randn(200, 3, 1, 1, generator=draw).expand(-1, -1, 32, 32) + 1e-3 * torch.randn(200, 3, 32, 32, generator=draw)
    whiten_patches(network, pixels, seed=0, floor=floor)
    with torch.no_grad():
        variances = torch.linalg.eigvalsh(torch.cov(network.blip.visual_encoder.patch_embed(pixels).flatten(0, 1).T, correction=0))
    # Three patterns, the mean colours, are real; the grain has a variance of 1e-6, which stays so under a floor of 0.5.
    assert (variances[-3:] > 0.9).all()
    assert bool((variances[:-3] < 1e-4).all()) == (floor > 0)
