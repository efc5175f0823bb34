"""The one table of scorers that have a name, and the way from what a user gives to a scorer."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from image_reward.checkpoints import CONFIG_NAME, WEIGHTS_NAME, blip_pretraining_weights, read_checkpoint
from image_reward.config import ScorerConfig
from image_reward.downloads import HubFile, WebFile, fetch, fetch_newest, find_local
from image_reward.errors import CheckpointError, DownloadError, InputError, UnknownModelError
from image_reward.files import read_json
from image_reward.images import ImageOptions
from image_reward.prompts import LongPrompts
from image_reward.scorers.base import Scorer
from image_reward.scorers.blip import BlipMatchingScorer, BlipScorer
from image_reward.scorers.clip import (
    HEAD_NAME,
    PREPROCESSOR_NAME,
    TOKENIZER_NAME,
    AestheticScorer,
    ClipScorer,
    ClipSettings,
    clip_from_folder,
    clip_from_state_dict,
)
from image_reward.scorers.ensemble import FORMAT as ENSEMBLE_FORMAT
from image_reward.scorers.ensemble import Ensemble
from image_reward.scorers.imagereward import ImageRewardScorer
from image_reward.scorers.precision import compile_scorer, is_quantized, quantize
from image_reward.scorers.together import single_scorers

Thing = TypeVar("Thing")

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENTRY_POINTS = "image_reward.scorers"
"""The entry point group in which other packages name their ``ModelSpec``s."""


@dataclass(frozen=True)
class LoadOptions:
    """What ``load`` hands to whatever builds a scorer."""

    name: str
    """The name that the scorer shows."""
    images: ImageOptions = field(default_factory=ImageOptions)
    long_prompts: LongPrompts = "truncate"
    config: ScorerConfig | str | os.PathLike[str] | None = None
    """The config that the user gave."""
    registered: ScorerConfig | None = None
    """The config in the table of names."""
    exact: bool = False
    shared: dict[Hashable, Any] = field(default_factory=dict)
    """What scorers that are loaded together have in common."""

    def once(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """What ``make`` returns, made only once for all scorers that are loaded together.

        The key says what it is and what it is made of, as in ``once(("CLIP", path), lambda: read_clip(path))``.
        """
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


Build = Callable[[tuple[Path, ...], LoadOptions], Scorer[Any]]
"""Builds a scorer in float32 on the CPU from the files of its ``ModelSpec``, in their order, or from the one file or folder given."""


@dataclass(frozen=True)
class ModelSpec:
    """A scorer that can be loaded by name."""

    description: str
    """What the score means, in one line."""
    licence: str
    """Of the weights."""
    range: str
    """The values that the score takes, in words."""
    build: Build
    files: tuple[HubFile | WebFile, ...] = ()
    """Where they are downloaded from."""
    config: ScorerConfig | None = None
    """For a file that carries none."""
    packaged: str = ""
    """The folder of this package that holds it, in place of ``files``."""
    notice: str = ""
    """What whoever uses it must know, in one line."""

    def local_paths(self) -> tuple[Path, ...] | None:
        """Where its files are on this machine, if they all are."""
        if self.packaged:
            return (self._folder,)
        found = tuple(path for file in self.files if (path := find_local(file)))
        return found if len(found) == len(self.files) else None

    def fetch(self, cache_dir: Path | None = None) -> tuple[Path, ...]:
        """Its verified files, downloaded if need be. Raises what ``downloads.fetch`` raises."""
        return (self._folder,) if self.packaged else tuple(fetch(file, cache_dir) for file in self.files)

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where it is not known before the download."""
        if self.packaged:
            return (self._folder / WEIGHTS_NAME).stat().st_size
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    @property
    def _folder(self) -> Path:
        return Path(str(files("image_reward").joinpath(self.packaged)))


# --- how each kind is built ----------------------------------------------------------------------------------------------------------


