"""From what a user gives to a scorer: a name, a path or a hub id is found, built, and placed on a device."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from image_reward.addresses import Address
from image_reward.client import Client, is_service
from image_reward.config import (
    AESTHETIC_25_NAME,
    CHAT_NAMES,
    CONFIG_NAME,
    GENERATION_NAME,
    HEAD_NAME,
    HPSV3_NAME,
    MPS_NAME,
    PICKLE_NAME,
    PREPROCESSOR_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
    ScorerConfig,
)
from image_reward.downloads import INDEX_SUFFIX, HubFile, fetch_newest, is_copy, shards_of
from image_reward.errors import CheckpointError, DownloadError, InputError, UnknownModelError
from image_reward.files import read_json
from image_reward.models.linear import check_variable
from image_reward.scorers.base import Scorer
from image_reward.scorers.build import (
    build_aesthetic25,
    build_clip,
    build_ensemble,
    build_hpsv3,
    build_imagereward,
    build_mps,
    build_onnx,
    build_unified_reward,
    build_vqascore,
    checkpoint_of,
)
from image_reward.scorers.ensemble import FORMAT as ENSEMBLE_FORMAT
from image_reward.scorers.ensemble import models_of
from image_reward.scorers.onnx import OnnxScorer
from image_reward.scorers.precision import compile_scorer, is_quantized, quantize
from image_reward.scorers.registry import MODELS, package_of, scorer_entry_points, spec_of
from image_reward.scorers.spec import Build, LoadOptions, Paths
from image_reward.scorers.together import single_scorers
from image_reward.types import ImageOptions, LongPrompts

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# --- finding -------------------------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of model folder."""

    files: tuple[tuple[str, ...], ...]
    """What is fetched of a hub repository besides config.json: of each group the first that is there, if any."""
    build: Build


_CHAT_FILES = (
    (WEIGHTS_NAME, WEIGHTS_NAME + INDEX_SUFFIX),
    (TOKENIZER_NAME,),
    (GENERATION_NAME,),
    (PREPROCESSOR_NAME,),
    *((name,) for name in CHAT_NAMES),
)

KINDS: dict[str, Kind] = {
    "image-reward": Kind(((WEIGHTS_NAME,),), build_imagereward),
    "clip": Kind(
        (
            (WEIGHTS_NAME, "pytorch_model.bin"),
            (PREPROCESSOR_NAME,),
            (TOKENIZER_NAME, "vocab.json"),
            ("merges.txt",),
            (HEAD_NAME,),
        ),
        build_clip,
    ),
    "siglip": Kind(((WEIGHTS_NAME,), (PREPROCESSOR_NAME,), (AESTHETIC_25_NAME,)), build_aesthetic25),
    "qwen2_vl": Kind(((HPSV3_NAME, WEIGHTS_NAME), (TOKENIZER_NAME,)), build_hpsv3),
    "qwen2_5_vl": Kind(_CHAT_FILES, build_vqascore),
    "qwen3_vl": Kind(_CHAT_FILES, build_vqascore),
    "unified-reward": Kind(_CHAT_FILES, build_unified_reward),
    "clip_t5": Kind(
        ((WEIGHTS_NAME, WEIGHTS_NAME + INDEX_SUFFIX, PICKLE_NAME, PICKLE_NAME + INDEX_SUFFIX), (TOKENIZER_NAME,)), build_vqascore
    ),
    ENSEMBLE_FORMAT: Kind((), build_ensemble),
}
"""What the config.json of a folder or a hub repository says it is, as ``format`` or ``model_type``."""

