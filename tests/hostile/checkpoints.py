"""Malformed checkpoints: each loads and scores as the original, or is refused by name before anything of it runs or is built."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import pickletools
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

import image_reward as ir
import seeded
from hostile import (
    CLOSE,
    GIB,
    MODEL,
    PROMPTS,
    SPECIAL,
    Case,
    FaultError,
    attempt,
    command,
    command_refuses,
    deep,
    flips,
    mini,
    pictures,
    refused,
    rewards,
    scorer,
    sparse,
    write,
    zeros,
)

GROUP = "checkpoints"
CONFIG, WEIGHTS = "config.json", "model.safetensors"

Make = Callable[[Path], Path]
"""Makes a checkpoint in an empty folder and returns what to load."""


def checkpoint(name: str, make: Make, *says: str, right: bool = False, may_refuse: bool = False, **options: Any) -> Case:
    """A checkpoint that must be refused with words of ``says``, or be ``right``, or either."""
    thorough = zlib.crc32(name.encode()) % 4 == 0
    return Case(GROUP, name, functools.partial(_use, make, says, right, not right or may_refuse, thorough, options))


def _use(make: Make, says: tuple[str, ...], right: bool, may_refuse: bool, thorough: bool, options: dict[str, Any], folder: Path) -> None:
    path = make(folder)
    reward = attempt(
        lambda: ir.load(path, "cpu", **{name: value(folder) for name, value in options.items()}).score(PROMPTS[0], pictures()[0])
    )
    if (folder / "code ran").exists():
        raise FaultError("code of the file ran")
    names = path.stem if path.name.isascii() and path.name.isprintable() else ""
    if isinstance(reward, Exception):
        if not may_refuse:
            raise FaultError(f"it is refused: {type(reward).__name__}: {reward}") from reward
        refused(reward, names, *says)
        if thorough and not options:
            command_refuses("models", "verify", str(path), names=names)
    elif not right:
        raise FaultError(f"it is loaded, and scores {reward}")
    elif abs(reward - rewards()[0]) > CLOSE:
        raise FaultError(f"it scores {reward}, and should score {rewards()[0]}")
    elif thorough and not options and (ended := command("models", "info", str(path))).code:
        raise FaultError(f"`models info` ends with {ended}")


def cases() -> Iterator[Case]:
    yield from containers()
    yield from pickles()
    yield from tensors()
    yield from headers()
    yield from config_files()
    yield from config_values()
    yield from sizes()
    yield from ensembles()
    yield from clips()
    yield from names()


# --- parts ---------------------------------------------------------------------------------------------------------------------------


@functools.cache
def original() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of the embedded model."""
    folder = Path(ir.__file__).parent / "assets" / MODEL
    return json.loads((folder / CONFIG).read_text()), dict(scorer().network.state_dict())


def config(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(original()[0])) | changes


