"""A name or path -> a verified file -> a strict state dict; and back: save in this package's own format.

Nothing here guesses: a tensor that is missing, extra, misshapen or not finite is an error that names it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

import torch
from torch import Tensor, nn

from image_reward.errors import CheckpointError, DownloadError
from image_reward.images import ImageTransform
from image_reward.models.blip import BlipConfig

Config = TypeVar("Config")

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
_WEIGHT_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
METADATA_KEY = "image_reward_config"  # the config also travels inside the safetensors header, so that the file alone is enough


# --- what a checkpoint says about itself ---------------------------------------------------------------------------------------------


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
        if not (math.isfinite(self.parameter) and self.parameter >= lowest):
            raise CheckpointError(f"the tie parameter of {self.model} must be at least {lowest}, not {self.parameter}")


@dataclass(frozen=True)
class RewardConfig:
    """The scale of the rewards: (head - mean) / std. The defaults are ImageReward-v1.0's."""

    mean: float = 0.16717362830052426
    std: float = 1.0333394966054072
    tie: TieConfig | None = None
    reference: str | None = "ImageReward-v1.0"
    """The published reward distribution that this scale may be compared with; None if there is none."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise CheckpointError(f"the reward's mean and std must be finite and std positive, not {self.mean} and {self.std}")


@dataclass(frozen=True)
class TransformConfig:
    """What becomes of an image before the network sees it."""

    size: int = 224
    mean: tuple[float, float, float] = ImageTransform.mean
    std: tuple[float, float, float] = ImageTransform.std

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise CheckpointError(f"the pixels' mean and std must be finite and std positive, not {self.mean} and {self.std}")


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
        if self.vocabulary is not None and len(self.vocabulary) != self.network.vocab_size:
            raise CheckpointError(f"the vocabulary has {len(self.vocabulary)} tokens and the network {self.network.vocab_size} embeddings")
        if not 3 <= self.max_tokens <= self.network.max_positions:
            raise CheckpointError(f"max_tokens must be from 3 to the network's {self.network.max_positions}, not {self.max_tokens}")

    def to_json(self) -> str:
        return json.dumps({"format": "image-reward", "version": 1} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ScorerConfig:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{source} is not JSON: {error}") from None
        if not isinstance(values, dict) or values.pop("format", None) != "image-reward":
            raise CheckpointError(f'{source} is not a config of this package ("format": "image-reward" is missing)')
        version = values.pop("version", None)
        if version != 1:
            raise CheckpointError(f"{source} has format version {version!r}; this release of image-reward reads version 1")
        return fill(cls, values, source)


def fill(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """A dataclass from plain values, strictly: an unknown or missing key, or a value of another type, is an error that names it.

    Every whole number of a config is a size, and must be at least 1.
    """
    types = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise CheckpointError(f"{source}: unknown key {unknown[0]!r} for {cls.__name__}; known are {', '.join(known)}")
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
        if kind is not int or value >= 1:
            return kind(value)
        raise CheckpointError(f"{name} must be at least 1, not {value}")
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
        return tensors, ScorerConfig.from_json(config_file.read_bytes(), str(config_file))
    if not path.exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    tensors, text = _read_tensors(path)
    return tensors, ScorerConfig.from_json(text, str(path)) if text else None


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the text of the config in its header, if it has one."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
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

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(METADATA_KEY)  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}; download or save it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if refused := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} is a pickle that holds {refused[1]}, not just tensors, and loading it could run code; it was not loaded. "
                "Save its state dict alone, or convert it to safetensors where you trust it"
            ) from None
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive, which is a program and not just tensors; it was not loaded. "
                "OpenAI's CLIP files are such archives: use the same model as a folder from the hub, such as openai/clip-vit-large-patch14"
            ) from None
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint: {reason:.120}; download or save it again") from None
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        raise CheckpointError(
            f"{path} holds no state dict (a mapping from names to tensors), but {_outline(value)}; save the network's state_dict() alone"
        )
    return value


def _outline(value: object) -> str:
    if isinstance(value, dict):
        if not value:
            return "an empty mapping"
        return f"a mapping with the keys {', '.join(map(repr, list(value)[:5]))}{', …' if len(value) > 5 else ''}"
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


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block succeeds and vanishes if it fails."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        known = json.loads(_verified_list().read_text(encoding="utf-8"))
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
    """What a server says of a file before it is downloaded."""

    location: str
    headers: dict[str, str]
    """For the request."""
    size: int | None
    sha256: str | None
    place: Path
    """Where the complete file belongs."""
    version: str
    """What tells this content from another's, so that a download is only resumed with its own rest."""


def _offer_of_hub(file: HubFile, by_hand: str) -> _Offer:
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    metadata = get_hf_file_metadata(file.url)
    if metadata.etag is None or metadata.commit_hash is None:
        raise DownloadError(f"{file.url} was not answered by a model hub: check HF_ENDPOINT. {by_hand}")
    headers = build_hf_headers()
    if urlsplit(metadata.location)[:2] != urlsplit(file.url)[:2]:
        headers.pop("authorization", None)  # the hub's token is not for the host it redirects to
    sha256 = metadata.etag if _SHA256.fullmatch(metadata.etag) else None  # small files have git's hash instead
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model") / "blobs"
    return _Offer(metadata.location, headers, metadata.size, sha256, blobs / metadata.etag, file.sha256 or metadata.etag)


def _offer_of_web(file: WebFile) -> _Offer:
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    headers = {"Accept-Encoding": "identity"}  # a length and ranges are those of the file
    response = get_session().head(file.url, headers=headers, follow_redirects=True, timeout=30)
    hf_raise_for_status(response)
    size = response.headers.get("Content-Length")
    version = hashlib.sha256(f"{response.headers.get('ETag')} {size}".encode()).hexdigest()[:16]
    return _Offer(file.url, headers, int(size) if size else None, None, file.place, f"{file.name}.{version}")


def _download(file: HubFile | WebFile, by_hand: str) -> Path:
    """Download into the cache, keeping what has arrived when the connection breaks.

    huggingface_hub 2 deletes a partial file when a download fails, so this keeps its own beside the blob: complete, it becomes the blob
    and the hub library links it into its snapshot as usual.
    """
    import huggingface_hub
    from filelock import FileLock
    from huggingface_hub import constants, hf_hub_download
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
                have = partial.stat().st_size if partial.exists() else 0
                if have and (size is None or have > size):  # nothing says how much is missing
                    partial.unlink()
                    have = 0
                _check_free_space(place.parent, (size or 0) - have, file)
                with partial.open("ab") as stream:
                    http_get(
                        offer.location,
                        stream,
                        resume_size=have,
                        headers=offer.headers,
                        expected_size=size,
                        displayed_filename=file.name,
                    )
                if sha256 and (found := _sha256(partial)) != sha256:
                    partial.unlink()
                    raise CheckpointError(f"what {file.url} sent has sha256 {found} instead of {sha256}; it was deleted, try again")
                partial.replace(place)
                if sha256:
                    _remember(place, sha256)
        return Path(hf_hub_download(file.repo, file.name)) if isinstance(file, HubFile) else place
    except (CheckpointError, DownloadError):
        raise
    except Exception as error:  # httpx and hub errors share no base class
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(Path(constants.HF_HUB_CACHE), file, str(error.strerror)) from None
        reason = _reason(error, wants_token=isinstance(file, HubFile))
        raise DownloadError(f"{file.name} could not be downloaded from {file.url}: {reason}. {by_hand}") from error


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
