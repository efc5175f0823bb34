"""What a run of ``tune`` needs in memory, from configuration files alone: no weight is loaded, and nothing is computed.

The networks are built on PyTorch's meta device, which knows shapes but holds no numbers, and the pipeline's own code runs around them on
the CPU. So the calls of a denoiser are those of a real run, with its guidance and its lengths of prompts, for any pipeline. What autograd
would keep of each is counted by hooks on saved tensors.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from image_reward.config import CONFIG_NAME, ScorerConfig
from image_reward.downloads import HubFile, fetch
from image_reward.errors import InputError
from image_reward.files import read_json
from image_reward.models.clip import clip_config_from_json, clip_network
from image_reward.models.heads import LinearHead
from image_reward.reports.document import Column, Grid, Report
from image_reward.scorers.base import Scorer
from image_reward.scorers.loading import find
from image_reward.scorers.registry import spec_of
from image_reward.scorers.together import single_scorers
from image_reward.scorers.two_tower import TwoTowerScorer
from image_reward.tuning import lora, methods
from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import unguided
from image_reward.tuning.methods import Rollout
from image_reward.tuning.pipelines import PACKAGED, call_arguments_of, import_diffusers
from image_reward.tuning.rewarding import check_reward
from image_reward.tuning.sampling import called, denoisers_of, differentiable, replaced

Kind = Literal["weights", "training", "activations"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CONFIG_FILES = ["*.json", "*.txt", "*.model"]  # of models, schedulers and tokenizers
_CLIP_H = HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", CONFIG_NAME)  # HPSv2's, whose file carries no config
_SPARED = ("safety_checker", "feature_extractor", "image_encoder", "image_processor")  # which tuning does without


@dataclass(frozen=True)
class Kept:
    """Bytes of the activations that one call of a network keeps for its backward pass, inputs and outputs included."""

    plain: int
    checkpointed: int
    recomputed: int
    """Of the largest part that is recomputed in the backward pass with checkpointing, on top."""

    def of(self, checkpointing: bool) -> int:
        return self.checkpointed if checkpointing else self.plain


@dataclass(frozen=True)
class MemoryPart:
    """What one thing takes."""

    name: str
    kind: Kind
    num_bytes: int
    note: str = ""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one process, in bytes. Not in it: what CUDA and its libraries take, and transient results."""

    model: str
    parts: tuple[MemoryPart, ...]
    denoiser_call: Kept
    """Of the largest call with gradients, guidance included."""
    num_active_calls: int
    """Calls of the denoiser with gradients at once."""
    decoder: Kept
    peak_activations: int
    """The most that is kept at one time: at the end of the forward pass, or where the backward pass recomputes."""
    num_steps: int
    """Steps of the optimizer."""
    num_micro_batches: int
    """Of each step, one after another."""
    num_denoiser_calls: int
    """Calls of the denoiser for each micro-batch, with and without gradients, pretraining loss excluded."""

    @property
    def peak(self) -> int:
        """All that is resident, and the activations at their peak."""
        return sum(part.num_bytes for part in self.parts if part.kind != "activations") + self.peak_activations

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"parts": [asdict(part) for part in self.parts], "peak": self.peak}

    def report(self) -> Report:
        """For ``reports.printing.show``, or any form that reports have."""
        rows = [[part.name, gib(part.num_bytes), part.note] for part in self.parts]
        rows.append(["peak", gib(self.peak), f"activations {gib(self.peak_activations)} of it"])
        columns = [Column("part", "left"), Column("GiB"), Column("", "left")]
        calls = [Column("one call, GiB", "left"), Column("plain"), Column("checkpointed"), Column("recomputed at once")]
        return Report(
            f"Memory to tune {self.model}",
            "Computed from configuration files: no weight was loaded. What CUDA and its libraries take is not included.",
            [
                Grid(columns, rows, strong=frozenset({len(rows) - 1})),
                Grid(
                    calls,
                    [
                        [name, *map(gib, asdict(kept).values())]
                        for name, kept in (("denoiser", self.denoiser_call), ("decoder", self.decoder))
                    ],
                ),
            ],
            data=self.as_dict(),
            answer=(
                f"{gib(self.peak)} GiB at the peak; {self.num_steps:,} steps of {self.num_micro_batches} micro-batches, each of "
                f"{self.num_denoiser_calls} calls of the denoiser, {self.num_active_calls} with gradients."
            ),
        )