def build_imagereward(paths: tuple[Path, ...], options: LoadOptions, kind: type[ImageRewardScorer] = ImageRewardScorer) -> Any:
    """A checkpoint of the released layout, or a folder or file of this package's own format."""
    tensors, carried = read_checkpoint(paths[0])
    if blip_pretraining_weights(tensors) is not None:
        raise CheckpointError(f"{paths[0]} is one of BLIP's own checkpoints, which have no reward head; load it as BLIP or BLIP-ITM")
    given = options.config
    if given is not None and not isinstance(given, ScorerConfig):
        given = ScorerConfig.from_values(read_json(Path(given)), os.fspath(given))
    known = given or carried or options.registered
    if known is not None and known.architecture != "ImageReward":
        raise CheckpointError(f"{paths[0]} is of architecture {known.architecture!r}, which this release does not know")
    hint = "" if known else ". It carries no config, so it was taken for the released layout; give its config if it is of another size"
    scorer = kind.from_tensors(
        tensors,
        known or ScorerConfig(),
        str(paths[0]),
        hint,
        name=options.name,
        options=options.images,
        long_prompts=options.long_prompts,
    )
    scorer.set_exact(options.exact)
    return scorer


def build_blip(paths: tuple[Path, ...], options: LoadOptions, kind: Any = BlipScorer) -> Any:
    """One of BLIP's own checkpoints, of the large network."""
    _refuse_config(options)
    tensors = options.once(("tensors", paths[0].resolve()), lambda: read_checkpoint(paths[0])[0])
    scorer = kind.from_tensors(tensors, str(paths[0]), name=options.name, options=options.images, long_prompts=options.long_prompts)
    scorer.set_exact(options.exact)
    return scorer


def build_blip_matching(paths: tuple[Path, ...], options: LoadOptions) -> Any:
    return build_blip(paths, options, BlipMatchingScorer)


def build_ensemble(paths: tuple[Path, ...], options: LoadOptions) -> Ensemble:
    """An ensemble's JSON file. Its members are loaded with the same options and share what they have in common."""
    if options.config is not None:
        raise InputError("a config is for ImageReward checkpoints; give the members of an ensemble as folders, which carry theirs")
    file = paths[0] / CONFIG_NAME if paths[0].is_dir() else paths[0]

    def member(model: str) -> Scorer[Any]:
        found = find(model)
        if found.build is build_ensemble:  # which could be this one, again and again
            raise CheckpointError(f"the member {model} is an ensemble itself; give its members in its place")
        return _built(found, options)

    return Ensemble.from_json(file, member, options.name)


def build_clip(paths: tuple[Path, ...], options: LoadOptions) -> Any:
    """A folder of transformers' format that holds a CLIP, as this package wrote it or as any program did."""
    return _clip(paths[0], paths[0], options, None)


def build_openai_clip(paths: tuple[Path, ...], options: LoadOptions) -> ClipScorer:
    """OpenAI's CLIP in transformers' format, prompts and images handled as by OpenAI's program."""
    return _clip(_together(paths), _together(paths), options, ClipSettings(convention="openai"))


def build_aesthetic(paths: tuple[Path, ...], options: LoadOptions) -> AestheticScorer:
    """A head, and the files of the CLIP that it is on."""
    head, *clip = paths
    _refuse_config(options)
    base = build_openai_clip(tuple(clip), replace(options, name="CLIP"))  # the one that CLIP is, if both are loaded
    return AestheticScorer.on(base, read_checkpoint(head)[0], str(head), options.name)


def build_pickscore(paths: tuple[Path, ...], options: LoadOptions) -> ClipScorer:
    """A CLIP's config and weights, and the preprocessor and tokenizer of the CLIP that it was tuned from."""
    return _clip(_together(paths[:2]), _together(paths[2:]), options, ClipSettings(scaled=True))


def build_hpsv2(paths: tuple[Path, ...], options: LoadOptions) -> ClipScorer:
    """A file of OpenCLIP's names, and a tokenizer.json."""
    _refuse_config(options)
    settings = ClipSettings(convention="openai", fit="pad")
    return clip_from_state_dict(
        read_checkpoint(paths[0])[0],
        paths[1].parent,
        settings,
        str(paths[0]),
        activation="gelu",
        name=options.name,
        options=options.images,
        long_prompts=options.long_prompts,
    )


def _clip(folder: Path, processor: Path, options: LoadOptions, settings: ClipSettings | None) -> Any:
    _refuse_config(options)
    return options.once(
        ("CLIP", folder.resolve(), settings),
        lambda: clip_from_folder(
            folder, settings, processor=processor, name=options.name, options=options.images, long_prompts=options.long_prompts
        ),
    )


def _together(paths: Sequence[Path]) -> Path:
    """The one folder of some files."""
    folder = paths[0].parent
    for path in paths:
        if path.parent != folder:
            raise CheckpointError(f"{path} and {paths[0]} are of one model, but not in one folder; move them, or delete both")
    return folder


