"""Linear layers that multiply, where a CPU computes without gradients, in whichever of PyTorch's own ways is fastest on that processor.

``F.linear`` leaves float32 to MKL, which runs AVX2 code on processors that are not Intel's, and half types to oneDNN, whose code for a
processor without instructions for them is slower than float32. Which way is faster depends on processor, build, shape and threads, so it
is measured once for each in a process, for some milliseconds. The environment variable ``IMAGE_REWARD_LINEAR`` takes a way for all.

Weights are not packed: an opaque copy of them would be wrong as soon as a program writes into ``weight.data``, which nothing announces, and
every worker of a job would have its own, where they share the pages of one file now.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from image_reward.errors import InputError
from image_reward.models.heads import is_changed

VARIABLE = "IMAGE_REWARD_LINEAR"
"""Names one of ``WAYS`` for all layers, or "auto", the default. Where that way cannot compute, ``F.linear`` does."""
PLAIN = "plain"

Way = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
"""x [..., in], weight [out, in], bias [out], whether GELU follows -> [..., out]"""


class Linear(nn.Linear):
    """``nn.Linear`` in every respect but speed."""

    plain = False
    """Whether to compute by ``F.linear`` always, which rounds as the original does."""
    gelu_follows = False
    """Whether its output goes through ``gelu``; both may be one operation."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.linear(x, self.weight, self.bias)
        else:  # in this form, so that scripting does not read it
            if torch.compiler.is_compiling() or self.plain:
                return F.linear(x, self.weight, self.bias)
            return _fastest(x, self.weight, self.bias, False)


def gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU(layer(x)), the exact one, in one operation where that is faster; the layer may be any that a program has put there."""
    if torch.compiler.is_compiling() or type(layer) is not Linear or layer.plain or is_changed(layer):
        return F.gelu(layer(x))
    return _fastest(x, layer.weight, layer.bias, True)


def make_fast(network: nn.Module) -> None:
    """Let every ``nn.Linear`` of a network compute as ``Linear``, in place."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def set_plain(network: nn.Module, plain: bool) -> None:
    for module in network.modules():
        if isinstance(module, Linear):
            module.plain = plain


def linear_ways(network: nn.Module) -> dict[str, int]:
    """The ways in which the linear layers of a network compute rewards here -> the number of layers of each."""
    return dict(Counter(_way_of(layer) for layer in network.modules() if isinstance(layer, Linear)))


def _way_of(layer: Linear) -> str:
    x = layer.weight.new_empty(1, layer.in_features)
    with torch.no_grad():
        usable = not layer.plain and _is_usable(x, layer.weight, layer.bias)
    return _choice(layer.weight, layer.bias, layer.gelu_follows)[1] if usable else PLAIN


# --- the ways ------------------------------------------------------------------------------------------------------------------------


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.gelu(y) if gelu else y