def gib(num_bytes: int) -> str:
    """
    >>> gib(3 << 29), gib(2_000_000)
    ('1.50', '0.002')
    """
    value = num_bytes / 2**30
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def estimate(
    config: Tuning,
    *,
    pipe: Any = None,
    scorers: Mapping[str, Scorer[Any]] | None = None,
    processes: int = 1,
    prompt: str = "a cat",
    **call_arguments: Any,
) -> MemoryEstimate:
    """The memory that ``tune`` with this configuration needs in each process.

    Args:
        config: Its ``model`` is the folder of a pipeline of diffusers or a hub id, of which only configurations and tokenizers are read.
        pipe: A pipeline to take in place of it. It is not changed.
        scorers: Loaded scorers by their names in ``config.reward`` and ``config.watch``.
        processes: That share the images of a step.
        prompt: One of usual length, for pipelines whose calls depend on it.
        call_arguments: Further arguments of the pipeline, as ``max_sequence_length``.

    Raises ``InputError`` for what is not a pipeline with a known denoiser, and for a reward without gradients where the method needs them;
    ``FileNotFoundError`` for a folder without model_index.json.
    """
    config = config.resolved()
    check_reward(config, scorers or {})
    dtype = DTYPES[config.precision]
    meta = meta_pipeline(config.model, dtype) if pipe is None else _on_meta(pipe, dtype)
    denoisers = {name: part for name, part in meta.components.items() if any(part is each for each in denoisers_of(meta))}
    denoiser_bytes = sum(map(num_bytes, denoisers.values()))
    if config.lora_rank:
        trained = lora.attach(meta, config.lora_rank, config.lora_alpha or config.lora_rank, config.lora_targets or None)
    else:
        for name, part in meta.components.items():
            if isinstance(part, nn.Module):
                part.requires_grad_(name in denoisers)
        trained = [weight for part in denoisers.values() for weight in part.parameters()]
        denoiser_bytes = sum(4 * weight.numel() for weight in trained)  # master weights
    trained_bytes = 4 * sum(weight.numel() for weight in trained)

    arguments = call_arguments_of(meta, {name: getattr(config, name) for name in ("guidance_scale", "height", "width")}) | call_arguments
    if config.method == "refl" and config.guidance_scale is None:
        arguments = unguided(meta, arguments)
    if config.method == "best-of":  # the loss is that of one call without guidance; all images are made without gradients
        assert config.denoising_steps is not None
        chosen = Rollout(config.denoising_steps, frozenset({config.denoising_steps - 1}))
    else:
        chosen = methods.rollout(config, random.Random(config.seed))
    if config.precision == "fp16":
        nn.Module.to(meta.vae, torch.float32)  # as the loop has it
    autocast = None if config.precision == "fp32" else dtype
    calls = measured_calls(meta, [prompt] * config.micro_images, chosen, autocast, **arguments)
    prompts_per_image = 2 if config.margin_weight else 1
    tuned_with, watched = (
        [each for name in names for each in _scorer_memory((scorers or {}).get(name, name), calls.images, prompts_per_image)]
        for names in (config.reward, config.watch)
    )

    weights = [MemoryPart("denoiser", "weights", denoiser_bytes)]
    weights.append(MemoryPart("VAE", "weights", num_bytes(meta.vae)))
    encoders = [part for name, part in meta.components.items() if name.startswith("text_encoder") and isinstance(part, nn.Module)]
    encoder_bytes = sum(map(num_bytes, encoders))
    weights.append(
        MemoryPart(
            "text encoders",
            "weights",
            0 if config.free_text_encoders else encoder_bytes,
            f"{gib(encoder_bytes)} GiB while prompts are encoded, then on the CPU" if config.free_text_encoders else "",
        )
    )
    for kind, memories in (("reward", tuned_with), ("watch", watched)):
        for each in memories:
            note = "" if each.weights is not None else "not known without its weights, and not counted"
            weights.append(MemoryPart(f"{kind}: {each.name}", "weights", each.weights or 0, note))
    training = [
        MemoryPart("LoRA", "training", trained_bytes, f"rank {config.lora_rank}") if config.lora_rank else None,
        MemoryPart("gradients", "training", trained_bytes),
        MemoryPart("moments of AdamW", "training", 2 * trained_bytes),
        MemoryPart("moving average", "training", trained_bytes) if config.ema else None,
        MemoryPart("untuned weights", "training", trained_bytes, "for the divergence")
        if config.kl_weight and not config.lora_rank
        else None,
    ]
    use = config.gradient_checkpointing
    denoiser_bytes_kept = sum(kept.of(use) for kept in calls.active)
    decoder_bytes = calls.decoder.of(use) if config.method != "best-of" else 0
    reward_bytes = sum(each.kept for each in tuned_with) if config.method != "best-of" else 0
    largest = max(calls.active, key=lambda kept: kept.of(use))
    activations = [
        MemoryPart("denoiser's activations", "activations", denoiser_bytes_kept, f"{len(calls.active)} calls with gradients"),
        MemoryPart("decoder's activations", "activations", decoder_bytes),
        MemoryPart("rewards' activations", "activations", reward_bytes),
    ]
    recomputing = (largest.recomputed, calls.decoder.recomputed) if use else (0, 0)
    peak = max(
        denoiser_bytes_kept + decoder_bytes + reward_bytes,
        denoiser_bytes_kept + decoder_bytes + (recomputing[1] if decoder_bytes else 0),
        denoiser_bytes_kept + recomputing[0],
    )
    return MemoryEstimate(
        model=config.model or type(meta).__name__,
        parts=tuple(part for part in (*weights, *training, *activations) if part is not None),
        denoiser_call=largest,
        num_active_calls=len(calls.active),
        decoder=calls.decoder,
        peak_activations=peak,
        num_steps=config.max_steps,
        num_micro_batches=-(-config.batch_images // (config.micro_images * processes)),
        num_denoiser_calls=calls.num_calls * (config.candidates if config.method == "best-of" else 1),
    )


def num_bytes(module: nn.Module) -> int:
    """Of weights and buffers; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


# --- networks without weights --------------------------------------------------------------------------------------------------------


def meta_pipeline(model: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> Any:
    """The pipeline of a folder or a hub id, its networks on the meta device. Of a hub id only configurations and tokenizers are fetched.

    Raises ``FileNotFoundError`` for a folder without model_index.json, and ``InputError`` for what cannot be fetched or built.
    """
    diffusers = import_diffusers()
    import transformers

    folder = Path(PACKAGED.get(os.fspath(model), model))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(os.fspath(model), allow_patterns=_CONFIG_FILES))
        except Exception as error:  # the hub, its cache and HTTP each have their own
            raise InputError(f"{model} is not a folder here, and its configuration cannot be fetched from the hub: {error}") from error
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a pipeline of diffusers: it has no model_index.json")
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
        kind = getattr(diffusers, values["_class_name"])
        components: dict[str, Any] = {}
        for name, value in values.items():
            if name.startswith("_"):
                continue
            if not isinstance(value, list):
                components[name] = value
            elif value[0] is None or name in _SPARED:
                components[name] = None
            else:
                components[name] = _component(folder / name, {"diffusers": diffusers, "transformers": transformers}, *value)
        parameters = kind._get_signature_types()
        components = {name: value for name, value in components.items() if name in parameters}
        pipe = kind(**components | ({"requires_safety_checker": False} if "safety_checker" in components else {}))
    except Exception as error:  # nearly anything, for configurations that are not right
        raise InputError(f"{folder} describes no pipeline that can be built here: {type(error).__name__}: {error}") from error
    return _prepared(pipe, dtype)


def _component(folder: Path, libraries: dict[str, Any], library: str, name: str) -> Any:
    if library not in libraries:
        raise InputError(f"{folder.name} is a {library}.{name}, which neither diffusers nor transformers has")
    kind = getattr(libraries[library], name)
    is_network: bool = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not is_network:
        return kind.from_pretrained(folder)  # a tokenizer or a scheduler
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        config = kind.config_class.from_pretrained(folder)
        return kind._from_config(config)


def _on_meta(pipe: Any, dtype: torch.dtype) -> Any:
    """A copy of a pipeline whose networks hold no numbers."""
    components = {}
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            # Deep copies of weights would need their memory: each becomes a tensor without numbers before.
            memo = {id(tensor): _emptied(tensor) for tensor in (*part.parameters(), *part.buffers())}
            components[name] = copy.deepcopy(part, memo)
        else:
            components[name] = part
    own = {name: value for name, value in pipe.config.items() if name in type(pipe)._get_signature_types() and name not in components}
    made = _prepared(type(pipe)(**components | own), dtype)
    for denoiser in denoisers_of(made):
        if hasattr(denoiser, "peft_config"):
            lora.detach(made)
    return made


def _emptied(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _prepared(pipe: Any, dtype: torch.dtype) -> Any:
    """In evaluation mode, in its precision, and computing beside its networks on the CPU."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            for module in part.modules():
                for name, value in _constants(module).items():
                    setattr(module, name, tree_map_only(Tensor, _without_numbers, value))
            nn.Module.to(part.eval(), dtype)  # diffusers' own warns of layers that are better left in float32
            if callable(choose := getattr(part, "set_attn_implementation", None)):
                choose("eager")  # others look at the numbers of masks
    on_cpu = property(lambda _: torch.device("cpu"))
    pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {"_execution_device": on_cpu, "device": on_cpu})
    return pipe


