"""Initial weights: a whole network with random weights, or a new head on pretrained towers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.models.heads import LinearHead


def new_network(config: BlipConfig, seed: int) -> ImageRewardNetwork:
    """A network with random weights, float32 on the CPU; the same seed gives the same weights."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        network = ImageRewardNetwork(config).float()  # whatever PyTorch's defaults are
    for module in network.blip.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _normal(module.weight, math.sqrt(2 / (module.weight[0].numel() + len(module.weight))), generator)  # Glorot & Bengio 2010
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _normal(module.weight, 0.02, generator)  # BERT's; a norm follows, so only the ratio of words to positions matters
    vision = network.blip.visual_encoder
    for block in vision.blocks:  # what is added to the residual stream shrinks with depth (Radford et al. 2019, GPT-2)
        for layer in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
            layer.weight.data.mul_((2 * len(vision.blocks)) ** -0.5)  # type: ignore[union-attr, operator]
    _normal(vision.cls_token, 0.02, generator)
    with torch.no_grad():
        vision.pos_embed[0, 1:] = 0.5 * grid_positions(config.image_size // config.patch_size, config.vision_width)
    new_head(network.mlp, generator)
    return network


def new_head(head: LinearHead, generator: torch.Generator) -> None:
    """Initialize the head to preserve the variance of its features, so that rewards differ and gradients flow from the first step.

    The original draws all five layers with std 1 / 769 whatever their width. Their product is of order 1e-9: the reward is constant, the
    loss log 2, and gradients are too small to change that.
    """
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            _normal(layer.weight, layer.in_features**-0.5, generator)
            nn.init.zeros_(layer.bias)


def grid_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the two coordinates of a grid of patches, [side * side, width], rows first (Chen et al. 2021, MoCo v3).

    A network trained on little data finds "above" and "left of" in these at once, and in random positions hardly ever.
    """
    num_frequencies = width // 4
    made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever PyTorch's defaults are
    # From half a wave over the grid to one in four patches.
    frequencies = math.pi / side * torch.linspace(0.5, side / 2, num_frequencies, **made)
    angles = torch.arange(side, **made)[:, None] * frequencies  # [side, F]
    wave = torch.cat([angles.sin(), angles.cos()], dim=1)
    y = wave[:, None].expand(side, side, -1)
    x = wave[None].expand(side, side, -1)
    positions = torch.zeros(side * side, width, **made)  # a width that is not a multiple of four leaves a few columns empty
    positions[:, : 4 * num_frequencies] = torch.cat([y, x], dim=2).flatten(0, 1)
    return positions


@torch.no_grad()
def whiten_patches(network: ImageRewardNetwork, pixels: Tensor, seed: int, floor: float = 0.5) -> None:
    """Initialize the patch embedding so that every pattern of real patches comes out equally strong, in a random basis.

    Most of what patches differ in is their mean colour; edges, which tell a square from a circle, and grain, which tells a clean image
    from a spoilt one, are tenths and hundredths of it, and a random projection hides them. ``pixels`` [B, 3, S, S] are a sample of
    normalised images; patterns whose variance is far below ``floor`` are damped, so that noise is not blown up.
    """
    projection = network.blip.visual_encoder.patch_embed.proj
    width, patch = projection.out_channels, projection.kernel_size[0]
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)  # [B * T, 3 * patch * patch]
    mean = patches.mean(dim=0)
    variances, patterns = torch.linalg.eigh(torch.cov((patches - mean).T, correction=0))
    kept = min(width, len(variances))
    strongest = (patterns[:, -kept:] * (variances[-kept:].clamp(min=0) + floor).rsqrt()).T  # [kept, 3 * patch * patch]
    square = torch.randn(width, width, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32, device="cpu")
    basis = torch.linalg.qr(square)[0][:, :kept]
    projection.weight.copy_((basis @ strongest).view_as(projection.weight))
    assert projection.bias is not None
    projection.bias.copy_(-(basis @ strongest @ mean))


def _normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.normal_(tensor, std=std, generator=generator)
