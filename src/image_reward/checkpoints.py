"""A name or path -> a verified file -> a strict state dict; and back: save in this package's own format.

Nothing here guesses: a tensor that is missing, extra, misshapen or not finite is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from image_reward.errors import CheckpointError, DownloadError
from image_reward.images import ImageTransform
from image_reward.models.blip import BlipConfig

Config = TypeVar("Config")

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
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


@dataclass(frozen=True)
class ScorerConfig:
    """Everything besides the weights that a score depends on. The defaults are ImageReward-v1.0's."""

    architecture: str = "ImageReward"
    network: BlipConfig = field(default_factory=BlipConfig)
    image: TransformConfig = field(default_factory=TransformConfig)
    max_tokens: int = 35
    reward: RewardConfig = field(default_factory=RewardConfig)

    def to_json(self) -> str:
        return json.dumps({"format": "image-reward", "version": 1} | asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> ScorerConfig:
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
    """A dataclass from plain values, strictly: an unknown or missing key, or a value of another type, is an error that names it."""
    types = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise CheckpointError(f"{source}: unknown key {unknown[0]!r} for {cls.__name__}; known are {', '.join(known)}")
    if missing := [name for name in known if name not in values]:
        raise CheckpointError(f"{source}: {cls.__name__} lacks {missing[0]!r}")
    filled = {}
    for name, value in values.items():
        kind = types[name]
        options = [k for k in getattr(kind, "__args__", ()) if is_dataclass(k)] or ([kind] if is_dataclass(kind) else [])
        if options and isinstance(value, dict):
            value = fill(options[0], value, source)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        expected = {int: int, float: (int, float), str: str}.get(kind)
        if expected and (not isinstance(value, expected) or isinstance(value, bool)):  # type: ignore[arg-type]
            raise CheckpointError(f"{source}: {name} of {cls.__name__} must be of type {kind.__name__}, not {value!r}")
        filled[name] = value
    try:
        return cls(**filled)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{source}: {error}") from None


# --- reading -------------------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], ScorerConfig | None]:
    """The tensors of a ``.pt`` / ``.pth`` / ``.safetensors`` file or of a folder of ours, memory-mapped, and the config if it carries one.

    ``module.`` prefixes of distributed training are stripped and ``position_ids`` buffers dropped; nothing else is changed.
    """
    if path.is_dir():
        weights, config_file = path / WEIGHTS_NAME, path / CONFIG_NAME
        if missing := [file.name for file in (weights, config_file) if not file.is_file()]:
            raise CheckpointError(f"{path} is not a model folder: it lacks {' and '.join(missing)}")
        tensors, _ = _read_safetensors(weights)
        return _plain_names(tensors), ScorerConfig.from_json(config_file.read_text(encoding="utf-8"), str(config_file))
    if not path.exists():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    start = _first_bytes(path)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); download it again")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is an HTML or XML page, not a checkpoint: a server's error page was saved; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if _looks_like_safetensors(start):
        tensors, metadata = _read_safetensors(path)
        text = metadata.get(METADATA_KEY)
        return _plain_names(tensors), ScorerConfig.from_json(text, str(path)) if text else None
    return _plain_names(_read_pickle(path)), None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _looks_like_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}; download or save it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} is a pickle that holds more than tensors, and loading it could run code; it was not loaded. "
                "Save its state dict alone, or convert it to safetensors where you trust it"
            ) from None
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} is not a whole PyTorch checkpoint: {first_line}; download or save it again") from None
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise CheckpointError(f"{path} holds no state dict (a mapping from names to tensors), but {_outline(value)}")
    return value


def _outline(value: object) -> str:
    if isinstance(value, dict):
        return f"a mapping with the keys {', '.join(map(repr, list(value)[:5]))}{', …' if len(value) > 5 else ''}"
    return f"a {type(value).__name__}"


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixed = bool(tensors) and all(name.startswith("module.") for name in tensors)
    names = {name.removeprefix("module.") if prefixed else name: name for name in tensors}
    return {name: tensors[old] for name, old in names.items() if not name.endswith(".position_ids")}


