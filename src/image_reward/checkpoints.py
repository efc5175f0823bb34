"""A file or folder -> a strict state dict and its config; and back: save in this package's own format.

Nothing is guessed: a tensor that is missing, extra, misshapen or not finite is an error that names it.
"""

from __future__ import annotations

import errno
import io
import math
import pickletools
import re
import reprlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from image_reward.config import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, ScorerConfig
from image_reward.errors import CheckpointError, FileKindError, InputError
from image_reward.files import open_regular, read_json, written_whole
from image_reward.pickled_modules import tensors_of_module

Built = TypeVar("Built")

_WEIGHT_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_LARGEST_HEADER = 16 << 20  # bytes; of safetensors, in which a tensor takes about 120
_LARGEST_DIRECTORY = 4 << 20  # bytes; of a zip archive, in which a tensor takes about 100
_LARGEST_PICKLE = 16 << 20  # bytes; in which a tensor takes about 150
METADATA_KEY = "image_reward_config"  # the config also travels inside the safetensors header, so that the file alone is enough


# --- reading -------------------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, whole_module: bool = False) -> tuple[dict[str, Tensor], ScorerConfig | None]:
    """The tensors of a ``.pt`` / ``.pth`` / ``.safetensors`` file or of a folder of ours, memory-mapped, and the config if it carries one.

    ``module.`` prefixes of distributed training are stripped and ``position_ids`` buffers dropped; nothing else is changed. Do not write
    into a file that is in use: replace it, as ``save_checkpoint`` does. ``whole_module``: of a pickled module, which is refused otherwise
    because loading it could run code, take the tensors alone, as ``pickled_modules`` reads them.

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
    tensors, text = _read_tensors(path, whole_module)
    return tensors, ScorerConfig.from_json(text, str(path)) if text else None


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model. Raises ``CheckpointError``."""
    if not file.exists():
        raise CheckpointError(f"{file.parent} lacks {file.name}; download it again")
    try:
        values = read_json(file)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; download it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object but {values!r:.60}; download it again")
    return values


def built(make: Callable[[], Built], file: Path, what: str) -> Built:
    """What ``make`` builds from a file of a model. Raises ``CheckpointError`` where it fails; ``what``: a noun, such as "CLIP"."""
    try:
        return make()
    except InputError as error:
        raise CheckpointError(f"{file} does not describe a {what} that can be built: {error}") from None
    except Exception as error:  # nearly anything, from a wrong type to a division by zero
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{file} does not describe a {what} that can be built: {reason:.200}") from error


def _read_tensors(path: Path, whole_module: bool = False) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the text of the config in its header, if it has one."""
    start = _checked_start(path)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        tensors, text = _read_safetensors(path)
    elif start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle of the format before PyTorch 1.6
        tensors, text = _read_pickle(path, whole_module), None
    else:
        raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file: it begins with {start[:16]!r}; download it again")
    return _plain_names(tensors), text


def _checked_start(path: Path) -> bytes:
    """The first bytes of a file. Raises ``CheckpointError`` for one that cannot be read, or was saved in place of weights."""
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
    return start


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    _check_safetensors(path)
    try:
        with torch.device("cpu"), safe_open(path, framework="pt") as file:  # older releases follow PyTorch's default device
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(METADATA_KEY)  # noqa: SIM118
    except (SafetensorError, OSError, MemoryError) as error:  # the last where the file is larger than what can be mapped
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}; download or save it again") from None


def _check_safetensors(path: Path) -> None:
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(_LARGEST_HEADER, path.stat().st_size - 8):
        raise CheckpointError(f"{path} is not a whole safetensors file: header too large ({length:,} bytes); download or save it again")


def _read_pickle(path: Path, whole_module: bool = False) -> dict[str, Tensor]:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    mappable = is_archive and _is_utf8(path)  # PyTorch maps no file of another name
    try:
        value = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mappable)  # PyTorch 2.1 maps no Path
    except Exception as error:
        refused = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        if name := refused[1] if refused else _code_in(path):
            if whole_module and is_archive:
                return tensors_of_module(path)
            raise CheckpointError(
                f"{path} is a pickle that holds {name}, not just tensors, and loading it could run code; it was not loaded. "
                "Save its state dict alone, or convert it to safetensors where you trust it"
            ) from None
        if "TorchScript" in str(error):
            raise CheckpointError(_SCRIPT.format(path)) from None
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0].split(". This is an internal miniz error")[0]
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


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


_SCRIPT = (
    "{} is a TorchScript archive, which is a program and not just tensors; it was not loaded. "
    "OpenAI's CLIP files are such archives: use the same model as a folder from the hub, such as openai/clip-vit-large-patch14"
)


class _ShortReads(io.FileIO):
    """A file of which at most the size of a tensor archive's directory is read at once."""

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
    """The first name in a pickle that tensors do not need, such as that of a function to be called."""
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
    except Exception:  # damaged: it was refused for another reason
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
    _check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, source, hint)
    for name, tensor in tensors.items():
        _check_values(name, tensor, source)
    network.load_state_dict(tensors, strict=True, assign=True)


Shapes = Mapping[str, tuple[int, ...]]


def _check_shapes(shapes: Shapes, expected: Shapes, source: str, hint: str = "") -> None:
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{name} is unexpected" for name in shapes if name not in expected]
    problems += [
        f"{name} has shape {shapes[name]} and should have {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems[:5])}{more}{hint}")


