"""Which weights are trained: all, those above a frozen share of the layers, or low-rank updates."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from image_reward.models.blip import ImageRewardNetwork


def freeze(network: ImageRewardNetwork, ratio: float) -> int:
    """Freeze the share of both towers' layers nearest the input, rounded down, as published (0.7: 16 of 24 and 8 of 12).

    With any of a tower's layers its embeddings are frozen too, with all of them its final norm. The two projections are always frozen: no
    reward depends on them. A frozen prefix costs no gradient: autograd records nothing before the first trained weight. Returns the number
    of frozen blocks of the image tower.
    """
    network.freeze_projections()
    towers = network.blip.visual_encoder, network.blip.text_encoder
    for tower, layers in zip(towers, (network.image_layers, network.text_layers), strict=True):
        num_frozen = int(len(layers) * ratio)
        if num_frozen == len(layers):
            tower.requires_grad_(False)
        elif num_frozen:
            for name, parameter in tower.named_parameters():
                if name.startswith(("cls_token", "pos_embed", "patch_embed", "embeddings")):
                    parameter.requires_grad_(False)
            for layer in layers[:num_frozen]:
                layer.requires_grad_(False)
    return int(len(network.image_layers) * ratio)


class LowRank(nn.Module):
    """weight + scale * up @ down (Hu et al. 2021, arXiv 2106.09685); ``up`` starts at zero, so nothing changes before the first step."""

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_low_rank(network: ImageRewardNetwork, rank: int, alpha: float, seed: int) -> None:
    """Freeze both towers and give every linear layer of their attentions a low-rank update. All of the head is trained."""
    generator = torch.Generator().manual_seed(seed)
    network.blip.requires_grad_(False)
    for name, module in list(network.blip.named_modules()):
        if isinstance(module, nn.Linear) and (".att" in name or ".crossattention" in name):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank, alpha, generator))


def merge_low_rank(network: ImageRewardNetwork) -> None:
    """Merge the updates into the weights and remove them."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def plain_weights(network: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Weights on the CPU by their plain names: updates merged, shards gathered (by all processes together)."""
    weights = {}
    with torch.no_grad():
        for name in names:
            tensor = attrgetter(name)(network).detach()
            weights[name] = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
    return weights