def safetensors_bytes(weights: dict[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> bytes:
    return save({name: tensor.contiguous().clone() for name, tensor in (weights or original()[1]).items()}, metadata)


def folder_of(config_file: Any = None, weights: Any = None) -> Make:
    """A folder of the embedded model with another config.json or other weights: bytes, text, what makes them, or a config."""

    def make(folder: Path) -> Path:
        path = mini(folder / "hostile")
        for name, content in ((CONFIG, config_file), (WEIGHTS, weights)):
            if content is not None:
                (path / name).unlink()
                write(path / name, json.dumps(content) if isinstance(content, dict | list) else content)
        return path

    return make


def file_of(content: Any, name: str = "hostile.pt") -> Make:
    return lambda folder: write(folder / name, content)


def saved(value: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def safe(weights: dict[str, Tensor]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(safetensors_bytes(weights))  # type: ignore[func-returns-value]


def torch_bytes(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def its_config(folder: Path) -> Path:
    """The config that weights which carry none need."""
    return write(folder / "given.json", json.dumps(original()[0]))


def with_weights(**changes: Any) -> dict[str, Any]:
    """The original's tensors, some replaced; None leaves one out."""
    changed = original()[1] | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


# --- files -----------------------------------------------------------------------------------------------------------------------------


def containers() -> Iterator[Case]:
    yield checkpoint("the original folder", folder_of(), right=True)
    whole = safetensors_bytes(metadata={"image_reward_config": json.dumps(original()[0])})
    yield checkpoint("the original as one file", file_of(whole, "hostile.safetensors"), right=True)
    legacy = torch_bytes(original()[1], _use_new_zipfile_serialization=False)
    archive = torch_bytes(original()[1])
    yield checkpoint("the original as a .pt", file_of(archive), right=True, config=its_config)
    yield checkpoint("the original as an old .pt", file_of(legacy), right=True, config=its_config)
    yield checkpoint("the original as a .safetensors called .pt", file_of(whole), right=True)
    for form, data, name in (
        ("safetensors", whole, "hostile.safetensors"),
        (".pt", archive, "hostile.pt"),
        ("old .pt", legacy, "hostile.pt"),
    ):
        for part in (1, 8, 100, len(data) // 4, len(data) // 2, len(data) - 1000, len(data) - 1):
            yield checkpoint(f"{form} cut after {part} of {len(data)} bytes", file_of(data[:part], name), config=its_config)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for number, copy in enumerate(flips(whole, 16, stop=header)):
        yield checkpoint(
            f"safetensors with a bit of its header turned, {number}", file_of(copy, "hostile.safetensors"), right=True, may_refuse=True
        )
    for number, copy in enumerate(flips(archive, 8, start=len(archive) - 3000)):
        yield checkpoint(f".pt with a bit of its list turned, {number}", file_of(copy), right=True, may_refuse=True, config=its_config)
    for number, copy in enumerate(flips(archive, 8, stop=4000)):
        yield checkpoint(f".pt with a bit of its pickle turned, {number}", file_of(copy), right=True, may_refuse=True, config=its_config)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("pickle"))
    for name, content, says in (
        ("nothing", b"", ()),
        ("an HTML page", "<html>404</html>", ("HTML",)),
        ("an HTML page after lines", "\n\n <!doctype html>", ("HTML",)),
        ("a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", ("LFS",)),
        ("noise", np.random.RandomState(4).bytes(5000), ()),
        ("zeros", bytes(5000), ()),
        ("text", "hello " * 100, ()),
        ("JSON", '{"a": 1}', ()),
        ("JSON of eight letters", '{"a": 1}{"a": 1}', ()),
        ("gzip", gzip.compress(archive, 1), ()),
        ("a tar", tar.getvalue(), ()),
        ("an empty zip archive", b"PK\x05\x06" + bytes(18), ()),
        ("a zip archive of no tensors", zipped({"a.txt": b"a"}), ()),
        ("a zip archive without a version", zipped({"a/data.pkl": pickle.dumps({}, 2)}), ()),
        ("a GGUF file", b"GGUF\3\0\0\0" + bytes(300), ()),
        ("a numpy archive", zipped({"a.npy": b"\x93NUMPY\1\0v\0"}), ()),
        ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(300), ()),
        ("an ONNX file", b"\x08\x08\x12\x07pytorch" + bytes(300), ()),
        ("white space", " \n" * 50, ()),
    ):
        for file_name in ("hostile.pt", "hostile.safetensors"):
            yield checkpoint(f"{name} called {file_name}", file_of(content, file_name), *says, config=its_config)
    yield checkpoint("a TorchScript program", file_of(_torchscript), "TorchScript")
    for name, make in SPECIAL.items():
        yield checkpoint(f"{name} for a .pt", file_of(make))
        yield checkpoint(f"{name} for a .safetensors", file_of(make, "hostile.safetensors"))
        yield checkpoint(f"{name} for the weights", folder_of(weights=make))
        yield checkpoint(f"{name} for the config", folder_of(make))
        yield checkpoint(f"{name} for a config that is given", file_of(archive), config=functools.partial(_special, make))
    yield checkpoint("a .pt of 50 GB", file_of(sparse(50 * GIB, archive[:100_000])), config=its_config)
    yield checkpoint("a .safetensors of 50 GB", file_of(sparse(50 * GIB, whole), "hostile.safetensors"))
    for size in (1 << 30, 8 << 30):
        yield checkpoint(
            f"a pickle of {size >> 30} GiB of zeros in a few bytes", file_of(bomb("archive/data.pkl", size)), config=its_config
        )
    yield checkpoint("a tensor of 8 GiB of zeros in a few bytes", file_of(bomb("archive/data/0", 8 << 30)), config=its_config)
    yield checkpoint("a .pt that is deflated", file_of(deflated(archive)), right=True, may_refuse=True, config=its_config)
    yield checkpoint("an empty folder", lambda folder: mkdir(folder / "hostile"))
    yield checkpoint("a folder without weights", lambda folder: without(folder, WEIGHTS), "model.safetensors")
    yield checkpoint("a folder without a config", lambda folder: without(folder, CONFIG), CONFIG)
    yield checkpoint("a folder in place of a file", lambda folder: mkdir(folder / "hostile.pt"))


def _special(make: Callable[[Path], None], folder: Path) -> Path:
    return write(folder / "hostile.pt.json", make)


def mkdir(path: Path) -> Path:
    path.mkdir()
    return path


def without(folder: Path, name: str) -> Path:
    path = mini(folder / "hostile")
    (path / name).unlink()
    return path


def zipped(content: dict[str, bytes], packed: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def deflated(archive: bytes) -> bytes:
    """The same files in a zip archive that packs them, which ``torch.save`` never does."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return zipped({name: file.read(name) for name in file.namelist()}, packed=True)


def bomb(name: str, size: int) -> Callable[[Path], None]:
    """A zip archive whose one file is so many zeros, packed; made only when it is used."""

    def make(path: Path) -> None:
        packed = zeros(size)[2:-4]  # without what zlib puts round it
        sizes = struct.pack("<II", min(len(packed), 2**32 - 1), min(size, 2**32 - 1))
        extra = struct.pack("<HHQ", 1, 8, size) if size >= 2**32 - 1 else b""
        common = struct.pack("<HHHHHI", 45, 0, 8, 0, 33, 0) + sizes + struct.pack("<HH", len(name), len(extra))
        local = b"PK\3\4" + common + name.encode() + extra
        central = b"PK\1\2" + struct.pack("<H", 45) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode() + extra
        place = len(local) + len(packed)
        path.write_bytes(local + packed + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), place, 0))

    return make


def _torchscript(path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    torch.jit.trace(Twice(), torch.ones(1)).save(str(path))


# --- pickles ---------------------------------------------------------------------------------------------------------------------------


class Runs:
    """Pickled, it calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles() -> Iterator[tuple[str, Callable[[str], object]]]:
    """By what is called when they are loaded; each makes a file, whose path is given."""
    import subprocess

    yield "os.system", lambda path: Runs(os.system, f"touch '{path}'")
    yield "eval", lambda path: Runs(eval, f"open({path!r}, 'w')")
    yield "exec", lambda path: Runs(exec, f"open({path!r}, 'w')")
    yield "open", lambda path: Runs(open, path, "w")
    yield "subprocess", lambda path: Runs(subprocess.call, ["touch", path])
    yield "torch.save", lambda path: Runs(torch.save, 1, path)


def pickles() -> Iterator[Case]:
    for name, build in hostile_pickles():
        for protocol in range(6):
            yield checkpoint(f"a bare pickle, protocol {protocol}, that calls {name}", _pickled(build, protocol, "bare"))
        for form in ("archive", "old", "named .safetensors", "model folder"):
            yield checkpoint(f"a pickle in form {form!r} that calls {name}", _pickled(build, 2, form))
    head = b"\x80\x02"
    for name, data in (
        ("an end at once", head + b"."),
        ("no end", head + b"}"),
        ("an operation that does not exist", head + b"\xff."),
        ("a text that says it is of 2^62 bytes", head + b"\x8d" + struct.pack("<Q", 2**62) + b"a."),
        ("bytes that say they are 4 GB", b"\x80\x03B\xff\xff\xff\xffa."),
        ("a number of 2 GB", head + b"\x8b\xff\xff\xff\x7fa."),
        ("a memo of 4 billion", head + b"}r\xff\xff\xff\xff."),
        ("a stack that is empty", head + b"s."),
        ("100,000 lists in lists", head + b"]" * 100_000 + b"a" * 99_999 + b"."),
        ("a list in itself", head + b"]q\0h\0a."),
        ("a mapping in itself", head + b"}q\0X\1\0\0\0ah\0s."),
        ("a frame that is a lie", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."),
        ("a persistent id of a number", head + b"K\1Q."),
        ("an extension", head + b"\x82\x01."),
        ("a class of a module that does not exist", head + b"cnothing\nhere\n."),
        ("a class whose name is a path", head + b"ctorch\n../../x\n."),
    ):
        yield checkpoint(f"a bare pickle of {name}", file_of(data), config=its_config)
        yield checkpoint(
            f"an archive with a pickle of {name}", file_of(zipped({"a/data.pkl": data, "a/version": b"3\n"})), config=its_config
        )


def _pickled(build: Callable[[str], object], protocol: int, form: str) -> Make:
    def make(folder: Path) -> Path:
        data = pickle.dumps({"weight": build(str(folder / "code ran"))}, protocol)
        if form == "archive":
            return write(
                folder / "hostile.pt", zipped({"hostile/data.pkl": data, "hostile/version": b"3\n", "hostile/byteorder": b"little"})
            )
        if form == "old":
            parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001})]
            return write(folder / "hostile.pt", b"".join(parts) + data + pickle.dumps([], 2))
        if form == "named .safetensors":
            return write(folder / "hostile.safetensors", data)
        if form == "model folder":
            return folder_of(weights=data)(folder)
        return write(folder / "hostile.pt", pickletools.optimize(data))

    return make


# --- tensors ---------------------------------------------------------------------------------------------------------------------------

HEAD = "mlp.layers.0.weight"


def tensors() -> Iterator[Case]:
    weights = original()[1]
    head = weights[HEAD]
    nan, infinite, large = head.clone(), head.clone(), torch.full_like(head, 3e38)
    nan[0, 0], infinite[-1, -1] = torch.nan, -torch.inf
    for name, value, says in (
        ("missing", None, (HEAD,)),
        ("of another shape", head[:-1], (HEAD,)),
        ("turned", head.T.contiguous(), (HEAD,)),
        ("flat", head.flatten(), (HEAD,)),
        ("of one more dimension", head[None], (HEAD,)),
        ("empty", head[:0], (HEAD,)),
        ("a single number", torch.tensor(1.0), (HEAD,)),
        ("with NaN", nan, (HEAD,)),
        ("with infinity", infinite, (HEAD,)),
        ("of integers", head.to(torch.int32), (HEAD,)),
        ("of bytes", head.to(torch.uint8), (HEAD,)),
        ("of truth values", head.bool(), (HEAD,)),
        ("of complex numbers", head.to(torch.complex64), (HEAD,)),
        ("of eight bits", head.to(torch.float8_e4m3fn), (HEAD,)),
        ("of numbers that overflow", large, ()),
    ):
        changed = with_weights(**{HEAD: value})
        yield checkpoint(f".pt: a tensor {name}", file_of(saved(changed)), *says, config=its_config)
        yield checkpoint(f"folder: a tensor {name}", folder_of(weights=safe(changed)), *says)
    for name, value in (
        ("on meta", head.to("meta")),
        ("sparse", head.to_sparse()),
        ("in rows", _quietly(lambda: head.to_sparse_csr())),
        ("quantized", _quietly(lambda: torch.quantize_per_tensor(head, 0.1, 0, torch.qint8))),
        ("that is one number, spread", torch.zeros(()).expand(10**6, 10**6)),
        ("that is a list", head.tolist()),
        ("that is an array", head.numpy()),
        ("that is text", "weights"),
        ("that is None, and there", None),
    ):
        changed = dict(weights) | {HEAD: value}
        yield checkpoint(f".pt: a tensor {name}", file_of(saved(changed)), config=its_config)
    yield checkpoint(".pt: a tensor too many", file_of(saved(with_weights(extra=head))), "extra", config=its_config)
    yield checkpoint("folder: a tensor too many", folder_of(weights=safe(with_weights(extra=head))), "extra")
    yield checkpoint("folder: a block too many", folder_of(weights=safe(with_weights(**_block(9)))), "blocks.9")
    renamed = {name.upper(): tensor for name, tensor in weights.items()}
    for name, value in (
        ("names in capitals", renamed),
        ("names of numbers", dict(enumerate(weights.values()))),
        ("names of bytes", {name.encode(): tensor for name, tensor in weights.items()}),
        ("an empty name", dict(weights) | {"": head}),
        ("a name that no file can hold", dict(weights) | {"\ud800": head}),
        ("a list", list(weights.values())),
        ("a tensor", head),
        ("a number", 7),
        ("None", None),
        ("text", "weights"),
        ("nothing", {}),
        ("an optimizer", {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-5}]}),
        ("everything of a run", {"epoch": 3, "optimizer": {}, "net": dict(weights)}),
        ("a mapping of mappings", {"a": {"b": {"c": head}}}),
    ):
        yield checkpoint(f".pt: {name}", file_of(saved(value)), config=its_config)
    for name, value in (
        ("within state_dict", {"state_dict": dict(weights), "epoch": 3}),
        ("within model", {"model": dict(weights)}),
        ("of distributed training", {f"module.{name}": tensor for name, tensor in weights.items()}),
        ("compiled", {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}),
        ("as parameters", {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}),
        ("in double precision", {name: tensor.double() for name, tensor in weights.items()}),
        ("as views of others", {name: torch.stack([tensor, tensor])[1] for name, tensor in weights.items()}),
    ):
        yield checkpoint(f".pt: {name}", file_of(saved(value)), right=True, config=its_config)
    yield checkpoint(".pt: no config", file_of(saved(dict(weights))))
    yield checkpoint(".pt: a network of another size", file_of(saved(seeded.weights(seeded.TINY, 7))), config=its_config)


def _quietly(make: Callable[[], Tensor]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what PyTorch will give up
        return make()


def _block(number: int) -> dict[str, Tensor]:
    first = "blip.visual_encoder.blocks.0."
    return {name.replace(".0.", f".{number}.", 1): tensor for name, tensor in original()[1].items() if name.startswith(first)}


def headers() -> Iterator[Case]:
    """Headers of safetensors that lie."""

    def lying(header: Any, data: bytes = bytes(64), length: int | None = None) -> Make:
        def make(path: Path) -> None:
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)

        return file_of(make, "hostile.safetensors")

    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    for name, make in (
        ("a length of 2^63", lying({"a": entry}, length=2**63)),
        ("a length beyond the file", lying({"a": entry}, length=10**9)),
        ("a length of nothing", lying({"a": entry}, length=0)),
        ("no JSON", lying(b"{junk}")),
        ("UTF-16", lying(json.dumps({"a": entry}).encode("utf-16-le"))),
        ("a list", lying(b"[1]   ")),
        ("100,000 brackets", lying(deep().encode())),
        ("negative places", lying({"a": entry | {"data_offsets": [-64, 0]}})),
        ("places beyond the file", lying({"a": entry | {"data_offsets": [64, 128]}})),
        ("places that end before they begin", lying({"a": entry | {"data_offsets": [64, 0]}})),
        ("places that overlap", lying({"a": entry, "b": entry})),
        ("a kind of number that does not exist", lying({"a": entry | {"dtype": "F7"}})),
        ("a shape that does not fit", lying({"a": entry | {"shape": [5, 5]}})),
        ("a shape beyond any number", lying({"a": entry | {"shape": [2**40, 2**40]}})),
        ("a negative shape", lying({"a": entry | {"shape": [-4, -4]}})),
        ("a name twice", lying(b'{"a":' + json.dumps(entry).encode() + b',"a":' + json.dumps(entry).encode() + b"}")),
        ("notes of numbers", lying({"__metadata__": {"a": 1}, "a": entry})),
        ("a config of junk", lying({"__metadata__": {"image_reward_config": "{"}, "a": entry})),
        ("a config of another version", lying({"__metadata__": {"image_reward_config": json.dumps(config(version=9))}, "a": entry})),
        ("a config of 100,000 brackets", lying({"__metadata__": {"image_reward_config": deep()}, "a": entry})),
        ("30 MB of spaces", lying(b'{"a":' + json.dumps(entry).encode() + b"}" + b" " * (30 << 20))),
        (
            "100,000 tensors of nothing",
            lying({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}, b""),
        ),
        ("no tensors", lying({}, b"")),
        ("bytes that belong to no tensor", lying({"a": entry}, bytes(65))),
    ):
        yield checkpoint(f"safetensors: {name}", make)


# --- config.json -----------------------------------------------------------------------------------------------------------------------


def config_files() -> Iterator[Case]:
    text = json.dumps(original()[0])
    for name, content in (
        ("nothing", b""),
        ("white space", b" \n"),
        ("no JSON", b"{format: image-reward}"),
        ("half of it", text[: len(text) // 2].encode()),
        ("UTF-16", text.encode("utf-16")),
        ("Latin-1", text.replace("above", "caf\xe9").encode("latin-1")),
        ("a comment", "// sizes\n" + text),
        ("100,000 brackets", deep()),
        ("100,000 brackets in a value", text[:-1] + ', "x": ' + deep() + "}"),
        ("a list", "[]"),
        ("null", "null"),
        ("a word", '"image-reward"'),
        ("an empty object", "{}"),
        ("YAML", "format: image-reward\nversion: 1\n"),
        ("an HTML page", "<html></html>"),
        ("a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        ("zeros", bytes(2000)),
        ("a key twice", text[:-1] + ', "max_tokens": 5}'),
        ("a size twice", text.replace('"vision_heads": 4', '"vision_heads": 4, "vision_heads": 2')),
        ("50 MB of spaces", lambda path: path.write_text(text + " " * (50 << 20))),
    ):
        right = name in ("50 MB of spaces", "UTF-16")
        yield checkpoint(f"config.json of {name}", folder_of(content), CONFIG, right=right, may_refuse=True)
    yield checkpoint("config.json after a byte order mark", folder_of("\ufeff" + text), CONFIG, right=True, may_refuse=True)
    yield checkpoint("config.json of Windows' lines", folder_of(json.dumps(original()[0], indent=1).replace("\n", "\r\n")), right=True)
    for key, values in (
        ("format", (None, 1, True, [], {}, "", "image-reward-2", "IMAGE-REWARD", "clip")),
        ("version", (None, 0, 2, -1, True, "1", [], {}, 1.5, 10**400)),
        ("model_type", ([], {}, "clip")),
    ):
        for value in values:
            yield checkpoint(f"config.json: {key} {value!r:.20}", folder_of(config(**{key: value})), CONFIG)
    other = {"architectures": ["CLIPModel"], "model_type": "bert", "hidden_size": 768}
    yield checkpoint("config.json of another model", folder_of(other), CONFIG)


ODD: dict[str, Any] = {
    "text": "x",
    "null": None,
    "truth": True,
    "a list": [],
    "a list of lists": [[]],
    "an object": {},
    "nothing": 0,
    "a negative number": -1,
    "a fraction": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "400 digits": 10**400,
    "a number of text": "64",
    "a byte that no file can hold": "\ud800",
}
UNNAMED = ("a list", "an object", "400 digits", "NaN", "infinity", "a byte that no file can hold")
"""Those that may be refused as no JSON, or for what they lack, without the name of the key."""


def places(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a config, those of its parts too."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


def config_values() -> Iterator[Case]:
    """Every key of a config missing, unknown, and of every wrong type."""
    for path in places(original()[0]):
        if path[0] not in ("format", "version"):
            yield Case(GROUP, f"config.json: {'.'.join(path)} of every wrong type", functools.partial(_use_wrong_types, path))
    for key in (("reward", "tie"), ("image", "mean"), ("image", "std"), ("network", "head_widths"), ("vocabulary",)):
        for name, value in WRONG[key].items():
            yield checkpoint(f"config.json: {'.'.join(key)} of {name}", folder_of(changed(key, value)))
    yield checkpoint("config.json: a key that nobody knows", folder_of(config(temperature=2.0)), CONFIG, "temperature")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WRONG: dict[tuple[str, ...], dict[str, Any]] = {
    ("reward", "tie"): {
        "nothing": {},
        "another model": {"model": "thurstone", "parameter": 1.0},
        "a negative parameter": {"model": "davidson", "parameter": -1.0},
        "a parameter of NaN": {"model": "davidson", "parameter": float("nan")},
        "a parameter below one": {"model": "rao-kupper", "parameter": 0.5},
        "a model of lists": {"model": [], "parameter": 1.0},
        "a parameter of 400 digits": {"model": "davidson", "parameter": 10**400},
    },
    ("image", "mean"): {"two numbers": [0.5, 0.5], "words": ["a", "b", "c"], "NaN": [float("nan")] * 3, "400 digits": [10**400] * 3},
    ("image", "std"): {"zeros": [0, 0, 0], "negative numbers": [-1, -1, -1], "infinity": [float("inf")] * 3, "truth": [True] * 3},
    ("network", "head_widths"): {
        "nothing": [],
        "zeros": [0, 0],
        "other widths": [64, 17],
        "one too many": [64, 16, 8],
        "fractions": [64.0, 16.0],
        "lists": [[64], [16]],
        "a billion": [10**9],
        "10^18": [10**18],
        "10^400": [10**400],
    },
    ("vocabulary",): {
        "null": None,
        "nothing": [],
        "a word too few": WORDS,
        "numbers": list(range(31)),
        "one word 31 times": ["a"] * 31,
        "words without [CLS]": [f"w{n}" for n in range(31)],
        "words that BERT does not know": [*WORDS, *(f"zzqx{n}" for n in range(26))],
        "empty words": [*WORDS, *([""] * 26)],
        "one text": "[PAD][UNK][CLS][SEP][MASK]",
        "words that no file can hold": [*WORDS, *(chr(0xD800 + n) for n in range(26))],
    },
}


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    whole = config()
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


def _use_wrong_types(path: tuple[str, ...], folder: Path) -> None:
    right: Any = original()[0]
    for key in path:
        right = right[key]
    faults = []
    for name, value in {**ODD, "its absence": ...}.items():
        accepted = (
            path in (("reward", "tie"), ("reward", "reference")) and (value is None or (path[-1] == "reference" and isinstance(value, str)))
        ) or (
            isinstance(right, float)
            and type(value) in (int, float)
            and np.isfinite(float(min(value, 1e9)))
            and value < 1e9
            and (path[-1] != "std" or value > 0)
        )
        if accepted:
            continue
        whole = changed(path, value)
        if value is ...:
            inner = whole
            for key in path[:-1]:
                inner = inner[key]
            del inner[path[-1]]
        place = mini(folder / name.replace(" ", "_") / "hostile")
        write(place / CONFIG, json.dumps(whole))
        result = attempt(lambda place=place: ir.load(place, "cpu"))
        try:
            if not isinstance(result, Exception):
                raise FaultError("it is loaded")
            refused(result, "hostile", *([] if name in UNNAMED or path == ("image", "size") else [path[-1]]))
        except FaultError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise FaultError(f"{len(faults)} of {len(ODD) + 1}: " + "; ".join(fault[:200] for fault in faults))


def sizes() -> Iterator[Case]:
    """Sizes that are numbers, but of no network that the weights could be of."""
    for key in (
        "vision_layers",
        "text_layers",
        "vision_width",
        "text_width",
        "text_hidden",
        "vocab_size",
        "max_positions",
        "projection_width",
    ):
        for value in (10**3, 10**5, 10**7, 10**9, 10**19):
            yield checkpoint(f"config.json: {key} {value:.0e}", folder_of(changed(("network", key), value)))
    for key, value in (
        ("vision_heads", 5),
        ("vision_heads", 10**9),
        ("text_heads", 7),
        ("patch_size", 7),
        ("patch_size", 64),
        ("patch_size", 10**9),
        ("image_size", 128),
        ("image_size", 8 * 10**6),
        ("vision_layers", 2),
        ("text_layers", 4),
    ):
        yield checkpoint(f"config.json: {key} {value}", folder_of(changed(("network", key), value)))
    yield checkpoint("config.json: 200,000 widths of the head", folder_of(changed(("network", "head_widths"), [1] * 200_000)))
    yield checkpoint("config.json: images of 10^9 px", folder_of(changed(("image", "size"), 10**9)))
    for value in (2, 25, 10**9, 10**19):
        yield checkpoint(f"config.json: max_tokens {value}", folder_of(config(max_tokens=value)))


# --- ensembles and CLIPs -----------------------------------------------------------------------------------------------------------------


def ensembles() -> Iterator[Case]:
    reference = {"mean": 0.0, "std": 1.0, "num_images": 2, "origin": "x"}
    good = {"model": MODEL, "reference": reference}

    def ensemble(**values: Any) -> Make:
        whole = {"format": "image-reward-ensemble", "version": 1, "members": [good]} | values
        return lambda folder: write(folder / "hostile.json", json.dumps(whole))

    yield checkpoint("ensemble: of one", ensemble(), right=True)
    for name, make in (
        ("no members", ensemble(members=[])),
        ("members of null", ensemble(members=None)),
        ("members of words", ensemble(members=[MODEL])),
        ("members of numbers", ensemble(members=7)),
        ("members of lists", ensemble(members=[[]])),
        ("a member without a model", ensemble(members=[{"weight": 1.0, "reference": reference}])),
        ("a member of numbers", ensemble(members=[good | {"model": 7}])),
        ("a member of nothing", ensemble(members=[good | {"model": ""}])),
        ("a member that is not there", ensemble(members=[good | {"model": "gone.pt"}])),
        ("a member of a zero byte", ensemble(members=[good | {"model": "a\0b"}])),
        ("a member of 5,000 letters", ensemble(members=[good | {"model": "x" * 5000}])),
        ("a member that no file can hold", ensemble(members=[good | {"model": "\ud800"}])),
        ("itself as a member", ensemble(members=[good | {"model": "hostile.json"}])),
        ("its folder as a member", ensemble(members=[good | {"model": "."}])),
        ("a device as a member", ensemble(members=[good | {"model": "/dev/zero"}])),
        ("a member twice", ensemble(members=[good, good])),
        ("100,000 members", ensemble(members=[good] * 100_000)),
        ("a weight of nothing", ensemble(members=[good | {"weight": 0.0}])),
        ("a negative weight", ensemble(members=[good | {"weight": -1.0}])),
        ("a weight of NaN", ensemble(members=[good | {"weight": float("nan")}])),
        ("a weight of 400 digits", ensemble(members=[good | {"weight": 10**400}])),
        ("a weight of words", ensemble(members=[good | {"weight": "1"}])),
        ("a reference without spread", ensemble(members=[good | {"reference": reference | {"std": 0.0}}])),
        ("a reference of NaN", ensemble(members=[good | {"reference": reference | {"mean": float("nan")}}])),
        ("a reference of words", ensemble(members=[good | {"reference": "x"}])),
        ("no reference", ensemble(members=[{"model": MODEL}])),
        ("a reward that does not exist", ensemble(reward="median")),
        ("a reward of lists", ensemble(reward=[])),
        ("a negative penalty", ensemble(penalty=-1.0)),
        ("a penalty of NaN", ensemble(penalty=float("nan"))),
        ("a version of the future", ensemble(version=2)),
        ("a version of truth", ensemble(version=True)),
        ("a key that nobody knows", ensemble(temperature=1)),
        ("a format of lists", ensemble(format=[])),
        ("100,000 brackets", file_of(deep(), "hostile.json")),
        ("no JSON", file_of("{", "hostile.json")),
        ("nothing", file_of("", "hostile.json")),
        *((name, file_of(make, "hostile.json")) for name, make in SPECIAL.items()),
    ):
        yield checkpoint(f"ensemble: {name}", make)


@functools.cache
def clip_files() -> dict[str, bytes]:
    """A small CLIP's folder."""
    import tempfile

    from image_reward.scorers.clip import ClipSettings, clip_from_state_dict

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder, "tokenizer")
        tokenizer.mkdir()
        seeded.clip_tokenizer_files(tokenizer, ["c a", "ca t</w>"])
        settings = ClipSettings(convention="openai")
        scorer = clip_from_state_dict(
            seeded.clip_weights(7), tokenizer, settings, "seeded", activation="gelu", vision_heads=2, text_heads=2
        )
        scorer.save_pretrained(Path(folder, "clip"))
        return {path.name: path.read_bytes() for path in Path(folder, "clip").iterdir()}


def clip(**changes: Any) -> Make:
    """The small CLIP with some files replaced (None: left out), and with other values in its config where they are an object."""

    def make(folder: Path) -> Path:
        contents: dict[str, Any] = dict(clip_files())
        for name, content in changes.items():
            file = name.replace("__", ".")
            if isinstance(content, dict):
                whole = json.loads(contents[file])
                for key, value in content.items():
                    whole[key] = whole.get(key, {}) | value if isinstance(value, dict) and isinstance(whole.get(key), dict) else value
                content = json.dumps(whole)
            contents[file] = content
        for name, content in contents.items():
            if content is not None:
                write(folder / "hostile" / name, content)
        return folder / "hostile"

    return make


def clips() -> Iterator[Case]:
    yield Case(GROUP, "CLIP: whole", _use_whole_clip)
    for tower in ("vision_config", "text_config"):
        for key, values in {
            "num_hidden_layers": (-1, 0, 3, 10**5, 10**7, 10**19, "2", None, [], 0.5),
            "hidden_size": (0, 7, 10**9, "x", None, {}),
            "num_attention_heads": (0, 3, 10**9, "x"),
            "intermediate_size": (0, 10**12, "x"),
            "hidden_act": ("nothing", 7, None),
            "layer_norm_eps": ("x", None, float("nan")),
        }.items():
            for value in values:
                yield checkpoint(f"CLIP: {tower}.{key} {value!r}", clip(config__json={tower: {key: value}}))
    for key, value in (
        ("projection_dim", 0),
        ("projection_dim", 10**12),
        ("projection_dim", "x"),
        ("text_config", 7),
        ("text_config", []),
        ("vision_config", None),
        ("image_reward", []),
        ("image_reward", {"version": 9}),
        ("image_reward", {"scaled": 1}),
        ("image_reward", {"architecture": "Nothing"}),
        ("image_reward", {"max_tokens": 10**9}),
        ("model_type", []),
    ):
        yield checkpoint(f"CLIP: {key} {value!r:.40}", clip(config__json={key: value}))
    for name in ("preprocessor_config.json", "tokenizer.json", "config.json"):
        file = name.replace(".", "__")
        for what, content in (
            ("nothing", b""),
            ("no JSON", b"{"),
            ("a list", b"[]"),
            ("null", b"null"),
            ("100,000 brackets", deep()),
            ("an empty object", b"{}"),
            ("not UTF-8", b'{"a": "\xe9"}'),
        ):
            may = name.startswith("preprocessor") and what == "an empty object"
            if not may:
                yield checkpoint(f"CLIP: {name} of {what}", clip(**{file: content}))
        for what, make in SPECIAL.items():
            yield checkpoint(f"CLIP: {name} that is {what}", clip(**{file: make}))
        yield checkpoint(f"CLIP: no {name}", clip(**{file: None}))
    for key, value in (
        ("size", 99),
        ("size", "64"),
        ("size", {"shortest_edge": []}),
        ("crop_size", "x"),
        ("resample", 0),
        ("do_resize", False),
        ("image_mean", [1]),
        ("image_mean", "x"),
        ("image_std", [0, 0, 0]),
        ("rescale_factor", 10**400),
        ("rescale_factor", "x"),
    ):
        yield checkpoint(f"CLIP: preprocessor's {key} {value!r:.20}", clip(preprocessor_config__json={key: value}))
    for key, value in (
        ("model", {"vocab": {}}),
        ("model", {"vocab": {"a": -1}}),
        ("model", {"type": "Nothing"}),
        ("model", 7),
        ("version", 7),
    ):
        yield checkpoint(f"CLIP: tokenizer's {key} {value!r:.30}", clip(tokenizer__json={key: value}), right=False, may_refuse=True)
    yield checkpoint("CLIP: no weights", clip(model__safetensors=None))
    yield checkpoint("CLIP: weights of another model", clip(model__safetensors=safe(original()[1])))
    yield checkpoint("CLIP: a list of weights in several files", clip(model__safetensors=None, **{"model.safetensors.index.json": b"{}"}))
    yield checkpoint("CLIP: a pickle that runs code for weights", _clip_of_code)


def _clip_of_code(folder: Path) -> Path:
    path = clip(model__safetensors=None)(folder)
    write(path / "pytorch_model.bin", pickle.dumps({"a": Runs(os.system, f"touch '{folder / 'code ran'}'")}, 2))
    return path


def _use_whole_clip(folder: Path) -> None:
    score = attempt(lambda: ir.load(clip()(folder), "cpu").score("cat", pictures()[0]))
    if isinstance(score, Exception) or not -1 <= score <= 1:
        raise FaultError(f"it gives {score!r}")


# --- names -----------------------------------------------------------------------------------------------------------------------------


def names() -> Iterator[Case]:
    for name, given in (
        ("nothing", ""),
        ("a dot", "."),
        ("a name that nobody knows", "ImageReward-v9"),
        ("a hub id that nobody has", "nobody-here/nothing-there"),
        ("a hub id that leads out", "../../etc"),
        ("an address", "https://127.0.0.1:1/model.pt"),
        ("a name of 5,000 letters", "x" * 5000),
        ("a name of a zero byte", "a\0b"),
        ("a name that no file can have", "\ud800"),
        ("a file that is not there", "gone.pt"),
        ("a folder that is not there", "/nowhere/model"),
        ("a home that nobody has", "~nobody-here/model.pt"),
        ("a table of the operating system", "/proc/self/environ"),
    ):
        yield Case(GROUP, f"named: {name}", functools.partial(_use_name, given))
    for name, file in (
        ("not UTF-8", "mod\udce9l.pt"),
        ("a line end", "mod\nel.pt"),
        ("an escape", "mod\x1b[2Jel.pt"),
        ("many letters", "m" * 250 + ".pt"),
    ):
        yield checkpoint(f"a name of {name}", file_of(b"junk" * 100, file), "mod" if file.startswith("mod") else "mmm")
        yield checkpoint(f"a name of {name}, right", file_of(saved(original()[1]), file), right=True, config=its_config)


def _use_name(given: str, folder: Path) -> None:
    os.chdir(mkdir(folder / "here"))
    result = attempt(lambda: ir.load(given, "cpu"))
    if not isinstance(result, Exception):
        raise FaultError("it is loaded")
    refused(result, given[:40] if given.isprintable() else "")
    if given and "\0" not in given and given.isprintable():
        command_refuses("models", "verify", given, names=given[:40])
