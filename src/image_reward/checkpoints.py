"""A name or path -> a verified file -> a strict state dict; and back: save in this package's own format.

Nothing here guesses: a tensor that is missing, extra, misshapen or not finite is an error that names it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import pickletools
import re
import reprlib
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urljoin, urlsplit

import torch
from torch import Tensor, nn

from image_reward.errors import CheckpointError, DownloadError, FileKindError
from image_reward.files import open_regular, parse_json, read_json, written_whole
from image_reward.images import ImageTransform
from image_reward.models.blip import BlipConfig
from image_reward.prompts import check_vocabulary

Config = TypeVar("Config")

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
_WEIGHT_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_LARGEST_HEADER = 16 << 20  # bytes; of safetensors, in which a tensor takes about 120
_LARGEST_DIRECTORY = 4 << 20  # bytes; of a zip archive, in which a tensor takes about 100
_LARGEST_PICKLE = 16 << 20  # bytes; in which a tensor takes about 150
METADATA_KEY = "image_reward_config"  # the config also travels inside the safetensors header, so that the file alone is enough


# --- what a checkpoint says about itself ---------------------------------------------------------------------------------------------

LARGEST_SCALE = 1e6


def check_scale(whose: str, mean: float, std: float) -> None:
    """Whether (x - mean) / std can be computed in float32 and leaves something of x. Raises ``CheckpointError``."""
    if not (abs(mean) <= LARGEST_SCALE and 1 / LARGEST_SCALE <= std <= LARGEST_SCALE):
        raise CheckpointError(
            f"{whose} mean and std must be finite and std positive, not {mean} and {std} (and mean at most {LARGEST_SCALE:g} in size, "
            f"std from {1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g})"
        )


@dataclass(frozen=True)
class TieConfig:
    """How a fitted tie parameter turns two rewards into three probabilities (see ``Scorer.compare``)."""

    model: str
    """``davidson`` (Davidson 1970) or ``rao-kupper`` (Rao & Kupper 1967)."""
    parameter: float
    """nu >= 0 for Davidson, theta >= 1 for Rao-Kupper."""

    def __post_init__(self) -> None:
        lowest = {"davidson": 0.0, "rao-kupper": 1.0}.get(self.model)
        if lowest is None:
            raise CheckpointError(f"unknown tie model {self.model!r}; known are 'davidson' and 'rao-kupper'")
        if not lowest <= self.parameter <= LARGEST_SCALE:
            raise CheckpointError(
                f"the tie parameter of {self.model} must be at least {lowest} and at most {LARGEST_SCALE:g}, not {self.parameter}"
            )


@dataclass(frozen=True)
class RewardConfig:
    """The scale of the rewards: (head - mean) / std. The defaults are ImageReward-v1.0's."""

    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072
    tie: TieConfig | None = None
    reference: str | None = "ImageReward-v1.0"
    """The published reward distribution that this scale may be compared with; None if there is none."""

    def __post_init__(self) -> None:
        check_scale("the reward's", self.mean, self.std)


@dataclass(frozen=True)
class TransformConfig:
    """What becomes of an image before the network sees it."""

    size: int = 224
    mean: tuple[float, float, float] = ImageTransform.mean
    std: tuple[float, float, float] = ImageTransform.std

    def __post_init__(self) -> None:
        for mean, std in zip(self.mean, self.std, strict=True):
            check_scale("the pixels'", mean, std)