def _constants(module: nn.Module) -> dict[str, Any]:
    """Attributes that hold tensors and are neither weights nor buffers: tables of positions."""
    return {name: value for name, value in vars(module).items() if _tensors(value) and name not in ("_parameters", "_buffers", "_modules")}


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


# --- counting ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Calls:
    """What one run of a pipeline calls."""

    active: list[Kept]
    """Of each call of a denoiser with gradients."""
    decoder: Kept
    num_calls: int = 0
    images: tuple[int, ...] = ()
    """[B, 3, H, W]"""


def measured_calls(
    pipe: Any, prompts: Sequence[str], rollout: Rollout, autocast: torch.dtype | None = None, **call_arguments: Any
) -> Calls:
    """Run a pipeline that ``meta_pipeline`` made, and count what its networks would keep. ``autocast``: the dtype of the loop's, if any."""
    calls = Calls([], Kept(0, 0, 0))
    seen: dict[Any, Any] = {}

    def denoiser(network: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def counted_call(*args: Any, **kwargs: Any) -> Any:
            calls.num_calls += 1
            active = torch.is_grad_enabled()
            key = (id(network), active, *_shapes((args, kwargs)))
            if key not in seen:
                seen[key] = counted(network, forward, args, kwargs, active, autocast)
            kept, output = seen[key]
            if active:
                calls.active.append(kept)
            return _with_numbers(output, active)

        return counted_call

    def decode(*args: Any, **kwargs: Any) -> Any:
        in_float32 = pipe.vae.dtype == torch.float32
        if in_float32:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.float(), (args, kwargs))
        calls.decoder, output = counted(pipe.vae, original, args, kwargs, True, None if in_float32 else autocast)
        shape = output[0].shape
        calls.images = (shape[0], 3, *shape[-2:])  # a video of one frame is an image
        return _with_numbers(output, True)

    original = pipe.vae.decode
    with ExitStack() as stack:
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name.startswith("text_encoder"):
                stack.enter_context(replaced(part, "forward", _on_shapes(part.forward)))
        for network in denoisers_of(pipe):
            stack.enter_context(replaced(network, "forward", denoiser(network, network.forward)))
        stack.enter_context(replaced(pipe.vae, "decode", decode))
        call = stack.enter_context(
            differentiable(pipe, steps=rollout.steps, active=rollout.grad_steps, detach_input=rollout.detach_input, stop_at=rollout.stop_at)
        )
        called(pipe, call, prompts, rollout.steps, range(len(prompts)), call_arguments)
    return calls