def _onednn_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def _float32(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    if x.dtype is torch.float32:  # named by ``VARIABLE``
        return _plain(x, weight, bias, gelu)
    return _fastest(x.float(), weight.float(), None if bias is None else bias.float(), gelu).to(x.dtype)


WAYS: Mapping[str, Way] = {PLAIN: _plain, "onednn": _onednn, "onednn-gelu": _onednn_gelu, "float32": _float32}
"""``F.linear``; oneDNN; oneDNN with GELU in the same operation; half types as float32, in whichever of these is fastest for that."""


# --- the choice ----------------------------------------------------------------------------------------------------------------------


class _Key(NamedTuple):
    dtype: torch.dtype
    out_features: int
    in_features: int
    gelu: bool
    threads: int
    named: str
    """The value of ``VARIABLE``."""


_chosen: dict[_Key, str] = {}  # written in single steps, so that threads need no lock, which a fork could leave locked

_SMALLEST = 1 << 15  # weights; less than that takes no time worth a choice
_ROWS, _WORK = (64, 512), 1 << 25  # rows of a measured product, and its multiplications, which take some milliseconds
_LEAST_SECONDS, _LEAST_ROUNDS = 0.001, 2
_HOPELESS = 2.0  # times what another has taken: not tried again
_MARGIN = 1.1  # by which a way must be faster than those before it, because a choice among equals would be noise, and with it the rounding

# Of this thread, because other programs on the machine are not the ways' fault. Windows counts that in steps of 16 ms.
_clock = time.perf_counter if sys.platform == "win32" else time.thread_time


def check_variable(named: str | None = None) -> None:
    """Raise ``InputError`` unless the value of ``VARIABLE``, by default that of this process, is a way."""
    named = os.environ.get(VARIABLE, "auto") if named is None else named
    if named not in ("auto", *WAYS):
        raise InputError(f"{VARIABLE} must be auto or one of {', '.join(WAYS)}, not {named!r}")


def _fastest(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    if not _is_usable(x, weight, bias):
        return _plain(x, weight, bias, gelu)
    key, name = _choice(weight, bias, gelu)
    if name == PLAIN:
        return _plain(x, weight, bias, gelu)
    try:
        return WAYS[name](x, weight, bias, gelu)
    except Exception:  # whatever an operation that is not public raises
        y = _plain(x, weight, bias, gelu)  # which raises too, if the arguments were at fault
        _chosen[key] = PLAIN
        return y


def _is_usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are dense tensors of one kind on a CPU, and nobody differentiates, traces or transforms what is computed."""
    return (
        not torch.jit.is_tracing()
        and type(x) is Tensor
        and type(weight) in (nn.Parameter, Tensor)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype is weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and (bias is None or (type(bias) in (nn.Parameter, Tensor) and bias.dtype is x.dtype and bias.device.type == "cpu"))
        and x.layout is weight.layout is torch.strided
        and x.is_contiguous()
        and weight.is_contiguous()
        and x.ndim > 1
        and x.shape[-1] == weight.shape[1]
        and x.numel() > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)))
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()  # who counts operations, or records them
    )


def _choice(weight: Tensor, bias: Tensor | None, gelu: bool) -> tuple[_Key, str]:
    out_features, in_features = weight.shape
    key = _Key(weight.dtype, out_features, in_features, gelu, torch.get_num_threads(), os.environ.get(VARIABLE, "auto"))
    if (name := _chosen.get(key)) is None:
        name = _chosen.setdefault(key, _choose(key, weight, bias))
    return key, name


@torch.no_grad()
def _choose(key: _Key, weight: Tensor, bias: Tensor | None) -> str:
    """The fastest of the ways that compute what ``F.linear`` does, or the one that ``VARIABLE`` names, if it does."""
    check_variable(key.named)
    if key.named == "auto" and key.out_features * key.in_features < _SMALLEST:
        return PLAIN
    rows = min(max(_ROWS[0], _WORK // weight.numel()), _ROWS[1])
    x = torch.arange(rows * key.in_features, dtype=torch.float32, device="cpu").sin().view(rows, -1).to(key.dtype)
    expected = _plain(x, weight, bias, key.gelu).float()
    rounding = max(64 * torch.finfo(torch.float32).eps, 2 * torch.finfo(key.dtype).eps) * expected.abs().max()
    ways = [PLAIN]
    for name in _others(key):
        with suppress(Exception):  # the operation is missing, or not made for this processor
            if bool(((WAYS[name](x, weight, bias, key.gelu).float() - expected).abs() <= rounding).all()):
                ways.append(name)
    if key.named != "auto":
        return ways[-1]
    seconds = dict.fromkeys(ways, math.inf)
    start, rounds = _clock(), 0
    while len(ways) > 1 and (rounds < _LEAST_ROUNDS or _clock() - start < _LEAST_SECONDS * len(ways)):
        for name in ways:
            before = _clock()
            WAYS[name](x, weight, bias, key.gelu)
            seconds[name] = min(seconds[name], _clock() - before)
        ways = [name for name in ways if seconds[name] <= _HOPELESS * min(seconds.values())]
        rounds += 1
    best = PLAIN
    for name, taken in seconds.items():
        if taken * _MARGIN < seconds[best]:
            best = name
    return best


def _others(key: _Key) -> list[str]:
    """The way that ``VARIABLE`` names, or all that differ from ``F.linear`` for these tensors."""
    if key.named != "auto":
        return [key.named]
    same = {PLAIN, "" if key.gelu else "onednn-gelu", "float32" if key.dtype is torch.float32 else ""}
    return [name for name in WAYS if name not in same]
