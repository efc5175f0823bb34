"""Linear layers that multiply, on a CPU, in whichever of PyTorch's own ways is fastest on that processor.

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
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from image_reward.errors import InputError
from image_reward.models.heads import is_changed

VARIABLE = "IMAGE_REWARD_LINEAR"
"""Names one of ``WAYS`` for all layers, or "auto", the default. Where that way cannot compute, ``F.linear`` does."""
PLAIN = "plain"

# PyTorch before 2.4, which Stable Diffusion WebUI pins, does not say what a choice depends on: there ``F.linear`` computes always.
_has_no_choice = torch.compiler.is_compiling if hasattr(torch.amp, "is_autocast_available") else lambda: True

Way = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
"""x [..., in], weight [out, in], bias [out], whether GELU follows -> [..., out]"""


class Linear(nn.Linear):
    """``nn.Linear`` in every respect but speed."""

    plain = False
    """Whether to compute by ``F.linear`` always, which rounds as the original does."""
    gelu_follows = False
    """Whether its output goes through ``gelu``; both may be one operation."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # where drawing values draws none, and takes a while
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.linear(x, self.weight, self.bias)
        else:  # in this form, so that scripting does not read it
            if _has_no_choice() or self.plain:
                return F.linear(x, self.weight, self.bias)
            return _fastest(x, self.weight, self.bias, False)


def gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU(layer(x)), the exact one, in one operation where that is faster; the layer may be any that a program has put there."""
    if _has_no_choice() or type(layer) is not Linear or layer.plain or is_changed(layer):
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
    usable = not layer.plain and _is_usable(x, layer.weight, layer.bias)
    return _choice(layer.weight, layer.bias, layer.gelu_follows)[1] if usable else PLAIN


# --- the ways ------------------------------------------------------------------------------------------------------------------------


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """What every way computes, and what is computed where none may be chosen."""
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


# GELU in place saves a tenth of the image tower's time: memory for its result comes fresh from the system every time, page by page.


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return torch.ops.aten.gelu_(y) if gelu else y


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.aten.gelu_(y) if gelu else y


def _onednn_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def _float32(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    if x.dtype is torch.float32:  # named by ``VARIABLE``
        return _plain(x, weight, bias, gelu)
    return _fastest(x.float(), weight.float(), None if bias is None else bias.float(), gelu).to(x.dtype)


WAYS: Mapping[str, Way] = {PLAIN: _plain, "onednn": _onednn, "onednn-gelu": _onednn_gelu, "float32": _float32}
"""``F.linear``; oneDNN; oneDNN with GELU in the same operation; half types as float32, in whichever of these is fastest for that."""


# --- gradients -------------------------------------------------------------------------------------------------------------------------


class _Differentiable(torch.autograd.Function):
    """x [..., in], weight [out, in], bias [out] -> [..., out] through oneDNN, and so are both products that the gradient is made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.multiply = _matmul
        try:  # around this alone: keeping tensors may raise too, to end a recomputation of ``torch.utils.checkpoint``
            return _onednn(x, weight, bias, False)
        except Exception:  # as in ``_fastest``
            y = F.linear(x, weight, bias)
            _chosen[_key_of(weight, training=True)] = PLAIN
            ctx.multiply = torch.matmul
            return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, weight.shape[0])
        # Gradients are recorded here only if they will be differentiated again, which oneDNN's operation cannot be.
        multiply = torch.matmul if torch.is_grad_enabled() else ctx.multiply
        return (
            multiply(rows, weight).view_as(x) if for_x else None,
            _weight_gradient(multiply, rows, x.reshape(-1, x.shape[-1])) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """[n, k] times [k, m]; a transposed matrix is read as it lies."""
    return _onednn(a, b.t(), None, False)


def _weight_gradient(multiply: Callable[[Tensor, Tensor], Tensor], gradient: Tensor, x: Tensor) -> Tensor:
    """[n, out] and [n, in] -> [out, in]. oneDNN is up to 1.7x as fast where the result has no more rows than columns."""
    if gradient.shape[1] > x.shape[1]:
        return multiply(x.t(), gradient).t()
    return multiply(gradient.t(), x)


_LEAST_TRAINING_WORK = 1 << 22  # multiplications; less than that takes no time worth a choice, and then resumed runs are equal to the bit
_TRAINING_MARGIN = 1.25  # wide, so that the processes of a run, and one that resumes it, choose alike


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.dtype is not torch.float32 or x.numel() * weight.shape[0] < _LEAST_TRAINING_WORK:
        return F.linear(x, weight, bias)
    key = _key_of(weight, training=True)
    if (name := _chosen.get(key)) is None:
        name = _chosen.setdefault(key, _choose_for_training(key, weight.detach()))
    return F.linear(x, weight, bias) if name == PLAIN else _Differentiable.apply(x, weight, bias)


@torch.no_grad()
def _choose_for_training(key: _Key, weight: Tensor) -> str:
    check_variable(key.named)
    if key.named not in ("auto", "onednn"):
        return PLAIN
    rows = _measured_rows(weight)
    x, gradient = _wave(rows, key.in_features, key.dtype), _wave(rows, key.out_features, key.dtype)

    def step(multiply: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return multiply(x, weight.t()), multiply(gradient, weight), _weight_gradient(multiply, gradient, x)

    try:
        if not all(map(_is_rounding, step(_matmul), step(torch.matmul))):
            return PLAIN
    except Exception:  # the operation is missing, or not made for this processor
        return PLAIN
    if key.named != "auto":
        return key.named
    seconds = _measure({PLAIN: lambda: step(torch.matmul), "onednn": lambda: step(_matmul)})
    return "onednn" if seconds["onednn"] * _TRAINING_MARGIN < seconds[PLAIN] else PLAIN


# --- the choice ----------------------------------------------------------------------------------------------------------------------


class _Key(NamedTuple):
    dtype: torch.dtype
    out_features: int
    in_features: int
    gelu: bool
    threads: int
    named: str
    """The value of ``VARIABLE``."""
    training: bool = False


def _key_of(weight: Tensor, gelu: bool = False, training: bool = False) -> _Key:
    out_features, in_features = weight.shape
    return _Key(weight.dtype, out_features, in_features, gelu, torch.get_num_threads(), os.environ.get(VARIABLE, "auto"), training)


_chosen: dict[_Key, str] = {}  # written in single steps, so that threads need no lock, which a fork could leave locked

_SMALLEST = 1 << 15  # weights; less than that takes no time worth a choice
_ROWS, _WORK = (64, 512), 1 << 25  # rows of a measured product, and its multiplications, which take some milliseconds
_LEAST_SECONDS, _MOST_SECONDS = 0.001, 0.03  # of a measurement; the least for each way
_AGREEMENT = 1.15
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
        return _reference(x, weight, bias, gelu)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        y = _differentiable(x, weight, bias)
        return F.gelu(y) if gelu else y
    key, name = _choice(weight, bias, gelu)
    if name == PLAIN:
        return _plain(x, weight, bias, gelu)
    try:
        return WAYS[name](x, weight, bias, gelu)
    except Exception:  # whatever an operation that is not public raises
        y = _reference(x, weight, bias, gelu)  # which raises too, if the arguments were at fault
        _chosen[key] = PLAIN
        return y


def _is_usable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are dense tensors of one kind on a CPU, and nobody traces or transforms what is computed."""
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
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()  # who counts operations, or records them
    )


def _choice(weight: Tensor, bias: Tensor | None, gelu: bool) -> tuple[_Key, str]:
    key = _key_of(weight, gelu)
    if (name := _chosen.get(key)) is None:
        name = _chosen.setdefault(key, _choose(key, weight, bias))
    return key, name


@torch.no_grad()
def _choose(key: _Key, weight: Tensor, bias: Tensor | None) -> str:
    """The fastest of the ways that compute what ``F.linear`` does, or the one that ``VARIABLE`` names, if it does."""
    check_variable(key.named)
    if key.named == "auto" and key.out_features * key.in_features < _SMALLEST:
        return PLAIN
    x = _wave(_measured_rows(weight), key.in_features, key.dtype)
    expected = _reference(x, weight, bias, key.gelu)
    ways = [PLAIN]
    for name in _others(key):
        with suppress(Exception):  # the operation is missing, or not made for this processor
            if _is_rounding(WAYS[name](x, weight, bias, key.gelu), expected):
                ways.append(name)
    if key.named != "auto":
        return ways[-1]
    best = PLAIN
    seconds = _measure({name: partial(WAYS[name], x, weight, bias, key.gelu) for name in ways})
    for name, taken in seconds.items():
        if taken * _MARGIN < seconds[best]:
            best = name
    return best


def _measured_rows(weight: Tensor) -> int:
    return min(max(_ROWS[0], _WORK // weight.numel()), _ROWS[1])


def _wave(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Values for a measurement, without drawing from a random generator of the program's."""
    return torch.arange(rows * columns, dtype=torch.float32, device="cpu").sin().view(rows, -1).to(dtype)


def _is_rounding(y: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by no more than rounding explains."""
    expected, largest = expected.float(), expected.float().abs().max()
    rounding = max(64 * torch.finfo(torch.float32).eps, 2 * torch.finfo(y.dtype).eps) * largest
    return bool(((y.float() - expected).abs() <= rounding).all())


def _measure(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The fewest seconds that each has taken, measured in turns until the two fastest times of each agree.

    Where other programs take the cores, threads of one product wait for each other, and single times are many times too long.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}  # the two fastest of each
    names, start = list(ways), _clock()
    while len(names) > 1 and _clock() - start < _MOST_SECONDS:
        for name in names:
            before = _clock()
            ways[name]()
            seconds[name] = sorted([*seconds[name], _clock() - before])[:2]
        agreed = {name: len(times) > 1 and times[1] <= _AGREEMENT * times[0] for name, times in seconds.items()}
        if all(agreed[name] for name in names) and _clock() - start >= _LEAST_SECONDS * len(names):
            break
        fastest = min(times[0] for times in seconds.values())
        names = [name for name in names if not agreed[name] or seconds[name][0] <= _HOPELESS * fastest]
    return {name: min(times, default=math.inf) for name, times in seconds.items()}


def _others(key: _Key) -> list[str]:
    """The way that ``VARIABLE`` names, or all that differ from ``F.linear`` for these tensors."""
    if key.named != "auto":
        return [key.named]
    same = {PLAIN, "" if key.gelu else "onednn-gelu", "float32" if key.dtype is torch.float32 else ""}
    return [name for name in WAYS if name not in same]