def load_strictly(network: nn.Module, tensors: Mapping[str, Tensor], source: str, hint: str = "") -> None:
    """Fill a network built on the meta device with tensors, without copying them, or raise ``CheckpointError``.

    Names and shapes must match exactly and every value must be finite.
    """
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
        if not tensor.is_floating_point():
            raise CheckpointError(f"{source}: {name} holds {tensor.dtype}, not floating-point weights")
        # One pass at memory speed: a NaN or infinity survives a sum. Only a sum that overflowed needs the second look.
        if not math.isfinite(tensor.sum(dtype=torch.float32)) and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds NaN or infinite weights; the file is damaged or training diverged")
    network.load_state_dict(dict(tensors), strict=True, assign=True)


# --- writing -------------------------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], config: ScorerConfig, card: str) -> None:
    """Write a model folder: weights and config as safetensors, the config as JSON to read, and a model card. Each file appears whole."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    text = config.to_json()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(folder / WEIGHTS_NAME) as temporary:
        save_file(weights, temporary, metadata={"format": "pt", METADATA_KEY: text})
    for name, content in ((CONFIG_NAME, text), (CARD_NAME, card)):
        with written_whole(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the block succeeds and vanishes if it fails."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- finding, downloading, verifying -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    """One file of a model hub repository, and what it must be."""

    repo: str
    name: str
    size: int
    sha256: str
    original_cache: str | None = None
    """The folder where the original package keeps this file, if it has one."""

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.name)


def find_local(file: HubFile, cache_dir: Path | None = None) -> Path | None:
    """Where this machine already holds a file: the folder given, the hub cache, or the original package's cache. Only size is checked."""
    from huggingface_hub import try_to_load_from_cache

    places = [cache_dir / file.name] if cache_dir else []
    cached = try_to_load_from_cache(file.repo, file.name)
    if isinstance(cached, str):
        places.append(Path(cached))
    if file.original_cache:
        places.append(Path(file.original_cache).expanduser() / file.name)
    return next((place for place in places if place.is_file() and place.stat().st_size == file.size), None)


def fetch(file: HubFile, cache_dir: Path | None = None) -> Path:
    """The verified local path of a hub file, downloading it if need be.

    Looks into ``cache_dir`` (if given), the hub cache (``HF_HUB_CACHE``) and the original package's cache before the network. A broken
    download is resumed by the next call. Offline mode (``HF_HUB_OFFLINE=1``) and mirrors (``HF_ENDPOINT``) are honoured.

    Raises ``DownloadError`` when there is neither the file nor a way to get it, ``CheckpointError`` when its content is wrong.
    """
    path = find_local(file, cache_dir) or _download(file)
    verify(path, file)
    return path


def verify(path: Path, file: HubFile) -> None:
    """Check size and sha256 against what the file must be; a file that passed is remembered until it changes."""
    size = path.stat().st_size
    if size != file.size:
        raise CheckpointError(f"{path} has {size:,} bytes instead of {file.size:,}; delete it and download it again")
    if _remembered(path) == file.sha256:
        return
    found = _sha256(path)
    if found != file.sha256:
        raise CheckpointError(f"{path} has sha256 {found} instead of {file.sha256}; delete it and download it again")
    _remember(path, found)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256_in_blocks(file)


def _sha256_in_blocks(file: Any) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _verified_list() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "image-reward" / "verified.json"


