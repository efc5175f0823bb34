"""LoRA weights of a pipeline's denoisers (Hu et al. 2021, arXiv 2106.09685): attached, switched, saved for diffusers and other programs.

They are peft's layers in the denoisers, whose own weights stay as they are: the untuned generator is there for nothing, and between it and
the tuned one the strength of the LoRA interpolates. Nothing depends on the kind of pipeline: layers are chosen by the names that all
attention layers of diffusers have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from image_reward.errors import CheckpointError, InputError
from image_reward.files import parse_json, written_whole
from image_reward.tuning.sampling import denoisers_of

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The file that ``pipe.load_lora_weights(folder)`` of diffusers reads."""

KOHYA = "kohya.safetensors"
"""The same weights under the names that Stable Diffusion WebUI, ComfyUI and others read."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of attention in every denoiser of diffusers; the last four are those of the text in SD3, FLUX and Qwen-Image."""

_ADAPTER = "default"  # peft's own name
_METADATA = "lora_adapter_metadata"  # where diffusers looks for alpha


def attach(pipe: Any, rank: int, alpha: float, targets: Sequence[str] | None = None, seed: int = 0) -> list[nn.Parameter]:
    """Add LoRA layers to the denoisers of a pipeline, and freeze everything else in it: the weights to train, in a fixed order.

    The weights are float32 whatever the pipeline's dtype. The images are those of the untuned pipeline until they are trained: B is 0, and
    A is normal with a standard deviation of 1 / rank, drawn from ``seed`` alone.

    Args:
        pipe: A pipeline of diffusers. Denoisers are ``unet``, ``transformer`` and ``transformer_2`` (Wan 2.2).
        rank: Of each pair of matrices, A [rank, in] and B [out, rank].
        alpha: What a layer adds is B A x times alpha / rank.
        targets: Ends of the names of the linear layers; ``ATTENTION`` by default. Where the last block of a transformer discards its
            text, layers that no gradient reaches are left out.

    Raises ``InputError`` where no linear layer has such a name, where the pipeline has a LoRA, and for values that make no sense.
    """
    if not isinstance(rank, int) or rank < 1:
        raise InputError(f"the rank of a LoRA must be a whole number of at least 1, not {rank!r}")
    if not 0 < alpha < float("inf"):
        raise InputError(f"alpha of a LoRA must be above 0 and finite, not {alpha!r}")
    if _layers(pipe):
        raise InputError(
            f"{type(pipe).__name__} has a LoRA already: take it out (image_reward.tuning.lora.detach), or make it a part of the weights "
            "(pipe.fuse_lora(), then pipe.unload_lora_weights())"
        )
    targets = ATTENTION if targets is None else tuple(targets)
    chosen = {name: _targets(denoiser, targets) for name, denoiser in _denoisers(pipe).items()}
    for name, layers in chosen.items():
        if not layers:
            raise InputError(
                f"no linear layer of {name} in {type(pipe).__name__} has a name that ends with {' or '.join(targets)}; "
                "leave the targets out for the attention"
            )
    weights = _inject(pipe, chosen, rank, alpha)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in _layers(pipe):
            first, second = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            first.copy_(torch.randn(first.shape, generator=generator) / rank)
            second.zero_()
    return weights


def detach(pipe: Any) -> None:
    """Take all LoRA layers out of the denoisers, which are then as they were before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for denoiser in _denoisers(pipe).values():
        for name, module in list(denoiser.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, last = name.rpartition(".")
                setattr(denoiser.get_submodule(parent), last, module.get_base_layer())
        if hasattr(denoiser, "peft_config"):
            del denoiser.peft_config
        if hasattr(denoiser, "_hf_peft_config_loaded"):
            denoiser._hf_peft_config_loaded = False  # diffusers would take the denoiser for one with adapters


def save(pipe: Any, folder: str | os.PathLike[str], *, kohya: bool = False, metadata: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Write the LoRA that ``attach`` or ``load`` gave the pipeline: the files by what they are.

    ``WEIGHTS`` is what ``pipe.load_lora_weights(folder)`` of diffusers reads. A second denoiser has a file of its own, "transformer_2", for
    ``pipe.load_lora_weights(folder, weight_name="transformer_2.safetensors", load_into_transformer_2=True)``. With ``kohya``, the weights
    of a U-Net are written once more as ``KOHYA``, for programs that read those names. ``metadata`` are texts to keep in each file. Each
    file appears whole or not at all.

    Raises ``InputError`` without a LoRA, and for ``kohya`` with a denoiser that is not a U-Net.
    """
    _check_attached(pipe)
    if kohya and not isinstance(getattr(pipe, "unet", None), nn.Module):
        raise InputError(f"the names of kohya are those of U-Nets, and {type(pipe).__name__} has none; leave kohya out")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, denoiser in _denoisers(pipe).items():
        prefix = _prefix(name)
        tensors = {f"{prefix}.{key}": weight for key, weight in _state(denoiser).items()}
        rank, alpha = _shape(denoiser)
        layers = sorted({key.rsplit(".lora_", 1)[0] for key in _state(denoiser)})
        settings = {f"{prefix}.{key}": value for key, value in (("r", rank), ("lora_alpha", alpha), ("target_modules", layers))}
        own = {"format": "pt", **(metadata or {}), _METADATA: json.dumps(settings)}
        files[name] = _write(folder / _file(name), tensors, own)
        if kohya:
            from diffusers.utils import convert_state_dict_to_kohya

            renamed = convert_state_dict_to_kohya(tensors)
            renamed |= {key: torch.tensor(float(alpha)) for key in renamed if key.endswith(".alpha")}  # diffusers writes the rank
            files["kohya"] = _write(folder / KOHYA, renamed, {"format": "pt", **(metadata or {})})
    return files