def counted(
    network: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any, active: bool, autocast: torch.dtype | None = None
) -> tuple[Kept, Any]:
    """What a call keeps without and with checkpointing, and its output on the meta device."""
    own = storages(network)
    args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
    with torch.device("meta"), _FlashAttention(), nullcontext() if autocast is None else _Autocast(autocast):
        if not active:
            with torch.no_grad():
                return Kept(0, 0, 0), call(*args, **kwargs)
        with saved_tensors(own) as plain:
            output = call(*args, **kwargs)
        if not getattr(network, "_supports_gradient_checkpointing", False):
            return Kept(plain.num_bytes, plain.num_bytes, 0), output
        recomputed = 0

        def recompute_later(module: Callable[..., Any], *inputs: Any) -> Any:
            nonlocal recomputed
            for tensor in inputs:
                if isinstance(tensor, Tensor):
                    kept.add(tensor)
            with saved_tensors(own) as block:
                result = module(*inputs)
            recomputed = max(recomputed, block.num_bytes)
            return result

        network.enable_gradient_checkpointing(recompute_later)  # type: ignore[operator]
        try:
            with saved_tensors(own) as kept:
                call(*args, **kwargs)
        finally:
            network.disable_gradient_checkpointing()  # type: ignore[operator]
    return Kept(plain.num_bytes, kept.num_bytes, recomputed), output