@dataclass(frozen=True)
class ScorerConfig:
    """Everything besides the weights that a score depends on. The defaults are ImageReward-v1.0's."""

    architecture: str = "ImageReward"
    network: BlipConfig = field(default_factory=BlipConfig)
    image: TransformConfig = field(default_factory=TransformConfig)
    max_tokens: int = 35
    vocabulary: tuple[str, ...] | None = None
    """The tokens that the model knows, in the order of its embeddings; None for BERT's and BLIP's 30,524."""
    reward: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        if self.image.size != self.network.image_size:
            raise CheckpointError(f"images are made {self.image.size} px large, but the network reads {self.network.image_size} px")
        num_tokens = BlipConfig.vocab_size if self.vocabulary is None else len(self.vocabulary)
        if num_tokens != self.network.vocab_size:
            whose = "BLIP's vocabulary, which null stands for," if self.vocabulary is None else "the vocabulary"
            raise CheckpointError(f"{whose} has {num_tokens} tokens and the network {self.network.vocab_size} embeddings")
        if self.vocabulary is not None:
            check_vocabulary(self.vocabulary)
        if not 3 <= self.max_tokens <= self.network.max_positions:
            raise CheckpointError(f"max_tokens must be from 3 to the network's {self.network.max_positions}, not {self.max_tokens}")

    def to_json(self) -> str:
        return json.dumps({"format": "image-reward", "version": 1} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ScorerConfig:
        return cls.from_values(parse_json(text, source), source)

    @classmethod
    def from_values(cls, values: object, source: str) -> ScorerConfig:
        """From what a JSON file holds. Raises ``CheckpointError``."""
        if not isinstance(values, dict) or values.get("format") != "image-reward":
            raise CheckpointError(f'{source} is not a config of this package ("format": "image-reward" is missing)')
        check_version(values.get("version"), f"{source} has format")
        return fill(cls, {key: value for key, value in values.items() if key not in ("format", "version")}, source)


def check_version(version: object, what: str) -> None:
    """Raises ``CheckpointError`` unless it is the number 1."""
    if type(version) is not int or version != 1:
        raise CheckpointError(f"{what} version {version!r:.60}; this release of image-reward reads version 1")


def fill(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """A dataclass from plain values, strictly: an unknown or missing key, or a value of another type, is an error that names it.

    Every whole number of a config is a size or a count: from 1 to 2^31 - 1.
    """
    types = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise CheckpointError(f"{source}: unknown key {unknown[0]!r:.60} for {cls.__name__}; known are {', '.join(known)}")
    if missing := [name for name in known if name not in values]:
        raise CheckpointError(f"{source}: {cls.__name__} lacks {missing[0]!r}")
    checked = {name: _checked(types[name], values[name], f"{source}: {name} of {cls.__name__}", source) for name in known}
    try:
        return cls(**checked)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _checked(kind: Any, value: Any, name: str, source: str) -> Any:
    """A value of the annotated type ``kind``: a dataclass, a tuple, ``X | None``, or a plain type."""
    kinds = get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return fill(cast(type, kind), value, source)
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        if len(kinds) == len(value):
            return tuple(_checked(k, v, name, source) for k, v in zip(kinds, value, strict=True))
    elif get_origin(kind) is Literal:
        if value in kinds:
            return value
        raise CheckpointError(f"{name} must be one of {', '.join(map(repr, kinds))}, not {value!r:.60}")
    elif type(None) in kinds:
        return None if value is None else _checked(kinds[0], value, name, source)
    elif type(value) is kind or (kind is float and type(value) is int):
        if kind is not int or 1 <= value < 1 << 31:
            return kind(value)
        raise CheckpointError(f"{name} must be {'at least 1' if value < 1 else 'less than 2^31'}, not {value!r:.60}")
    shown = "an object" if is_dataclass(kind) else f"a list of {len(kinds)} numbers" if kinds and ... not in kinds else ""
    many = "objects" if kinds and is_dataclass(kinds[0]) else "whole numbers"
    shown = shown or (f"a list of {many}" if kinds else f"of type {kind.__name__}")
    raise CheckpointError(f"{name} must be {shown}, not {value!r:.60}")


# --- reading -------------------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], ScorerConfig | None]:
    """The tensors of a ``.pt`` / ``.pth`` / ``.safetensors`` file or of a folder of ours, memory-mapped, and the config if it carries one.

    ``module.`` prefixes of distributed training are stripped and ``position_ids`` buffers dropped; nothing else is changed. Do not write
    into a file that is in use: replace it, as ``save_checkpoint`` does.

    Raises ``FileNotFoundError`` or ``CheckpointError``.
    """
    if path.is_dir():
        weights, config_file = path / WEIGHTS_NAME, path / CONFIG_NAME
        if missing := [file.name for file in (weights, config_file) if not file.is_file()]:
            raise CheckpointError(f"{path} is not a model folder: it lacks {' and '.join(missing)}")
        tensors, _ = _read_tensors(weights)
        return tensors, ScorerConfig.from_values(read_json(config_file), str(config_file))
    if not path.exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    tensors, text = _read_tensors(path)
    return tensors, ScorerConfig.from_json(text, str(path)) if text else None


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the text of the config in its header, if it has one."""
    try:
        with open_regular(path) as file:
            start = file.read(64) or b""
    except FileKindError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; change its permissions or copy it elsewhere") from None
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is an HTML or XML page, not a checkpoint: a server's error page was saved; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        tensors, text = _read_safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of the format before PyTorch 1.6
        tensors, text = _read_pickle(path), None
    else:
        raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file: it begins with {start[:16]!r}; download it again")
    return _plain_names(tensors), text


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_LARGEST_HEADER, path.stat().st_size - 8):
        raise CheckpointError(f"{path} is not a whole safetensors file: header too large ({length:,} bytes); download or save it again")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(METADATA_KEY)  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}; download or save it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:
        refused = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if name := refused[1] if refused else _code_in(path):
            raise CheckpointError(
                f"{path} is a pickle that holds {name}, not just tensors, and loading it could run code; it was not loaded. "
                "Save its state dict alone, or convert it to safetensors where you trust it"
            ) from None
        if "TorchScript" in str(error):
            raise CheckpointError(_SCRIPT.format(path)) from None
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        if reason.startswith("Unsupported operand"):
            reason = "its pickle uses what torch.save does not write by default (protocol 2)"
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint: {reason:.120}; download or save it again") from None
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise CheckpointError(
            f"{path} holds no state dict (a mapping from names to tensors), but {_outline(value)}; save the network's state_dict() alone"
        )
    return value


_SCRIPT = (
    "{} is a TorchScript archive, which is a program and not just tensors; it was not loaded. "
    "OpenAI's CLIP files are such archives: use the same model as a folder from the hub, such as openai/clip-vit-large-patch14"
)


class _ShortReads(io.FileIO):
    """A file of which no more is read at once than the directory of an archive of tensors has."""

    def read(self, size: int | None = -1) -> Any:
        if size is not None and size > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory is said to have {size:,} bytes")
        return super().read(size)


def _check_archive(path: Path) -> None:
    """Refuse, from its directory alone, an archive whose records would take more memory than the file has bytes."""
    try:
        with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint: {error}; download or save it again") from None
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise CheckpointError(_SCRIPT.format(path))
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            what = "is compressed, which torch.save never does"
        elif record.filename.endswith(".pkl") and record.file_size > _LARGEST_PICKLE:
            what = f"has {record.file_size:,} bytes; names and shapes of tensors take less than {_LARGEST_PICKLE:,}"
        else:
            continue
        raise CheckpointError(f"{path} is not a PyTorch checkpoint: its record {record.filename:.60} {what}; save it again with torch.save")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint: its records are larger than the file; download or save it again")


def _code_in(path: Path) -> str | None:
    """The first name in a pickle that is not needed for tensors, such as that of a function to be called."""
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
                    pickled = archive.read(name)
            else:
                file.seek(0)
                pickled = file.read(_LARGEST_PICKLE)
        return next((name for name in _names_in(pickled) if not _TENSOR_NAMES.fullmatch(name)), None)
    except Exception:  # damaged, so that it was not loaded for another reason
        return None


_TENSOR_NAMES = re.compile(r"collections\.OrderedDict|torch\._utils\.\w+|torch\.\w+|torch\.storage\.\w+|torch\.nn\.parameter\.\w+")


def _names_in(pickled: bytes) -> Iterator[str]:
    """What a pickle would import, as far as it is written out, without running it."""
    texts: list[str | None] = []  # what is pushed, as far as it is text
    memo: dict[int, str | None] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(str(text) for text in texts[-2:])
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            texts.append(memo.get(int(argument)))
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = texts[-1] if texts else None
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = texts[-1] if texts else None
        elif opcode.name != "FRAME":
            texts.append(argument if isinstance(argument, str) else None)


def _outline(value: object) -> str:
    if isinstance(value, dict):
        if not value:
            return "an empty mapping"
        return f"a mapping with the keys {', '.join(map(reprlib.repr, list(value)[:5]))}{', …' if len(value) > 5 else ''}"
    return f"a {type(value).__name__}"


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    for prefix in ("module.", "_orig_mod.", "network."):  # of DistributedDataParallel, torch.compile and a scorer's own state dict
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): old for name, old in names.items()}
    return {name: tensors[old] for name, old in names.items() if not name.endswith(".position_ids")}


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Fill a network built on the meta device with tensors, without copying them, or raise ``CheckpointError``.

    Names and shapes must match exactly and every value must be finite.
    """
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}  # a file may hold parameters
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} and should have {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems[:5])}{more}{hint}")
    for name, tensor in tensors.items():
        if tensor.dtype not in _WEIGHT_DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
            what = "no values" if tensor.is_meta else f"{tensor.dtype} in {tensor.layout} layout"
            raise CheckpointError(f"{source}: {name} holds {what}; weights are dense float32, float16, bfloat16 or float64: convert them")
        # One pass at memory speed: a NaN or infinity survives a sum. Only a sum that overflowed needs the second look.
        if not math.isfinite(tensor.sum(dtype=torch.float32)) and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds NaN or infinite weights; the file is damaged or training diverged")
    network.load_state_dict(tensors, strict=True, assign=True)


