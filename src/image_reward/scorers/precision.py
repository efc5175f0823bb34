"""Speed at a known price: a loaded scorer in 8-bit integers or compiled, and what that does to its rewards."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from image_reward.errors import InputError, RewardError
from image_reward.metrics import ranks_of, spearman
from image_reward.models.heads import LinearHead
from image_reward.models.linear import Linear
from image_reward.scorers.base import Scorer
from image_reward.scorers.two_tower import TwoTowerScorer, take

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


# --- 8-bit integers ------------------------------------------------------------------------------------------------------------------


def quantize(scorer: Scorer[Any]) -> None:
    """Let the linear layers that images pass through multiply 8-bit integers, in place. All else stays in float32: prompts take little of
    the time, and rounding them too costs half as much again in accuracy.

    A weight has one scale for each output channel. An activation has one for each token, computed as it passes, so that a reward does not
    depend on what else is in the batch. Rounding has no gradient, so such a scorer only scores: gradients and saving are refused.

    Raises ``ValueError`` where torchao is missing or cannot compute on the scorer's device.
    """
    if not isinstance(scorer, TwoTowerScorer):
        raise InputError(
            f"dtype int8 is for scorers with an image tower, and {scorer.name} ({type(scorer).__name__}) has none; use bfloat16"
        )
    if scorer.device.type not in ("cpu", "cuda"):
        raise InputError(f"dtype int8 works on cpu and cuda, not on {scorer.device.type}; use bfloat16 there")
    try:
        with without_torchao_notes():
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise InputError(f"dtype int8 needs torchao ({error}): pip install 'image-reward[int8]'") from None
    layers = _image_layers(scorer)
    for module in list(scorer.modules()):
        for name, layer in module.named_children():
            if layer in layers:
                setattr(module, name, Int8Linear(layers[layer]))
    # Without its advice to Inductor, which would hold for all that the process compiles.
    config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    quantize_(scorer, config, filter_fn=lambda layer, _: isinstance(layer, Int8Linear) and type(layer.weight) is nn.Parameter)


class Int8Linear(nn.Linear):
    """A linear layer whose weight torchao holds in 8-bit integers, which have no gradient and no place in a checkpoint."""

    def __init__(self, layer: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RewardError("a scorer of dtype int8 has no gradients, because rounding has none; load it in float32 or bfloat16")
        return super().forward(x)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RewardError("a scorer of dtype int8 cannot be saved; save it as loaded in float32, and give dtype int8 when loading it")


def is_quantized(scorer: Scorer[Any]) -> bool:
    return any(isinstance(module, Int8Linear) for module in scorer.modules())


def _image_layers(scorer: TwoTowerScorer[Any]) -> dict[nn.Module, nn.Linear]:
    """The linear layers that ``encode_images`` calls, recorded while it encodes an image; neither heads nor what is int8 already."""
    called: dict[nn.Module, nn.Linear] = {}
    linear = [layer for layer in scorer.modules() if type(layer) in (nn.Linear, Linear)]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.update({layer: layer})) for layer in linear]
    with torch.inference_mode():
        scorer.encode_images(scorer.prepare.pixels([Image.new("RGB", (64, 64))]).to(scorer.device))
    for hook in hooks:
        hook.remove()
    heads = {layer for head in scorer.modules() if isinstance(head, LinearHead) for layer in head.modules()}
    return {layer: linear for layer, linear in called.items() if layer not in heads}


_CHATTY = ("torchao", "torchao.kernel.intmm", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


@contextmanager
def without_torchao_notes() -> Iterator[None]:
    """torchao's first import, which transformers' models and diffusers' pipelines cause too, writes of GPU kernels that are not for this
    machine; nobody who scores images can act on it.

    Only its own loggers are silenced: the logging of the process belongs to the program.
    """

    def drop(_: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(name) for name in _CHATTY]
    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(drop)


# --- compiled ------------------------------------------------------------------------------------------------------------------------


def compile_scorer(scorer: Scorer[Any]) -> None:
    """Let PyTorch compile how the scorer encodes images, in place, when it first does.

    Reading prompts takes a small part of the time, and their lengths vary, so that stays as it is. What was compiled is kept in
    Inductor's cache on disk (``TORCHINDUCTOR_CACHE_DIR``). Raises ``ValueError`` where there is no C++ compiler.
    """
    if not isinstance(scorer, TwoTowerScorer):
        raise InputError(
            f"compile is for scorers with an image tower, and {scorer.name} ({type(scorer).__name__}) has none; leave compile out"
        )
    if scorer.device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise InputError("compile needs a C++ compiler, and none was found: install g++ (or set CXX), or leave compile out") from None
    scorer.compiled = CompiledEncoding(scorer.encode_images)


class CompiledEncoding:
    """An ``encode_images`` that is compiled once for any number of images (and once more for pixels of another type)."""

    def __init__(self, encode: Callable[[Tensor], Any]) -> None:
        self.encode = encode
        self.compiled = torch.compile(encode, options={"freezing": True})
        self.announced = False

    def __call__(self, pixels: Tensor) -> Any:
        if not len(pixels) or (torch.is_grad_enabled() and pixels.requires_grad):
            return self.encode(pixels)
        if not self.announced:
            print("compiling the image tower: a minute or more the first time, less when this machine has done it before", file=sys.stderr)
            self.announced = True
        num_images = len(pixels)
        with torch.inference_mode():
            # The compiler would make code of its own for one image, which takes as long again and rounds otherwise: one goes as two. The
            # copy is made in this mode, whatever the caller's was, because the code is for one of them.
            pixels = pixels.repeat(2 if num_images == 1 else 1, 1, 1, 1)
            torch._dynamo.mark_dynamic(pixels, 0)
            features = self.compiled(pixels)
            return take(features, slice(1)) if num_images == 1 else features


# --- the price -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How the rewards of a reduced precision agree with those of float32, over the same prompts and images."""

    num_prompts: int
    num_images: int
    largest_difference: float
    mean_difference: float
    """Of absolute differences, as the largest is."""
    spread: float
    """The standard deviation of a prompt's float32 rewards, the mean over prompts: what differences are to be held against."""
    spearman: float | None
    """The rank correlation of a prompt's images, the mean over prompts; None where there is none, as for one image."""
    num_pairs: int
    """Pairs of images of one prompt that float32 puts in an order."""
    num_flips: int
    """Those of them that the reduced precision does not put in the same order."""
    largest_flipped: float | None
    """The largest difference in float32 rewards of a pair that flipped; None where none did."""
    median_flipped: float | None

    @property
    def share_flipped(self) -> float:
        return self.num_flips / self.num_pairs if self.num_pairs else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share_flipped": self.share_flipped}


