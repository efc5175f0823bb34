"""The one table of scorers that have a name, and the way from what a user gives to a scorer."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from image_reward.checkpoints import CONFIG_NAME, WEIGHTS_NAME, HubFile, ScorerConfig, fetch, find_local, read_checkpoint
from image_reward.errors import CheckpointError, DownloadError, UnknownModelError
from image_reward.images import ImageOptions
from image_reward.prompts import LongPrompts
from image_reward.scorers.base import Scorer
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.precision import compile_scorer, quantize

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSpec:
    """A scorer that can be loaded by name."""

    description: str
    licence: str
    file: HubFile | None
    """Where it is downloaded from; None for a model in this package."""
    config: ScorerConfig | None = None
    """For a file that carries none."""
    packaged: str = ""
    """The folder of this package that holds it."""
    notice: str = ""
    """What whoever uses it must know, in one line."""

    @property
    def folder(self) -> Path:
        """Where a model in this package is."""
        return Path(str(files("image_reward").joinpath(self.packaged)))

    def local_path(self) -> Path | None:
        """Where it is on this machine, if it is."""
        return find_local(self.file) if self.file else self.folder

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return self.file.size if self.file else (self.folder / WEIGHTS_NAME).stat().st_size


MODELS: dict[str, ModelSpec] = {
    "ImageReward-mini": ModelSpec(
        description="a careful person's preference among drawn shapes; a small model to try things with",
        licence="Apache-2.0",
        file=None,
        packaged="assets/ImageReward-mini",
        notice="ImageReward-mini knows only drawn shapes; for pictures use --model ImageReward-v1.0, which is downloaded once (1.8 GB)",
    ),
    "ImageReward-v1.0": ModelSpec(
        description="human preference for an image given its prompt (Xu et al., NeurIPS 2023)",
        licence="Apache-2.0",
        file=HubFile(
            repo="THUDM/ImageReward",
            name="ImageReward.pt",
            size=1_786_880_927,
            sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
            original_cache="~/.cache/ImageReward",
        ),
        config=ScorerConfig(),
    ),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(model: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> tuple[Path, str, ScorerConfig | None]:
    """A registered name, a path or a hub id -> the local path (fetched and verified if need be), a name to show, the registered config.

    A name wins over a file of the same name; write ``./NAME`` for the file.
    """
    given = os.fspath(model)
    if given in MODELS:
        spec = MODELS[given]
        if spec.file is None:
            return spec.folder, given, spec.config
        return fetch(spec.file, Path(cache_dir) if cache_dir else None), given, spec.config
    path = Path(given).expanduser()
    if given and path.exists():
        return path, path.name if path.is_dir() else path.stem, None
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        raise FileNotFoundError(f"no such checkpoint: {given}")
    if _HUB_ID.fullmatch(given):
        return _fetch_folder(given), given, None
    near = difflib.get_close_matches(given.lower(), [name.lower() for name in MODELS], n=1, cutoff=0.4)
    hint = next((f" Did you mean {name}?" for name in MODELS if near and name.lower() == near[0]), "")
    raise UnknownModelError(
        f"no model, file or folder is called {given!r}.{hint} Known names: {', '.join(MODELS)}; a hub id has the form OWNER/NAME"
    )


def _fetch_folder(repo: str) -> Path:
    """A model of this package's own format from the hub, or the hub cache."""
    from huggingface_hub import hf_hub_download

    try:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            path = Path(hf_hub_download(repo, name))
    except Exception as error:  # httpx and hub errors share no base class
        raise DownloadError(
            f"{repo} is neither a file here nor a model that could be downloaded: {error}. "
            f"A model of this package is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}; fetch it elsewhere and give its path"
        ) from error
    return path.parent


def load(
    model: str | os.PathLike[str] = "ImageReward-v1.0",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    config: ScorerConfig | str | os.PathLike[str] | None = None,
    orient: bool = False,
    allow_truncated: bool = False,
    max_pixels: int | None = ImageOptions.max_pixels,
    min_side: int = ImageOptions.min_side,
    long_prompts: LongPrompts = "truncate",
    batch_size: int | None = None,
    exact: bool = False,
    compile: bool = False,
) -> Scorer[Any]:
    """Load a scorer, ready to score: in evaluation mode, its weights without gradients.

    Args:
        model: a registered name (``image-reward models list``), a ``.pt`` of the released layout, a ``.safetensors``, a folder written by
            ``save_pretrained``, or the hub id of such a folder.
        device: "cpu", "cuda", "cuda:1", …; by default CUDA where there is one, else the CPU.
        dtype: "float32" (default), "bfloat16" or "float16" for the towers, or "int8" for the image tower; the head is always float32.
        config: for weights that carry no config and are not of the released sizes: a ``ScorerConfig`` or a config.json.
        orient, allow_truncated, max_pixels, min_side: see ``image_reward.images.ImageOptions``.
        long_prompts: "truncate" (as the original, with a warning) or "error".
        batch_size: images at once; by default 8 on a CPU, 64 elsewhere. Rewards do not depend on it, beyond rounding.
        exact: encode images one at a time in the original's order of operations, so that float32 rounds as it did there. Slower; for
            repeating published numbers to the last digit with weights that amplify rounding.
        compile: compile the image tower when it first encodes images; see ``scorers.precision``.

    Raises:
        UnknownModelError, FileNotFoundError, DownloadError: there is nothing to load; the message says where it should come from.
        CheckpointError: the file is damaged or does not fit the network.
    """
    scorer = build(
        ImageRewardScorer,
        model,
        config=config,
        options=ImageOptions(orient, allow_truncated, max_pixels, min_side),
        long_prompts=long_prompts,
    )
    scorer.network.blip.visual_encoder.original_order = exact
    return _place(scorer, device, dtype, batch_size, compile).requires_grad_(False)


def build(
    kind: type[ImageRewardScorer],
    model: str | os.PathLike[str],
    *,
    config: ScorerConfig | str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """Find, verify and strictly load a checkpoint into a scorer class."""
    path, name, registered = locate(model, cache_dir)
    tensors, carried = read_checkpoint(path)
    if config is not None and not isinstance(config, ScorerConfig):
        config = ScorerConfig.from_json(Path(config).read_text(encoding="utf-8"), os.fspath(config))
    known = config or carried or registered
    if known is not None and known.architecture != "ImageReward":
        raise CheckpointError(f"{path} is of architecture {known.architecture!r}, which this release does not know")
    hint = "" if known else ". It carries no config, so it was taken for the released layout; give its config if it is of another size"
    return kind.from_tensors(tensors, known or ScorerConfig(), str(path), hint, name=name, **options)


def _place(
    scorer: Any, device: str | torch.device | None, dtype: str | torch.dtype | None, batch_size: int | None, compiled: bool = False
) -> Any:
    quantized = dtype in ("int8", torch.int8)
    if quantized:
        dtype = torch.float32  # of all that is not multiplied in int8
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)} and int8, not {dtype!r}")
        dtype = DTYPES[dtype]
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} and int8, not {dtype}")
    chosen = choose_device(device)
    scorer.cast(dtype or torch.float32)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    scorer.batch_size = batch_size or (8 if chosen.type == "cpu" else 64)
    scorer.to(chosen)
    if quantized:
        quantize(scorer)
    if compiled:
        compile_scorer(scorer)
    return scorer


def choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"no device is called {device!r}; try 'cpu' or 'cuda'") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices here; use 'cpu'")
    return chosen