_WITHOUT_CONFIG: Mapping[str, Build] = {HPSV3_NAME: build_hpsv3, MPS_NAME: build_mps, AESTHETIC_25_NAME: build_aesthetic25}
"""Weights by whose name a folder without a config.json is known. Whoever reads it says what it lacks."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class FoundModel(NamedTuple):
    """What ``find`` makes of a name, a path or a hub id."""

    paths: Paths
    name: str
    """To show."""
    config: ScorerConfig | None
    """The one in the table of names."""
    build: Build

    def built(self, options: LoadOptions, is_member: bool = False) -> Scorer[Any]:
        """The scorer, in float32 on the CPU. One that is a member of another has no members itself."""

        def load_member(model: str) -> Scorer[Any]:
            return find(model).built(options, is_member=True)

        own = replace(options, name=self.name, registered=self.config, load_member=None if is_member else load_member)
        return self.build(self.paths, own)


def find(model: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> FoundModel:
    """A registered name, a path or a hub id -> local files, fetched and verified if need be, and what builds a scorer from them.

    A name wins over a file of the same name; write ``./NAME`` for the file.
    """
    name = os.fspath(model)
    if spec := spec_of(name):
        return FoundModel(spec.fetch(Path(cache_dir) if cache_dir else None), name, spec.config, spec.build)
    path, is_here = _path_of(model)
    if is_here:
        return _find_here(path, name)
    if path.suffix.lower() in (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".onnx"):
        raise FileNotFoundError(f"no such checkpoint: {name}")
    if _HUB_ID.fullmatch(name):
        return _find_on_hub(name)
    points = scorer_entry_points()
    if name in points:
        raise UnknownModelError(f"the scorer {name} of {package_of(points[name])} cannot be loaded: see the warning; update that package")
    names = [*MODELS, *points]
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1, cutoff=0.4)
    hint = next((f" Did you mean {known}?" for known in names if near and known.lower() == near[0]), "")
    raise UnknownModelError(
        f"no model, file or folder is called {name!r}.{hint} Known names: {', '.join(names)}; a hub id has the form OWNER/NAME"
    )


def _path_of(model: str | os.PathLike[str]) -> tuple[Path, bool]:
    """What a model is as a path, and whether that exists."""
    local = Address.parse(model, allow_https=True).local
    try:
        path = local.expanduser()
        return path, bool(os.fspath(model)) and path.exists()
    except (OSError, RuntimeError, ValueError):  # no file can have such a name, or nobody such a home
        return local, False


def without_gradients(model: str | os.PathLike[str], is_member: bool = False) -> list[str]:
    """The names of the scorers of a model that have no ``rewards``, as far as can be said without reading or fetching weights."""
    name = os.fspath(model)
    if spec := spec_of(name):
        builds = {name: spec.build}
    else:
        path, is_here = _path_of(model)
        if is_here:
            found = _find_here(path, name)
            if found.build is build_ensemble:
                if is_member:
                    return []  # it cannot be loaded
                file = found.paths.get("config") or path / CONFIG_NAME
                return [each for member in models_of(file) for each in without_gradients(member, True)]
            builds = {found.name: found.build}
        else:
            builds = {name: build_unified_reward} if _HUB_ID.fullmatch(name) and _is_judge(name) else {}
    return [each for each, build in builds.items() if build in (build_onnx, build_unified_reward)]


def locate(model: str | os.PathLike[str]) -> tuple[Path, str, ScorerConfig | None]:
    """As ``find``, for whoever reads checkpoints: the file of weights or the folder, a name to show, the registered config."""
    paths, name, registered, _ = find(model)
    return checkpoint_of(paths), name, registered


def _published_config(path: Path) -> ScorerConfig | None:
    """What the table of names says of the published checkpoint that a file is a copy of, if it is one."""
    return next((spec.config for spec in MODELS.values() if spec.config and any(is_copy(path, file) for file in spec.files.values())), None)


def _kind_of(config: Path) -> Kind:
    try:
        values = read_json(config)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; correct it, or download it again") from None
    kind = (values.get("format") or values.get("model_type")) if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(
            f'{config} is not of a known kind of model: its "format" or "model_type" is {kind!r:.60}; known are ' + ", ".join(KINDS)
        )
    return KINDS[kind]


def _find_here(path: Path, asked: str) -> FoundModel:
    """A file or folder of this machine."""
    name = path.resolve().name if path.is_dir() else path.stem
    name = asked if name in MODELS else name  # a folder called CLIP need not hold that CLIP
    if path.is_dir():
        config = path / CONFIG_NAME
        # A folder of which nothing is known goes to ImageReward's reader, which says what it lacks.
        known = (build for weights, build in _WITHOUT_CONFIG.items() if (path / weights).is_file())
        return FoundModel({"folder": path}, name, None, _kind_of(config).build if config.exists() else next(known, build_imagereward))
    if path.suffix.lower() == ".onnx":
        return FoundModel({"onnx": path}, name, None, build_onnx)
    if path.suffix.lower() != ".json":
        return FoundModel({"weights": path}, name, _published_config(path), build_imagereward)
    kind = _kind_of(path)
    if kind.files:
        raise CheckpointError(f"{path} is the config of a model whose other files are beside it; give the folder {path.parent}")
    return FoundModel({"config": path}, name, None, kind.build)


def _find_on_hub(repo: str) -> FoundModel:
    """A model folder from the hub, or the hub cache."""
    import huggingface_hub

    if names := _names_of_weights_in(repo):
        raise UnknownModelError(
            f"{repo} is not a model folder, but what {' and '.join(names)} come{'s' * (len(names) == 1)} from; give that name"
        )
    is_judge = _is_judge(repo)
    what = f"A model of this package is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}; fetch it elsewhere and give its path"
    try:
        config = fetch_newest(HubFile(repo, CONFIG_NAME))
        if config is None:
            if huggingface_hub.is_offline_mode():
                raise DownloadError("it is not on this machine and offline mode (HF_HUB_OFFLINE) is on")
            raise DownloadError(f"it has no {CONFIG_NAME}")
        kind = _kind_of(config)
        for alternatives in kind.files:
            # Whoever reads the folder says what it lacks.
            path = next(filter(None, (fetch_newest(HubFile(repo, name)) for name in alternatives)), None)
            for shard in shards_of(path) if path and path.name.endswith(INDEX_SUFFIX) else ():
                fetch_newest(HubFile(repo, shard))
    except DownloadError as error:
        raise DownloadError(f"{repo} is neither a file here nor a model that could be downloaded: {error}. {what}") from error
    return FoundModel({"folder": config.parent}, repo, None, build_unified_reward if is_judge else kind.build)


_JUDGES = "codegoat24/unifiedreward"


def _is_judge(repo: str) -> bool:
    """Whether a repository is that of a judge, whose config says no more than the model that it was tuned from.

    Raises ``UnknownModelError`` for judges that write answers of another form: what they were tuned from is not what they are for.
    """
    if not repo.lower().startswith(_JUDGES):
        return False
    judges = {name: spec for name, spec in MODELS.items() if spec.build is build_unified_reward}
    if not any(repo.lower() == file.repo.lower() for spec in judges.values() for file in spec.files.values() if isinstance(file, HubFile)):
        raise UnknownModelError(
            f"{repo} is a UnifiedReward that is asked, and answers, in another form than those which are known: {', '.join(judges)}"
        )
    return True


def _is_from(repo: str, file: object) -> bool:
    return isinstance(file, HubFile) and file.repo == repo


def _names_of_weights_in(repo: str) -> list[str]:
    """The registered models whose weights come from this repository of the hub, which is not itself a model folder."""
    return [
        name for name, spec in MODELS.items() if _is_from(repo, spec.files.get("weights")) and not _is_from(repo, spec.files.get("config"))
    ]


# --- loading -------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode(False)  # weights that are made in that mode could never give gradients
def load(
    model: str | os.PathLike[str] | FoundModel = "ImageReward-v1.0",
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
    shared: dict[Hashable, Any] | None = None,
) -> Scorer[Any]:
    """Load a scorer, ready to score: in evaluation mode, its weights without gradients.

    Args:
        model: a registered name (``image-reward models list``), a ``.pt`` of the released layout, a ``.safetensors``, a folder written by
            ``save_pretrained``, a ``.onnx`` that ``image-reward export`` wrote, the JSON file of an ensemble, the hub id of a model
            folder, or the address of a service (``http://host:8000``), for which a ``Client`` is returned: it has a scorer's methods.
        device: "cpu", "cuda", "cuda:1", …; by default CUDA where there is one, else the CPU. "auto" spreads a network that may be too large
            for one (HPSv3, VQAScore, UnifiedReward) over all CUDA devices and, for what is left, the CPU; other scorers then go where they
            go by default.
        dtype: "float32", "bfloat16" or "float16" for the towers, or "int8" for the image tower; the head is always float32. By default
            float32, or bfloat16 for networks of billions of weights (HPSv3, VQAScore, UnifiedReward).
        config: for weights that carry no config and are not of the released sizes: a ``ScorerConfig`` or a config.json.
        orient, allow_truncated, max_pixels, min_side: see ``image_reward.images.ImageOptions``.
        long_prompts: "truncate" (as the original, with a warning) or "error".
        batch_size: images at once; by default 8 on a CPU, 64 elsewhere (HPSv3, VQAScore, UnifiedReward: 8). Rewards do not depend on it,
            beyond rounding.
        exact: encode images one at a time in the original's order of operations, so that float32 rounds as it did there. Slower; for
            repeating published numbers to the last digit with weights that amplify rounding. Only BLIP's image tower has such an order.
        compile: compile the image tower when it first encodes images; see ``scorers.precision``.
        shared: one dict for several calls, so that their scorers load what they have in common once (see ``load_all``).

    Raises:
        UnknownModelError, FileNotFoundError, DownloadError: there is nothing to load; the message says where it should come from.
        AddressError: the model is in an object store or on the web, and only files of this machine are loaded.
        ServiceError: the service does not answer, or not to the token in the environment variable IMAGE_REWARD_TOKEN.
        CheckpointError: the file is damaged or does not fit the network.
    """
    if isinstance(model, str) and is_service(model):
        if (device, dtype, config, batch_size) != (None,) * 4 or exact or compile:
            raise InputError(f"{model} is a service, which was started with its own device, dtype and options; leave them out")
        client = Client(model)
        client.models()
        return client  # type: ignore[return-value] # it answers as a scorer does
    chosen_dtype = None if dtype == "int8" else _dtype_of(dtype)
    options = LoadOptions(
        name="",
        dtype=chosen_dtype,
        devices="auto" if device == "auto" else choose_device(device),
        images=ImageOptions(orient, allow_truncated, max_pixels, min_side),
        long_prompts=long_prompts,
        config=config,
        exact=exact,
        shared={} if shared is None else shared,
    )
    found = model if isinstance(model, FoundModel) else find(model)
    return _place(found.built(options), device, dtype, batch_size, compile).requires_grad_(False)


def load_all(
    models: Sequence[str | os.PathLike[str]],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    taken: Sequence[str] = (),
    **options: Any,
) -> list[Scorer[Any]]:
    """Several scorers, which load the files and towers that they have in common once. Options and errors are those of ``load``.

    ``score_together`` then also computes with them once. Scorers of one name, such as runs/a/model and runs/b/model, or with a name in
    ``taken``, are named as in ``models``.
    """
    shared: dict[Hashable, Any] = {}
    found = [find(model) for model in models]
    names = [*taken, *(model.name for model in found)]
    named = [one._replace(name=os.fspath(model)) if names.count(one.name) > 1 else one for model, one in zip(models, found, strict=True)]
    return [load(one, device, dtype, shared=shared, **options) for one in named]


def _place(
    scorer: Any, device: str | torch.device | None, dtype: str | torch.dtype | None, batch_size: int | None, compiled: bool = False
) -> Any:
    quantized = dtype == "int8"
    chosen_dtype = torch.float32 if quantized else _dtype_of(dtype)  # float32: of all that is not multiplied in int8
    if device == "auto":
        device = None
    check_variable()
    parts = single_scorers([scorer])
    on_cpu = next((part for part in parts if isinstance(part, OnnxScorer)), None)
    chosen = choose_device("cpu" if on_cpu and device is None else device)
    if on_cpu and chosen.type != "cpu":
        raise InputError(f"{on_cpu.name} is an ONNX file, which is computed on the CPU; for {device} load the model it was exported from")
    if on_cpu and quantized:
        on_cpu.cast(torch.int8)  # raises
    for part in parts:
        if not is_quantized(part):  # its tower may be another's that was placed before
            part.cast(chosen_dtype or part.default_dtype)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if not any(part.is_spread for part in parts):
        scorer.to(chosen)
    for part in parts:
        part.batch_size = batch_size or part.default_batch_sizes[chosen.type != "cpu"]
        if not part.is_spread:
            part.to(chosen)
        if quantized:
            quantize(part)
        if compiled:
            compile_scorer(part)
    return scorer


def _dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and known not in DTYPES.values():
        raise InputError(
            f"dtype must be one of {', '.join(DTYPES)} and int8, not {dtype if isinstance(dtype, torch.dtype) else repr(dtype)}"
        )
    return known


def choose_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"no device is called {device!r}; try 'cpu' or 'cuda'") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device} was asked for, but PyTorch sees {torch.cuda.device_count()} CUDA devices here; use 'cpu'")
    try:
        torch.empty(0, device=chosen)
    except Exception:  # each kind of device has its own, where PyTorch was built without it
        raise InputError(f"this PyTorch was built without {chosen.type}, or finds no such device here; use 'cpu'") from None
    return chosen
