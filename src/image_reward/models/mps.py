"""The cross model of MPS: image tokens look at a prompt's tokens, then at each other, four times (Zhang et al., CVPR 2024).

Names of weights are the published ones. Attention is that of PaLM: several heads of queries, and one of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
_MULTIPLE = 4
"""Of the width, inside of feed-forward layers"""


class CrossModel(nn.Module):
    """What the first image token becomes when image tokens have read a prompt."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList((_Published(CrossAttention(width)), _Published(SelfAttention(width)))) for _ in range(num_layers)
        )

    def forward(self, image: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        """Tokens of I images [I, T, D] and of prompts [I or 1, P, L, D], and which of these are seen [I or 1, P, L] -> [I, P, D].

        What depends on the image alone is computed once for its P prompts, and only the first token of the last layer.
        """
        tokens = image[:, None]
        layers: Any = self.layers
        for number, (cross, own) in enumerate(layers, start=1):
            tokens = tokens + cross.fn(tokens, text, seen)
            read = tokens[..., :1, :] if number == len(layers) else tokens
            tokens = read + own.fn(tokens, read.shape[-2])
        return tokens[..., 0, :]


class _Published(nn.Module):
    """For the published names alone."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn: Any = fn


class CrossAttention(nn.Module):
    """Image tokens look at text tokens; a feed-forward layer is beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        inner = _MULTIPLE * width
        self.ff = nn.Sequential(nn.Linear(width, 2 * inner, bias=False), SwiGLU(), nn.Linear(inner, width, bias=False))

    def forward(self, tokens: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        normed = self.norm(tokens)
        keys, values = self.to_kv(text).chunk(2, dim=-1)
        read = attend(self.to_q(normed), keys, values, seen)
        return self.to_out(read) + self.ff(normed)


class SelfAttention(nn.Module):
    """Image tokens look at each other, their places given by rotary positions; a feed-forward layer is beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widths = (width, HEAD_WIDTH, HEAD_WIDTH, 2 * _MULTIPLE * width)
        self.rotary_emb = RotaryPositions()
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(_MULTIPLE * width, width, bias=False))

    def forward(self, tokens: Tensor, num_read: int) -> Tensor:
        """[I, P, T, D] -> what becomes of the first ``num_read`` of T tokens."""
        normed = self.norm(tokens)
        cosine, sine = self.rotary_emb(tokens.shape[-2])
        if num_read == tokens.shape[-2]:
            queries, keys, values, inner = self.fused_attn_ff_proj(normed).split(self.widths, dim=-1)
        else:
            queries, key_weights, value_weights, inner = self.fused_attn_ff_proj.weight.split(self.widths)
            keys, values = F.linear(normed, key_weights), F.linear(normed, value_weights)
            queries, inner = (F.linear(normed[..., :num_read, :], weights) for weights in (queries, inner))
        turned = _turned(queries.unflatten(-1, (-1, HEAD_WIDTH)), cosine[:num_read, None], sine[:num_read, None]).flatten(-2)
        return self.attn_out(attend(turned, _turned(keys, cosine, sine), values)) + self.ff_out(inner)


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * values


class RotaryPositions(nn.Module):
    """Cosine and sine of each place, [T, HEAD_WIDTH]; the frequencies are those of the checkpoint, and stay in float32."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.empty(HEAD_WIDTH // 2))

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)[:, None] * self.inv_freq.float()
        both = angles.repeat(1, 2)
        return both.cos(), both.sin()


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None) -> Tensor:
    """Queries of all heads [I, 1 or P, T, H * W], one head of keys and values [I or 1, P, L, W], seen [I or 1, P, L] -> [I, P, T, H * W].

    Heads share their keys, so that they are T times as many queries of one head.
    """
    num_images, num_prompts = (max(queries.shape[place], keys.shape[place]) for place in (0, 1))
    each = queries.unflatten(-1, (-1, HEAD_WIDTH)).flatten(2, 3).expand(num_images, num_prompts, -1, -1)
    keys, values = (part.expand(num_images, num_prompts, -1, -1) for part in (keys, values))
    mask = None if seen is None else seen.expand(num_images, num_prompts, -1)[:, :, None].expand(-1, -1, each.shape[2], -1)
    read = F.scaled_dot_product_attention(each, keys, values, mask)
    return read.unflatten(2, (queries.shape[2], -1)).flatten(3)