def agreement(reference: ArrayLike, reduced: ArrayLike) -> Agreement:
    """Two matrices of rewards of the same prompts and images [P, I], the first in float32.

    >>> a = agreement([[0.0, 1.0, 1.1]], [[0.0, 1.1, 1.0]])
    >>> a.num_flips, a.num_pairs, round(a.largest_flipped, 6), a.spearman
    (1, 3, 0.1, 0.5)
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(reduced, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or not a.size:
        raise ValueError(f"rewards of shapes {a.shape} and {b.shape}: both must be [P, I] of the same prompts and images")
    difference = np.abs(a - b)
    first, second = np.triu_indices(a.shape[1], k=1)
    apart_a, apart_b = a[:, first] - a[:, second], b[:, first] - b[:, second]
    flipped = np.abs(apart_a[(apart_a != 0) & (np.sign(apart_a) != np.sign(apart_b))])
    correlations = [spearman(row, ranks) for row, ranks in zip(b, map(ranks_of, a), strict=True) if a.shape[1] > 1]
    defined = [value for value in correlations if np.isfinite(value)]
    return Agreement(
        num_prompts=len(a),
        num_images=a.shape[1],
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        spread=float(a.std(axis=1).mean()),
        spearman=float(np.mean(defined)) if defined else None,
        num_pairs=int((apart_a != 0).sum()),
        num_flips=len(flipped),
        largest_flipped=float(flipped.max()) if len(flipped) else None,
        median_flipped=float(np.median(flipped)) if len(flipped) else None,
    )