def _fingerprint(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"


def _remembered(path: Path) -> str | None:
    try:
        known = json.loads(_verified_list().read_text(encoding="utf-8"))
        return str(known[_fingerprint(path)])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, sha256: str) -> None:
    try:
        known = json.loads(_verified_list().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    try:
        _verified_list().parent.mkdir(parents=True, exist_ok=True)
        with written_whole(_verified_list()) as temporary:
            temporary.write_text(json.dumps(known | {_fingerprint(path): sha256}, indent=1), encoding="utf-8")
    except OSError:
        pass  # a read-only home costs a few seconds at the next load, nothing else


def _download(file: HubFile) -> Path:
    """Download into the hub cache, keeping what has arrived when the connection breaks.

    huggingface_hub 2 deletes a partial file when a download fails, so this keeps its own beside the blob: complete, it becomes the blob
    and the hub library links it into its snapshot as usual.
    """
    import huggingface_hub
    from filelock import FileLock
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.repo, repo_type="model") / "blobs"
    place = Path(file.original_cache).expanduser() / file.name if file.original_cache else blobs.parent
    by_hand = (
        f"To place it by hand: fetch {file.url} ({file.size:,} bytes) on another machine and put it at {place}, "
        "or give its path instead of the name"
    )
    if huggingface_hub.is_offline_mode():
        raise DownloadError(f"{file.name} of {file.repo} is not on this machine and offline mode is on. {by_hand}.")
    try:
        metadata = get_hf_file_metadata(file.url)
        if metadata.size is not None and metadata.size != file.size:
            raise CheckpointError(
                f"{file.url} offers {metadata.size:,} bytes instead of {file.size:,}; the server is not the hub or is out of date"
            )
        headers = build_hf_headers()
        if urlsplit(metadata.location).netloc != urlsplit(file.url).netloc:
            headers.pop("authorization", None)  # the hub's token is not for the host it redirects to
        blobs.mkdir(parents=True, exist_ok=True)
        blob = blobs / str(metadata.etag)
        partial = blobs / f"{metadata.etag}.partial"
        with FileLock(f"{partial}.lock"):
            if not blob.exists():
                have = min(partial.stat().st_size, file.size) if partial.exists() else 0
                _check_free_space(blobs, file.size - have, file)
                with partial.open("ab") as stream:
                    stream.truncate(have)
                    http_get(
                        metadata.location,
                        stream,
                        resume_size=have,
                        headers=headers,
                        expected_size=file.size,
                        displayed_filename=file.name,
                    )
                if (found := _sha256(partial)) != file.sha256:
                    partial.unlink()
                    raise CheckpointError(f"what {file.url} sent has sha256 {found} instead of {file.sha256}; it was deleted, try again")
                partial.replace(blob)
        return Path(hf_hub_download(file.repo, file.name))
    except (CheckpointError, DownloadError):
        raise
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise _disk_full(blobs, file, str(error.strerror)) from None
        raise DownloadError(f"{file.name} could not be downloaded from {file.url}: {error}. {by_hand}.") from error
    except Exception as error:  # httpx and hub errors share no base class
        raise DownloadError(f"{file.name} could not be downloaded from {file.url}: {error}. {by_hand}.") from error


def _check_free_space(folder: Path, needed: int, file: HubFile) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(folder, file, f"{free:,} bytes are free and {needed:,} are needed")


def _disk_full(folder: Path, file: HubFile, detail: str) -> DownloadError:
    return DownloadError(
        f"the disk is too full for {file.name} at {folder}: {detail}. Free space there or set HF_HUB_CACHE to a folder on "
        "another disk; what has arrived is kept and the next attempt goes on from it."
    )


# --- BLIP's pretraining checkpoints --------------------------------------------------------------------------------------------------


def blip_pretraining_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The towers and projections in a BLIP pretraining checkpoint (``model_large.pth``) under our names; None if it is none.

    What pretraining alone needs is left out by name (Salesforce BLIP, ``models/blip_pretrain.py``): the momentum copies (``*_m``), the
    decoder, the matching head, the queues and the temperature. Whatever else is there stays, for ``load_strictly`` to judge.
    """
    parts = {name.split(".")[0] for name in tensors}
    if not {"visual_encoder", "text_encoder", "vision_proj", "text_proj"} <= parts or "mlp" in parts:
        return None
    left_out = {"text_decoder", "itm_head", "image_queue", "text_queue", "queue_ptr", "ptr_queue", "temp"}
    left_out |= {part for part in parts if part.endswith("_m")}
    return {f"blip.{name}": tensor for name, tensor in tensors.items() if name.split(".")[0] not in left_out}