def storages(network: nn.Module) -> set[int]:
    """Of weights, buffers and constants: what is in memory anyway."""
    constants = [tensor for module in network.modules() for value in _constants(module).values() for tensor in _tensors(value)]
    return {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers(), *constants)}


class SavedTensors:
    """The memory of what autograd saves: each storage once, however many tensors are views of it."""

    def __init__(self, own: set[int]) -> None:
        self.own = own
        """Storages that are there anyway."""
        self.storages: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self.storages[storage._cdata] = storage  # alive, so that no other takes its place
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


@contextmanager
def saved_tensors(own: set[int]) -> Iterator[SavedTensors]:
    """Count what autograd saves in the block, except storages (``UntypedStorage._cdata``) that are there anyway."""
    saved = SavedTensors(own)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved


class _FlashAttention(TorchFunctionMode):
    """Attention keeps queries, keys, values, output and one number for each query, as fused kernels do; on the meta device it has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            values = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(values["query"], values["key"], values["value"])
        return func(*args, **(kwargs or {}))


_IN_HALF = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.__matmul__,
}
_IN_FLOAT32 = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax}


class _Autocast(TorchFunctionMode):
    """Casts as ``torch.autocast`` does on CUDA: norms keep their inputs in float32. There is none for the meta device."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = self.dtype if func in _IN_HALF else torch.float32 if func in _IN_FLOAT32 else None
        if dtype is not None:
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, (args, kwargs))
        return func(*args, **(kwargs or {}))