# --- writing -------------------------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], config: ScorerConfig, card: str) -> None:
    """Write a model folder: weights and config as safetensors, the config as JSON to read, and a model card."""
    text = config.to_json()
    save_folder(folder, {WEIGHTS_NAME: tensors}, {CONFIG_NAME: text, CARD_NAME: card}, {METADATA_KEY: text})


def save_folder(
    folder: Path, weights: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str], metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors and text files, by name, into a folder. ``metadata`` goes into the header of each safetensors file.

    The files of a checkpoint that is there are replaced when all the new ones are written: if that fails (``OSError``), it is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        places = {name: stack.enter_context(written_whole(folder / name)) for name in (*weights, *texts)}
        for name, tensors in weights.items():
            dense = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            try:
                save_file(dense, places[name], metadata=metadata)  # one key: several come in an order that changes from run to run
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(f"{folder / name} could not be written: {error}; a checkpoint that was there is unchanged") from error
        for name, text in texts.items():
            places[name].write_text(text, encoding="utf-8")


# --- finding, downloading, verifying -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """One file of a model hub repository, and what it must be.

    Where size or sha256 are not given, the hub's own are what a download is checked against.
    """

    repo: str
    name: str
    size: int | None = None
    sha256: str | None = None
    original_cache: str | None = None
    """The folder where the original package keeps this file, if it has one."""

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repo) or ".." in self.repo:
            raise ValueError(f"{self.repo!r:.60} is not the name of a repository, which has the form OWNER/NAME")
        _check_name(self.name, self.name.split("/"))

    @property
    def source(self) -> str:
        return self.repo

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.name)

    @property
    def place(self) -> Path:
        """Where it may be put by hand."""
        return _own_folder() / self.repo / self.name


@dataclass(frozen=True)
class WebFile:
    """One file that is published outside the hub, and what it must be.

    Where the size is not given it is the one that the server says. Where the sha256 is not given only the size is checked.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    original_cache: str | None = None
    """The folder where the original package keeps this file, if it has one."""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not re.fullmatch(r"[\w-][\w.:-]*", self.source, re.ASCII):
            raise ValueError(f"{self.url!r:.100} is not the address of a file on the web")
        _check_name(self.url, [self.name])

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path).rsplit("/", 1)[-1]

    @property
    def source(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def place(self) -> Path:
        """Where it is kept, and may be put by hand."""
        return _own_folder() / self.source.replace(":", "-") / hashlib.sha256(self.url.encode()).hexdigest()[:8] / self.name


_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def _check_name(name: str, parts: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the parts of a name make a path that stays where it is put."""
    if any(part in ("", ".", "..") or len(part) > 200 or re.search(r"[\x00-\x1f\\/]", part) for part in parts):
        raise ValueError(f"{name!r:.100} does not end in the name of a file")


def _own_folder() -> Path:
    """Beside the hub's repositories, so that ``HF_HUB_CACHE`` moves all downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "image-reward"


def _places(file: HubFile | WebFile, cache_dir: Path | None) -> list[Path]:
    """Where this machine may hold a file: the folder given, the cache of downloads, the original package's cache."""
    from huggingface_hub import try_to_load_from_cache

    places = [cache_dir / file.name] if cache_dir else []
    if isinstance(file, HubFile) and isinstance(cached := try_to_load_from_cache(file.repo, file.name), str):
        places.append(Path(cached))
    places.append(file.place)
    if file.original_cache:
        places.append(Path(file.original_cache).expanduser() / file.name)
    return [place for place in places if place.is_file()]


def find_local(file: HubFile | WebFile, cache_dir: Path | None = None) -> Path | None:
    """Where this machine already holds a file: the folder given, the cache of downloads, or the original package's cache.

    Only size is checked, where it is published.
    """
    return next((place for place in _places(file, cache_dir) if file.size in (None, place.stat().st_size)), None)


def fetch(file: HubFile | WebFile, cache_dir: Path | None = None) -> Path:
    """The verified local path of a file, downloading it if need be.

    Looks into ``cache_dir`` (if given), the cache of downloads (``HF_HUB_CACHE``) and the original package's cache before the network. A
    broken download is resumed by the next call. Offline mode (``HF_HUB_OFFLINE=1``) and mirrors (``HF_ENDPOINT``) are honoured.

    Raises ``DownloadError`` when there is neither the file nor a way to get it, ``CheckpointError`` when its content is wrong.
    """
    path = find_local(file, cache_dir) or _download(file, _by_hand(file, cache_dir))
    verify(path, file)
    return path


def fetch_newest(file: HubFile) -> Path | None:
    """The verified newest version of a file; offline, the one that is here. None if its repository has none.

    Raises as ``fetch``, though not for a lack of connection where an older version is here.
    """
    import huggingface_hub

    try:
        path = find_local(file) if huggingface_hub.is_offline_mode() else _download(file, _by_hand(file, None))
    except _MissingError:
        return None
    except DownloadError:
        path = find_local(file)
        if path is None:
            raise
    if path:
        verify(path, file)
    return path


def verify(path: Path, file: HubFile | WebFile) -> None:
    """Check size and sha256 against what the file must be; a file that passed is remembered until it changes.

    A file in the hub cache whose sha256 is not published here must have the one that the hub gave, which is the name of its blob.
    """
    size = path.stat().st_size
    sha256 = file.sha256 or (path.resolve().name if _SHA256.fullmatch(path.resolve().name) else None)
    right_size = file.size in (None, size)
    found = _remembered(path) if right_size else None
    if found is None and right_size and sha256:
        found = _sha256(path)
        _remember(path, found)
    if not right_size or (sha256 and found != sha256):
        what = f"sha256 {found} instead of {sha256}" if right_size else f"{size:,} bytes instead of {file.size:,}"
        # The hub cache holds links; deleting one would leave the bad file behind it.
        raise CheckpointError(f"{path} is not {file.name} of {file.source}: it has {what}; delete {path.resolve()} and download it again")


_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_DOWNLOAD = 1 << 37  # bytes, of a file whose size nobody says


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verified_list() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "image-reward" / "verified.json"


def _fingerprint(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


def _known() -> dict[str, str]:
    try:
        known = read_json(_verified_list())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remembered(path: Path) -> str | None:
    return _known().get(_fingerprint(path))


def _remember(path: Path, sha256: str) -> None:
    try:
        _verified_list().parent.mkdir(parents=True, exist_ok=True)
        with written_whole(_verified_list()) as temporary:
            temporary.write_text(json.dumps(_known() | {_fingerprint(path): sha256}, indent=1), encoding="utf-8")
    except OSError:
        pass  # a read-only home costs a few seconds at the next load, nothing else


def _by_hand(file: HubFile | WebFile, cache_dir: Path | None) -> str:
    place = Path(file.original_cache).expanduser() / file.name if file.original_cache else file.place
    size = "" if file.size is None else f" ({file.size:,} bytes)"
    wrong = "".join(f" ({path} has {path.stat().st_size:,} bytes.)" for path in _places(file, cache_dir))
    return f"By hand: fetch {file.url}{size} on another machine and put it at {place}{wrong}"


class _Offer(NamedTuple):
    """What a server says of a file before it is downloaded. Nothing of it is a path: names are checked or hashed."""

    location: str
    headers: dict[str, str]
    """For the request."""
    size: int | None
    sha256: str | None
    place: Path
    """Where the complete file belongs."""
    version: str
    """What tells this content from another's, so that a download is only resumed with its own rest."""
    commit: str | None = None
    """The hub's name of the snapshot that the file belongs to."""


class _MissingError(DownloadError):
    """The repository has no such file."""


def _offer_of_hub(file: HubFile, by_hand: str) -> _Offer:
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    metadata = get_hf_file_metadata(file.url)
    if metadata.etag is None or metadata.commit_hash is None:
        raise DownloadError(f"{file.url} was not answered by a model hub: check HF_ENDPOINT. {by_hand}")
    location = urljoin(file.url, metadata.location)
    headers = build_hf_headers()
    if urlsplit(location)[:2] != urlsplit(file.url)[:2]:
        headers.pop("authorization", None)  # the hub's token is not for the host it redirects to
    sha256 = metadata.etag if _SHA256.fullmatch(metadata.etag) else None  # small files have git's hash instead
    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model")
    # A blob whose name is a sha256 has it. What else a server calls a version says nothing of the content, so it is this file's alone.
    blob = sha256 or f"etag-{_short_hash(file.name, metadata.etag)}"
    commit = metadata.commit_hash if _COMMIT.fullmatch(metadata.commit_hash) else _short_hash(metadata.commit_hash)
    size = metadata.size if metadata.size is not None and metadata.size >= 0 else None
    return _Offer(location, headers, size, sha256, repo / "blobs" / blob, file.sha256 or blob, commit)


def _offer_of_web(file: WebFile) -> _Offer:
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    headers = {"Accept-Encoding": "identity"}  # a length and ranges are those of the file
    response = get_session().head(file.url, headers=headers, follow_redirects=True, timeout=30)
    hf_raise_for_status(response)
    length = response.headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    version = _short_hash(str(response.headers.get("ETag")), str(size))[:16]
    return _Offer(file.url, headers, size, None, file.place, f"{file.name}.{version}")


def _short_hash(*texts: str) -> str:
    """40 hex digits"""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:40]


def _download(file: HubFile | WebFile, by_hand: str) -> Path:
    """Download into the cache, keeping what has arrived when the connection breaks.

    huggingface_hub 2 deletes a partial file when a download fails, and takes what a server says for names of files. So this keeps its own
    partial file, and lays blob, snapshot and reference out as the hub's library does, which finds them there.
    """
    import huggingface_hub
    from filelock import FileLock
    from huggingface_hub import constants
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.file_download import http_get

    if huggingface_hub.is_offline_mode():
        raise DownloadError(f"{file.name} of {file.source} is not on this machine and offline mode (HF_HUB_OFFLINE) is on. {by_hand}")
    try:
        offer = _offer_of_hub(file, by_hand) if isinstance(file, HubFile) else _offer_of_web(file)
        if file.size is not None and offer.size not in (None, file.size):
            remedy = "the server is not the hub or is out of date: check HF_ENDPOINT"
            if isinstance(file, WebFile):
                remedy = f"what is published there has changed. {by_hand}"
            raise CheckpointError(f"{file.url} offers {offer.size:,} bytes instead of {file.size:,}; {remedy}")
        size, sha256 = file.size or offer.size, file.sha256 or offer.sha256
        if size is None and sha256 is None:
            raise DownloadError(f"{file.url} does not say how long it is, so a download that broke could pass for a whole one. {by_hand}")
        place = offer.place
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.parent / f"{offer.version}.partial"
        with FileLock(f"{partial}.lock"):
            if not place.is_file() or size not in (None, place.stat().st_size):
                with _Partial(partial, _LARGEST_DOWNLOAD if size is None else size) as stream:
                    have = stream.tell()
                    if have and (size is None or have > size):  # nothing says how much is missing
                        have = stream.seek(stream.truncate(0))
                    _check_free_space(place.parent, (size or 0) - have, file)
                    http_get(
                        offer.location,
                        stream,
                        resume_size=have,
                        headers=offer.headers,
                        expected_size=size,
                        displayed_filename=file.name,
                    )
                if sha256 and (actual := _sha256(partial)) != sha256:
                    partial.unlink()
                    raise CheckpointError(f"what {file.url} sent has sha256 {actual} instead of {sha256}; it was deleted, try again")
                partial.replace(place)
                if sha256:
                    _remember(place, sha256)
        return _in_snapshot(place, offer.commit, file.name) if offer.commit else place
    except (CheckpointError, DownloadError):
        raise
    except RemoteEntryNotFoundError as error:
        raise _MissingError(f"{file.name} could not be downloaded from {file.url}: {_reason(error, False)}. {by_hand}") from error
    except Exception as error:  # httpx and hub errors share no base class
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(Path(constants.HF_HUB_CACHE), file, str(error.strerror)) from None
        reason = _reason(error, wants_token=isinstance(file, HubFile))
        raise DownloadError(f"{file.name} could not be downloaded from {file.url}: {reason}. {by_hand}") from error


class _Partial(io.FileIO):
    """What has arrived of a file, to be appended to, but never through a link and never beyond what the file may have.

    A server that sends without end would fill the disk, and the first bytes of that are not the file: they are dropped.
    """

    def __init__(self, path: Path, limit: int) -> None:
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        super().__init__(path, "ab", opener=lambda name, others: os.open(name, others | flags, 0o666))
        self.limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.limit:
            self.truncate(0)
            raise ValueError(f"the server sends more than the {self.limit:,} bytes that the file has")
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)


def _in_snapshot(blob: Path, commit: str, name: str) -> Path:
    """Lay a blob where the hub's library looks for it: in the snapshot of the commit, as a link, or a copy where there are no links."""
    repo = blob.parent.parent
    place = repo / "snapshots" / commit / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_file() or not place.samefile(blob):
        link = place.with_name(f".{uuid.uuid4().hex}")
        try:
            link.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:
            shutil.copyfile(blob, link)
        link.replace(place)
    (repo / "refs").mkdir(exist_ok=True)
    with written_whole(repo / "refs" / "main") as temporary:
        temporary.write_text(commit, encoding="utf-8")
    return place


def _reason(error: Exception, wants_token: bool) -> str:
    """What an HTTP or hub error says, in one line without its advice."""
    text = " ".join(str(error).split()).split(" For more information")[0].rstrip(".") or type(error).__name__
    wants_token = wants_token and getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    return text + (" (if it asks for a token: `hf auth login`, or set HF_TOKEN)" if wants_token else "")


def _check_free_space(folder: Path, needed: int, file: HubFile | WebFile) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(folder, file, f"{free:,} bytes are free and {needed:,} are needed")


def _disk_full(folder: Path, file: HubFile | WebFile, detail: str) -> DownloadError:
    return DownloadError(
        f"the disk is too full for {file.name} at {folder}: {detail}. Free space there or set HF_HUB_CACHE to a folder on "
        "another disk; what has arrived is kept and the next attempt goes on from it."
    )


# --- BLIP's own checkpoints ----------------------------------------------------------------------------------------------------------


def blip_pretraining_weights(tensors: Mapping[str, Tensor], matching_head: bool = False) -> dict[str, Tensor] | None:
    """The towers and projections in one of BLIP's pretraining or retrieval checkpoints under our names; None if it is none.

    What training alone needs is left out by name (Salesforce BLIP, ``models/blip_pretrain.py`` and ``models/blip_retrieval.py``): the
    momentum copies (``*_m``), the decoder, the queues and the temperature; and the matching head, unless it is asked for. Whatever else is
    there stays, for ``load_strictly`` to judge.
    """
    parts = {name.split(".")[0] for name in tensors}
    if not {"visual_encoder", "text_encoder", "vision_proj", "text_proj"} <= parts or "mlp" in parts:
        return None
    left_out = {"text_decoder", "image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue", "temp"}
    left_out |= {part for part in parts if part.endswith("_m")}
    found = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in left_out}
    head = {name: found.pop(name) for name in list(found) if name.split(".")[0] == "itm_head"}
    return {f"blip.{name}": tensor for name, tensor in found.items()} | (head if matching_head else {})