def _refuse_config(options: LoadOptions) -> None:
    if options.config is not None:
        raise InputError(f"a config is for ImageReward checkpoints; {options.name} has its own sizes")


class Kind(NamedTuple):
    """A kind of model folder."""

    files: tuple[tuple[str, ...], ...]
    """What is fetched of a hub repository besides config.json: of each group the first that is there, if any."""
    build: Build


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
    ENSEMBLE_FORMAT: Kind((), build_ensemble),
}
"""What the config.json of a folder or a hub repository says it is, as ``format`` or ``model_type``."""


# --- the table -----------------------------------------------------------------------------------------------------------------------

_CLIP = tuple(
    HubFile("openai/clip-vit-large-patch14", name, size, sha256)
    for name, size, sha256 in [
        (CONFIG_NAME, None, None),
        (WEIGHTS_NAME, 1_710_540_580, "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"),
        (PREPROCESSOR_NAME, None, None),
        (TOKENIZER_NAME, None, None),
    ]
)
_AESTHETIC_HEAD = WebFile(
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
    size=3_714_759,
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    original_cache="~/.cache/ImageReward",
)
_PICKSCORE = (
    HubFile("yuvalkirstain/PickScore_v1", CONFIG_NAME),
    HubFile("yuvalkirstain/PickScore_v1", WEIGHTS_NAME),
    HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", PREPROCESSOR_NAME),
    HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", TOKENIZER_NAME),
)
_BLIP_URL = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/"

MODELS: dict[str, ModelSpec] = {
    "ImageReward-mini": ModelSpec(
        description="a careful person's preference among drawn shapes; a small model to try things with",
        licence="Apache-2.0",
        range="mean 0, std 1 on drawings",
        build=build_imagereward,
        packaged="assets/ImageReward-mini",
        notice="ImageReward-mini knows only drawn shapes; for pictures use --model ImageReward-v1.0, which is downloaded once (1.8 GB)",
    ),
    "ImageReward-v1.0": ModelSpec(
        description="human preference for an image given its prompt (Xu et al., NeurIPS 2023)",
        licence="Apache-2.0",
        range="about -2.5 to 2",
        build=build_imagereward,
        files=(
            HubFile(
                repo="THUDM/ImageReward",
                name="ImageReward.pt",
                size=1_786_880_927,
                sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
                original_cache="~/.cache/ImageReward",
            ),
        ),
        config=ScorerConfig(),
    ),
    "PickScore": ModelSpec(
        description="human choice among images for a prompt: exp(logit_scale) * cosine (Kirstain et al., NeurIPS 2023)",
        licence="MIT",
        range="about 10 to 30",
        build=build_pickscore,
        files=_PICKSCORE,
    ),
    "HPSv2": ModelSpec(
        description="human preference among images for a prompt: a cosine (Wu et al. 2023)",
        licence="Apache-2.0",
        range="[-1, 1], about 0.2 to 0.35",
        build=build_hpsv2,
        files=(HubFile("xswu/HPSv2", "HPS_v2_compressed.pt"), _CLIP[3]),
    ),
    "HPSv2.1": ModelSpec(
        description="as HPSv2, trained on more data; on a scale of its own",
        licence="Apache-2.0",
        range="[-1, 1], about 0.2 to 0.35",
        build=build_hpsv2,
        files=(HubFile("xswu/HPSv2", "HPS_v2.1_compressed.pt"), _CLIP[3]),
    ),
    "CLIP": ModelSpec(
        description="how near image and prompt are: the cosine of OpenAI's ViT-L/14 (Radford et al., ICML 2021)",
        licence="MIT",
        range="[-1, 1], about 0.1 to 0.35",
        build=build_openai_clip,
        files=_CLIP,
    ),
    "Aesthetic": ModelSpec(
        description="how good an image looks, whatever the prompt: a head on CLIP's image embedding (Schuhmann 2022)",
        licence="Apache-2.0",
        range="1 to 10, about 4 to 7",
        build=build_aesthetic,
        files=(_AESTHETIC_HEAD, *_CLIP),
    ),
    "BLIP": ModelSpec(
        description="how near image and prompt are: the cosine of BLIP's contrastive features (Li et al., ICML 2022)",
        licence="BSD-3-Clause",
        range="[-1, 1]",
        build=build_blip,
        files=(WebFile(_BLIP_URL + "model_large.pth", original_cache="~/.cache/ImageReward"),),
    ),
    "BLIP-ITM": ModelSpec(
        description="whether the prompt describes the image: the log odds of BLIP's matching head, tuned on COCO (Li et al., ICML 2022)",
        licence="BSD-3-Clause",
        range="any; 0 is even odds",
        build=build_blip_matching,
        files=(WebFile(_BLIP_URL + "model_large_retrieval_coco.pth"),),
    ),
}