class _UnknownNumbers(TorchFunctionMode):
    """Answers what code asks of numbers, which shapes do not have: masks leave out no token, and pixels are in range."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__:
            return True
        return 0.0 if func is Tensor.__float__ else func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # The kernels write [B, L, heads, D], so that what follows need not copy it.
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("shapes alone have no gradients")


def _on_shapes(call: Callable[..., Any]) -> Callable[..., Any]:
    """A network's call for tensors with numbers, which answers with zeros."""

    @functools.wraps(call)
    def answered(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        with torch.no_grad(), torch.device("meta"), _UnknownNumbers():
            return _with_numbers(call(*args, **kwargs), False)

    return answered


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return empty.requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else empty


def _with_numbers(output: Any, with_gradients: bool) -> Any:
    def zeros(tensor: Tensor) -> Tensor:
        made = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
        return made.requires_grad_() if with_gradients and made.is_floating_point() else made

    return tree_map_only(Tensor, zeros, output)


def _shapes(values: Any) -> list[Any]:
    return [(tuple(tensor.shape), tensor.dtype, tensor.requires_grad) for tensor in _tensors(values)]


# --- scorers -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ScorerMemory:
    name: str
    weights: int | None
    """None where the sizes of its network are not known without its weights."""
    kept: int = 0


def _scorer_memory(model: str | Scorer[Any], images: tuple[int, ...], prompts_per_image: int) -> list[_ScorerMemory]:
    """Of each single scorer: bytes of its weights, and of what it keeps for the gradients of ``images`` [B, 3, H, W]."""
    if isinstance(model, Scorer):
        return [_measured_scorer(_copy_on_meta(single), single.name, images, prompts_per_image) for single in single_scorers([model])]
    network = _network_of(model)
    if network is None:
        return [_ScorerMemory(model, None)]
    if isinstance(network, TwoTowerScorer):
        return [_measured_scorer(network, model, images, prompts_per_image)]
    size = network.config.vision_config.image_size
    pixels = torch.empty(images[0], 3, size, size, device="meta", requires_grad=True)
    with saved_tensors(storages(network)) as kept, torch.device("meta"), _FlashAttention():
        network.vision_model(pixel_values=pixels)
    return [_ScorerMemory(model, num_bytes(network), kept.num_bytes)]


def _measured_scorer(scorer: Any, name: str, images: tuple[int, ...], prompts_per_image: int) -> _ScorerMemory:
    if not isinstance(scorer, TwoTowerScorer):
        return _ScorerMemory(name, num_bytes(scorer))
    pixels = torch.empty(images, device="meta", requires_grad=True)
    tokens = scorer.prepare.tokenizer(["a cat in a hat"])
    ids, mask = (tensor.to("meta").expand(1, prompts_per_image, -1) for tensor in (tokens.ids, tokens.mask))
    with ExitStack() as stack:
        for head in scorer.modules():
            if isinstance(head, LinearHead):  # small, and it leaves autocast, which the meta device does not have
                stack.enter_context(replaced(head, "forward", lambda features: features[..., :1].float()))
        kept = stack.enter_context(saved_tensors(storages(scorer)))
        for mode in (torch.device("meta"), _FlashAttention(), _UnknownNumbers()):
            stack.enter_context(mode)
        scorer.score_pairs(scorer.encode_images(scorer.prepare.transform.crop_tensor(pixels)), ids, mask)
    return _ScorerMemory(name, num_bytes(scorer), kept.num_bytes)


def _copy_on_meta(scorer: Scorer[Any]) -> Scorer[Any]:
    return copy.deepcopy(scorer, {id(tensor): _emptied(tensor) for tensor in (*scorer.parameters(), *scorer.buffers())}).requires_grad_(
        False
    )


def _network_of(model: str) -> Any:
    """A scorer, or the CLIP of one, on the meta device, of a registered name or a folder; None where only its weights say its sizes."""
    from image_reward.scorers.imagereward import ImageRewardScorer

    spec = spec_of(model)
    config: Any = None
    if spec is not None and spec.config is not None:
        config = spec.config
    elif spec is not None and not spec.packaged:
        file = spec.files.get("config") or (_CLIP_H if model.startswith("HPSv2") else None)
        if file is None:
            return None
        path = fetch(file)
        return _clip(path) if read_json(path).get("model_type") == "clip" else None
    else:
        folder = Path(str(files("image_reward").joinpath(spec.packaged))) if spec is not None else Path(model)
        if spec is None and not folder.exists() and "/" not in model:
            find(model)  # raises what says how the name is wrong
        path = folder / CONFIG_NAME
        if not path.is_file():
            return None
        values = read_json(path)
        if values.get("model_type") == "clip":
            return _clip(path)
        if values.get("format") != "image-reward":
            return None
        config = ScorerConfig.from_values(values, str(path))
    with torch.device("meta"):
        network = ImageRewardScorer.new_network(config, model)
    return ImageRewardScorer.of(network, config, name=model).eval().requires_grad_(False)


def _clip(config: Path) -> nn.Module:
    values = read_json(config)
    values.pop("image_reward", None)
    return clip_network(clip_config_from_json(values)).requires_grad_(False)
