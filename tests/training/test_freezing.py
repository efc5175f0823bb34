"""Which weights are trained."""

from __future__ import annotations

import squares
import torch

from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.models.initial import new_network
from image_reward.training.freezing import add_low_rank, freeze, merge_low_rank, plain_weights


def test_freezing_is_the_published_one_at_full_size() -> None:
    with torch.device("meta"):
        network = ImageRewardNetwork(BlipConfig())
    assert freeze(network, 0.7) == 16
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    layers = {name.split(".")[3] for name in learning if ".blocks." in name}, {name.split(".")[4] for name in learning if ".layer." in name}
    assert layers == ({str(i) for i in range(16, 24)}, {str(i) for i in range(8, 12)})
    others = {name for name in learning if ".blocks." not in name and ".layer." not in name and not name.startswith("mlp.")}
    assert others == {"blip.visual_encoder.norm.weight", "blip.visual_encoder.norm.bias"}
    assert sum(name.startswith("mlp.") for name in learning) == 10


def test_freezing_nothing_and_everything() -> None:
    network = new_network(squares.NETWORK, 0)
    assert freeze(network, 0.0) == 0
    assert {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad} == {"vision_proj", "text_proj"}
    assert freeze(network, 1.0) == 3
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"mlp"}


def test_low_rank_updates_start_at_nothing_and_merge_into_the_weights() -> None:
    network = new_network(squares.NETWORK, 0)
    names, before = list(network.state_dict()), squares.rewards_of_noise(network)
    add_low_rank(network, rank=2, alpha=4.0, seed=0)
    assert torch.allclose(squares.rewards_of_noise(network), before, atol=1e-5)
    learning = [name for name, p in network.named_parameters() if p.requires_grad and not name.startswith("mlp.")]
    assert len(learning) == 2 * (3 * 2 + 2 * 2 * 4)  # down and up, of two layers in each block and of two times four in each text layer
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    changed, weights = squares.rewards_of_noise(network), plain_weights(network, names)
    assert not torch.allclose(changed, before)
    merge_low_rank(network)
    assert torch.allclose(squares.rewards_of_noise(network), changed, atol=1e-5)
    assert set(network.state_dict()) == set(names)
    other = new_network(squares.NETWORK, 1)
    other.load_state_dict(weights)
    assert torch.allclose(squares.rewards_of_noise(other), changed, atol=1e-5)