def specs() -> dict[str, ModelSpec]:
    """All scorers that have a name: those of this package, then those of other packages. One that cannot be loaded is a warning."""
    return MODELS | {name: spec for name, point in _entry_points().items() if (spec := _spec_of(point))}


def spec_of(name: str) -> ModelSpec | None:
    """The scorer of a name, or None. No other package is imported but the one that the name is from."""
    if name in MODELS:
        return MODELS[name]
    point = _entry_points().get(name)
    return _spec_of(point) if point else None


def _entry_points() -> dict[str, EntryPoint]:
    """By name; a name that is taken is a warning."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in MODELS or found.setdefault(point.name, point) != point:
            by = "this package's own" if point.name in MODELS else f"that of {_package(found[point.name])}"
            warnings.warn(f"{_package(point)} names a scorer {point.name}, but the name is taken: {by} is used", stacklevel=3)
    return found


def _spec_of(point: EntryPoint) -> ModelSpec | None:
    try:
        spec = point.load()
    except (Exception, SystemExit) as error:  # whatever the code of another package does
        warnings.warn(f"the scorer {point.name} of {_package(point)} cannot be loaded: {type(error).__name__}: {error}", stacklevel=3)
        return None
    if not isinstance(spec, ModelSpec):
        warnings.warn(f"the scorer {point.name} of {_package(point)} is no ModelSpec: {point.value} is {spec!r:.80}", stacklevel=3)
        return None
    return spec


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist else f"the module {point.module}"


# --- from what a user gives to a scorer ----------------------------------------------------------------------------------------------

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Found(NamedTuple):
    """What ``find`` makes of a name, a path or a hub id."""

    paths: tuple[Path, ...]
    """The files of a ``ModelSpec``, or one file or folder."""
    name: str
    """To show."""
    config: ScorerConfig | None
    """The one in the table of names."""
    build: Build


def find(model: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> Found:
    """A registered name, a path or a hub id -> local files, fetched and verified if need be, and what builds a scorer from them.

    A name wins over a file of the same name; write ``./NAME`` for the file.
    """
    given = os.fspath(model)
    if spec := spec_of(given):
        return Found(spec.fetch(Path(cache_dir) if cache_dir else None), given, spec.config, spec.build)
    try:
        path = Path(given).expanduser()
        is_here = bool(given) and path.exists()
    except (OSError, RuntimeError, ValueError):  # no file can have such a name, or nobody such a home
        path, is_here = Path(given), False
    if is_here:
        name = path.resolve().name if path.is_dir() else path.stem
        name = given if name in MODELS else name  # a folder called CLIP need not hold that CLIP
        config = path / CONFIG_NAME if path.is_dir() else path if path.suffix == ".json" else None
        # A folder without a config goes to ImageReward's reader, which says what it lacks.
        build = _kind_of(config).build if config and config.exists() else build_imagereward
        return Found((path,), name, None, build)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json"):
        raise FileNotFoundError(f"no such checkpoint: {given}")
    if _HUB_ID.fullmatch(given):
        return _find_on_hub(given)
    points = _entry_points()
    if given in points:
        raise UnknownModelError(f"the scorer {given} of {_package(points[given])} cannot be loaded: see the warning; update that package")
    names = [*MODELS, *points]
    near = difflib.get_close_matches(given.lower(), [name.lower() for name in names], n=1, cutoff=0.4)
    hint = next((f" Did you mean {name}?" for name in names if near and name.lower() == near[0]), "")
    raise UnknownModelError(
        f"no model, file or folder is called {given!r}.{hint} Known names: {', '.join(names)}; a hub id has the form OWNER/NAME"
    )


def locate(model: str | os.PathLike[str]) -> tuple[Path, str, ScorerConfig | None]:
    """As ``find``, for whoever reads checkpoints: the first file or the folder, a name to show, the registered config."""
    found = find(model)
    return found.paths[0], found.name, found.config


def _kind_of(config: Path) -> Kind:
    values = read_json(config)
    kind = (values.get("format") or values.get("model_type")) if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(
            f'{config} describes no model that this release knows: its "format" or "model_type" is {kind!r:.60} and not one of '
            f"{', '.join(KINDS)}"
        )
    return KINDS[kind]


def _find_on_hub(repo: str) -> Found:
    """A model folder from the hub, or the hub cache."""
    what = f"A model of this package is a folder with {CONFIG_NAME} and {WEIGHTS_NAME}; fetch it elsewhere and give its path"
    try:
        config = fetch_newest(HubFile(repo, CONFIG_NAME))
        if config is None:
            raise DownloadError(f"it has no {CONFIG_NAME}")
        kind = _kind_of(config)
        for alternatives in kind.files:
            # Whoever reads the folder says what it lacks.
            next(filter(None, (fetch_newest(HubFile(repo, name)) for name in alternatives)), None)
    except DownloadError as error:
        raise DownloadError(f"{repo} is neither a file here nor a model that could be downloaded: {error}. {what}") from error
    return Found((config.parent,), repo, None, kind.build)


@torch.inference_mode(False)  # weights that are made in that mode could never give gradients
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
    shared: dict[Hashable, Any] | None = None,
) -> Scorer[Any]:
    """Load a scorer, ready to score: in evaluation mode, its weights without gradients.

    Args:
        model: a registered name (``image-reward models list``), a ``.pt`` of the released layout, a ``.safetensors``, a folder written by
            ``save_pretrained``, the JSON file of an ensemble, or the hub id of a model folder.
        device: "cpu", "cuda", "cuda:1", …; by default CUDA where there is one, else the CPU.
        dtype: "float32" (default), "bfloat16" or "float16" for the towers, or "int8" for the image tower; the head is always float32.
        config: for weights that carry no config and are not of the released sizes: a ``ScorerConfig`` or a config.json.
        orient, allow_truncated, max_pixels, min_side: see ``image_reward.images.ImageOptions``.
        long_prompts: "truncate" (as the original, with a warning) or "error".
        batch_size: images at once; by default 8 on a CPU, 64 elsewhere. Rewards do not depend on it, beyond rounding.
        exact: encode images one at a time in the original's order of operations, so that float32 rounds as it did there. Slower; for
            repeating published numbers to the last digit with weights that amplify rounding. Only BLIP's image tower has such an order.
        compile: compile the image tower when it first encodes images; see ``scorers.precision``.
        shared: one dict for several calls, so that their scorers load what they have in common once (see ``load_all``).

    Raises:
        UnknownModelError, FileNotFoundError, DownloadError: there is nothing to load; the message says where it should come from.
        CheckpointError: the file is damaged or does not fit the network.
    """
    options = LoadOptions(
        name="",
        images=ImageOptions(orient, allow_truncated, max_pixels, min_side),
        long_prompts=long_prompts,
        config=config,
        exact=exact,
        shared={} if shared is None else shared,
    )
    return _place(_built(find(model), options), device, dtype, batch_size, compile).requires_grad_(False)


def load_all(
    models: Sequence[str | os.PathLike[str]],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> list[Scorer[Any]]:
    """Several scorers, which load the files and towers that they have in common once. Options and errors are those of ``load``.

    ``score_together`` then also computes with them once.
    """
    shared: dict[Hashable, Any] = {}
    return [load(model, device, dtype, shared=shared, **options) for model in models]


def _built(found: Found, options: LoadOptions) -> Scorer[Any]:
    return found.build(found.paths, replace(options, name=found.name, registered=found.config))


def _place(
    scorer: Any, device: str | torch.device | None, dtype: str | torch.dtype | None, batch_size: int | None, compiled: bool = False
) -> Any:
    quantized = dtype == "int8"
    if quantized:
        dtype = torch.float32  # of all that is not multiplied in int8
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)} and int8, not {dtype!r}")
        dtype = DTYPES[dtype]
    if dtype is not None and dtype not in DTYPES.values():
        raise InputError(f"dtype must be one of {', '.join(DTYPES)} and int8, not {dtype}")
    chosen = choose_device(device)
    parts = single_scorers([scorer])
    for part in parts:
        if not is_quantized(part):  # its tower may be another's that was placed before
            part.cast(dtype or torch.float32)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    scorer.batch_size = batch_size or (8 if chosen.type == "cpu" else 64)
    scorer.to(chosen)
    for part in parts:
        if quantized:
            quantize(part)
        if compiled:
            compile_scorer(part)
    return scorer


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
    except Exception as error:  # each kind of device has its own, where PyTorch was built without it
        raise InputError(f"device {device} does not work here ({str(error).splitlines()[0]}); use 'cpu'") from None
    return chosen