def load(pipe: Any, folder: str | os.PathLike[str]) -> list[nn.Parameter]:
    """Give the pipeline the LoRA of a folder that ``save`` wrote, in place of one that it has; return the weights as ``attach`` does.

    It works for every pipeline of ``attach``, also those without ``load_lora_weights`` (PixArt), and refuses what does not fit.

    Raises ``FileNotFoundError`` for a missing file, and ``CheckpointError`` for a damaged one and for the LoRA of another base, with the
    first weight that does not fit.
    """
    states: dict[str, dict[str, Tensor]] = {}
    shapes = set()
    denoisers = _denoisers(pipe)
    for name in denoisers:
        path = Path(folder) / _file(name)
        states[name], rank, alpha = _read(path, _prefix(name))
        _check_fits(path, _prefix(name), states[name], _without_adapters(denoisers[name]), type(denoisers[name]).__name__)
        shapes.add((rank, alpha))
    if len(shapes) > 1:
        raise CheckpointError(f"the files of {folder} have LoRAs of different ranks or alphas; they are not of one run")
    detach(pipe)
    ((rank, alpha),) = shapes
    weights = _inject(pipe, {name: sorted({key.rsplit(".lora_", 1)[0] for key in state}) for name, state in states.items()}, rank, alpha)
    with torch.no_grad():
        for name, denoiser in denoisers.items():
            for key, weight in _state(denoiser).items():
                weight.copy_(states[name][key])
    return weights


@contextmanager
def disabled(pipe: Any) -> Iterator[None]:
    """Within the block the pipeline is the untuned one. Afterwards all is as before, also the gradients of a graph that is older."""
    layers = _check_attached(pipe)
    flags = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, flag in flags:  # peft switches them along
            weight.requires_grad_(flag)


@contextmanager
def strength(pipe: Any, s: float) -> Iterator[None]:
    """Within the block what the LoRA adds is multiplied by ``s``: 0 is the untuned pipeline, 1 the tuned one."""
    layers = _check_attached(pipe)
    before = [layer.scaling[_ADAPTER] for layer in layers]
    try:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[_ADAPTER] = s * scaling
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling[_ADAPTER] = scaling


# --- the layers ----------------------------------------------------------------------------------------------------------------------


def _denoisers(pipe: Any) -> dict[str, Any]:
    """Each denoiser by its name in the pipeline. Raises ``InputError`` where none is known."""
    known = denoisers_of(pipe)
    return {name: part for name, part in pipe.components.items() if any(part is denoiser for denoiser in known)}


