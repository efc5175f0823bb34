"""From a feature vector to one number."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Module):
    """Linear layers with dropout after the first three and no activation in between: [B, width] -> [B, 1], float32.

    Without an activation the layers are one affine map, so outside training they are multiplied out, last layer first: that costs as much
    as one row through the layers, and each row is then a single dot product. The head computes in float32 whatever the
    dtype of the features, because a reward is compared with others at a precision that half types do not have.
    """

    dropouts = (0.2, 0.2, 0.1)

    def __init__(self, width: int, hidden_widths: tuple[int, ...] = (1024, 128, 64, 16)) -> None:
        super().__init__()
        widths = (width, *hidden_widths, 1)
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(fan_in, fan_out))
            if i < len(self.dropouts) and i < len(hidden_widths):
                layers.append(nn.Dropout(self.dropouts[i]))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            x = features.float()
            if type(self.layers) is not nn.Sequential or is_changed(self.layers):
                return self.layers(x)
            if not self.training and all(_is_plain(layer) or _is_plain_dropout(layer) for layer in self.layers):
                return F.linear(x, *self.affine())
            for layer in self.layers:
                x = F.linear(x, layer.weight.float(), layer.bias.float()) if _is_plain(layer) else layer(x)
            return x

    def affine(self) -> tuple[Tensor, Tensor]:
        """The single affine map that the layers amount to without dropout: weight [1, width] and bias [1]."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        weight = linears[-1].weight.float()
        bias = linears[-1].bias.float()
        for layer in reversed(linears[:-1]):
            bias = bias + weight @ layer.bias.float()
            weight = weight @ layer.weight.float()
        return weight, bias


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer is its weight and bias and nothing else: programs put other layers into a head, and into a layer's place."""
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward and layer.bias is not None and not is_changed(layer)


def _is_plain_dropout(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Dropout) and not is_changed(layer)


def is_changed(module: nn.Module) -> bool:
    """Whether a program has hooked a module or given it another ``forward``, which only calling the module runs.

    PyTorch has public functions to add hooks and none to ask for them. These are the dictionaries that its own
    ``nn.TransformerEncoder`` looks into before it takes its fast path; nothing else of this package reads them.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in module.__dict__ or any(hooks)  # not ``vars``, which PyTorch 2.6 does not compile