def _check_values(name: str, tensor: Tensor, source: str) -> None:
    if tensor.dtype not in _WEIGHT_DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        what = "no values" if tensor.is_meta else f"{tensor.dtype} in {tensor.layout} layout"
        raise CheckpointError(f"{source}: {name} holds {what}; weights are dense float32, float16, bfloat16 or float64: convert them")
    # One pass at memory speed: a NaN or infinity survives a sum. Only a sum that overflowed needs the second look.
    if not math.isfinite(tensor.sum(dtype=torch.float32)) and not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{source}: {name} holds NaN or infinite weights; the file is damaged or training diverged")


# --- networks that fill the memory ---------------------------------------------------------------------------------------------------

_PIECE = 1 << 28  # bytes, as float32: of a file that are mapped at once


class Piece(NamedTuple):
    """A tensor of a file of weights, before it is read."""

    file: Path
    name: str
    """In the file."""
    shape: tuple[int, ...]


def pieces_of(files: Sequence[Path]) -> dict[str, Piece]:
    """The tensors of files of weights (the shards of one checkpoint), by name, in their order, without reading their values.

    Safetensors, or what ``torch.save`` wrote, which is memory-mapped as by ``read_checkpoint``. Raises ``CheckpointError``.
    """
    pieces: dict[str, Piece] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file.parent} lacks {file.name}; download it again")
        if file.suffix == ".safetensors":
            shapes = _shapes_in_safetensors(file)
        else:
            shapes = {name: tuple(tensor.shape) for name, tensor in _read_tensors(file)[0].items()}
        if twice := next((name for name in shapes if name in pieces), None):
            raise CheckpointError(f"{file}: {twice} is also in {pieces[twice].file.name}; these are not shards of one checkpoint")
        pieces |= {name: Piece(file, name, shape) for name, shape in shapes.items()}
    return pieces


def _shapes_in_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    _checked_start(file)
    _check_safetensors(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.offset_keys()}
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}; download or save it again") from None


@contextmanager
def _opened(file: Path) -> Iterator[Callable[[str], Tensor]]:
    """What gives the tensors of a file by their names, mapped as long as it is open."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with torch.device("cpu"), safe_open(file, framework="pt") as opened:
            yield opened.get_tensor
    else:
        yield _read_tensors(file)[0].__getitem__


def load_pieces_strictly(
    network: nn.Module,
    pieces: Mapping[str, Piece],
    source: str,
    *,
    dtype_of: Callable[[str], torch.dtype],
    device_of: Callable[[str], torch.device],
    hint: str = "",
) -> None:
    """As ``load_strictly``, for networks that would not fit into memory twice: tensor by tensor, each converted and placed as it is read.

    ``pieces``: by the network's names; where two names are one tensor (tied embeddings), either will do. Files are mapped a part at a time,
    so that no more than that is in memory besides the weights; a CPU's tensors of the file's own dtype stay in the file.
    """
    expected: dict[str, tuple[int, ...]] = {}
    names: dict[int, list[str]] = {}  # of each tensor
    for name, tensor in network.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for own in names.values():
        present = [name for name in own if name in pieces] or own[:1]
        expected |= {name: tuple(network.get_parameter(name).shape) for name in present}
    _check_shapes({name: piece.shape for name, piece in pieces.items()}, expected, source, hint)
    same = {name: own for own in names.values() for name in own}
    for part in _parts(pieces):
        with _opened(part[0][1].file) as tensor_of:
            for name, piece in part:
                tensor = tensor_of(piece.name)
                if tensor.dtype not in _WEIGHT_DTYPES:
                    _check_values(name, tensor, source)  # raises
                placed = nn.Parameter(tensor.to(device_of(name), dtype_of(name)), requires_grad=False)
                _check_values(name, placed.data, source)
                for alias in same[name]:
                    module, _, leaf = alias.rpartition(".")
                    setattr(network.get_submodule(module), leaf, placed)


def _parts(pieces: Mapping[str, Piece]) -> Iterator[list[tuple[str, Piece]]]:
    """Neighbours in one file each: as many as make ``_PIECE`` bytes in float32, or a larger one."""
    part: list[tuple[str, Piece]] = []
    size = 0
    for name, piece in pieces.items():
        own = 4 * math.prod(piece.shape)
        if part and (size + own > _PIECE or part[0][1].file != piece.file):
            yield part
            part, size = [], 0
        part.append((name, piece))
        size += own
    if part:
        yield part


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
            except SafetensorError as error:  # raised for a full disk
                what = f"{folder / name} could not be written: {error}; a checkpoint that was there is unchanged"
                raise OSError(errno.EIO, what) from error
        for name, text in texts.items():
            places[name].write_text(text, encoding="utf-8")


# --- BLIP's own checkpoints ----------------------------------------------------------------------------------------------------------


def blip_pretraining_weights(tensors: Mapping[str, Tensor], matching_head: bool = False) -> dict[str, Tensor] | None:
    """The towers and projections in one of BLIP's pretraining or retrieval checkpoints under our names; None for any other checkpoint.

    What training alone needs is left out by name (Salesforce BLIP, ``models/blip_pretrain.py`` and ``models/blip_retrieval.py``): the
    momentum copies (``*_m``), the decoder, the queues and the temperature; and the matching head, unless ``matching_head``. Everything else
    is kept, for ``load_strictly`` to check.
    """
    parts = {name.split(".")[0] for name in tensors}
    if not {"visual_encoder", "text_encoder", "vision_proj", "text_proj"} <= parts or "mlp" in parts:
        return None
    left_out = {"text_decoder", "image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue", "temp"}
    left_out |= {part for part in parts if part.endswith("_m")}
    kept = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in left_out}
    head = {name: kept.pop(name) for name in list(kept) if name.split(".")[0] == "itm_head"}
    return {f"blip.{name}": tensor for name, tensor in kept.items()} | (head if matching_head else {})