def _targets(denoiser: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the linear layers to adapt."""
    dead: tuple[str, ...] = ()
    blocks = getattr(denoiser, "transformer_blocks", None)
    if isinstance(blocks, nn.ModuleList) and not getattr(denoiser, "single_transformer_blocks", None):
        # Of the last block that reads image and text together, only the image goes on: queries and output of the text are computed in vain.
        dead = tuple(f"transformer_blocks.{len(blocks) - 1}.attn.{name}" for name in ("add_q_proj", "to_add_out"))
    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and name not in dead and any(name == end or name.endswith(f".{end}") for end in targets)
    ]


def check_installed() -> None:
    """Raise ``InputError`` without the package that has the layers."""
    if find_spec("peft") is None:
        raise InputError("a LoRA needs peft: pip install 'image-reward[tune]'")


def _inject(pipe: Any, chosen: Mapping[str, list[str]], rank: int, alpha: float) -> list[nn.Parameter]:
    check_installed()
    import peft

    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    for name, denoiser in _denoisers(pipe).items():
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen[name])  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):  # the layers draw weights, which are replaced
            if hasattr(denoiser, "add_adapter"):
                denoiser.add_adapter(config, _ADAPTER)
            else:  # PixArt
                peft.inject_adapter_in_model(config, denoiser, _ADAPTER)
    weights = [layer_weights[_ADAPTER].weight for layer in _layers(pipe) for layer_weights in (layer.lora_A, layer.lora_B)]
    for weight in weights:
        weight.data = weight.data.float()  # peft makes them like the layer that they adapt
        weight.requires_grad_(True)
    return weights


def _adapted(denoiser: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


def _layers(pipe: Any) -> list[Any]:
    return [layer for denoiser in _denoisers(pipe).values() for layer in _adapted(denoiser)]


def _check_attached(pipe: Any) -> list[Any]:
    if not (layers := _layers(pipe)) or any(_ADAPTER not in layer.scaling for layer in layers):
        raise InputError(f"{type(pipe).__name__} has no LoRA of this package; call attach() or load() of image_reward.tuning.lora first")
    return layers


def _shape(denoiser: nn.Module) -> tuple[int, float]:
    """Rank and alpha."""
    layer = _adapted(denoiser)[0]
    return layer.r[_ADAPTER], layer.lora_alpha[_ADAPTER]


def _without_adapters(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The layers by their names in the untuned denoiser."""
    layers = {}
    for name, module in denoiser.named_modules():
        base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        layers[name] = base
    return layers


# --- files ---------------------------------------------------------------------------------------------------------------------------


def _prefix(name: str) -> str:
    """What the names of a denoiser's weights begin with in a file. Of a second denoiser diffusers expects that of the first."""
    return name.removesuffix("_2")


def _file(name: str) -> str:
    return f"{name}.safetensors" if name.endswith("_2") else WEIGHTS


def _state(denoiser: nn.Module) -> dict[str, Tensor]:
    """The LoRA weights by the names that they have in files: without the adapter's."""
    import peft

    return peft.get_peft_model_state_dict(denoiser, adapter_name=_ADAPTER)


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    with written_whole(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    return path


def _read(path: Path, prefix: str) -> tuple[dict[str, Tensor], int, float]:
    """The weights without the prefix, rank and alpha."""
    if not path.is_file():
        raise FileNotFoundError(f"no LoRA: {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again") from None
    for key in tensors:
        if not (key.startswith(f"{prefix}.") and key.endswith((".lora_A.weight", ".lora_B.weight"))):
            raise CheckpointError(f"{path} has the weight {key!r}, which is none of a LoRA of the pipeline's {prefix}")
    if not tensors:
        raise CheckpointError(f"{path} has no weights")
    state = {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items()}
    ranks = {tensor.shape[0] if ".lora_A." in key else tensor.shape[-1] for key, tensor in state.items()}
    if len(ranks) > 1:
        raise CheckpointError(f"{path} has weights of the ranks {', '.join(map(str, sorted(ranks)))}; one rank is read")
    (rank,) = ranks
    settings = parse_json(metadata.get(_METADATA, "{}"), str(path))
    alpha = settings.get(f"{prefix}.lora_alpha", rank) if isinstance(settings, dict) else None  # without it, diffusers takes the rank
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"the metadata of {path} has no number for alpha; copy it again")
    return state, rank, alpha


def _check_fits(path: Path, prefix: str, state: Mapping[str, Tensor], layers: Mapping[str, nn.Module], kind: str) -> None:
    other = f"{path} is a LoRA of another base"
    for key, tensor in state.items():
        name, _, part = key.removesuffix(".weight").rpartition(".")
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            raise CheckpointError(f"{other}: its weight {prefix}.{key} has no layer in this {kind}")
        size = layer.in_features if part == "lora_A" else layer.out_features
        width = tensor.shape[-1 if part == "lora_A" else 0]
        if tensor.ndim != 2 or width != size:
            raise CheckpointError(
                f"{other}: its weight {prefix}.{key} is {list(tensor.shape)}, and the layer here has {size} in place of {width}"
            )
        pair = f"{name}.lora_{'B' if part == 'lora_A' else 'A'}.weight"
        if pair not in state:
            raise CheckpointError(f"{path} lacks the weight {prefix}.{pair}")
