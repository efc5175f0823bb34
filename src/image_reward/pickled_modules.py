"""The tensors of a whole module that ``torch.save`` pickled, read without unpickling it.

A pickle is a program, and running it can do anything. Here it is read as data: what builds numbers, texts, lists and mappings is followed;
a class or function is only a name, and a call of it is noted and not made, but for those by which PyTorch writes tensors, which are
views of the mapped file. So nothing that the file names is imported, looked up or run, whatever the file holds.
"""

from __future__ import annotations

import pickletools
import struct
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_reward.errors import CheckpointError

_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONTAINERS = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"}
_LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
# Parts of a pickle can be the same object, so that a small file can describe no end of names, lists and sizes.
_MOST_MODULES, _MOST_TENSORS, _LONGEST_NAME = 10_000, 100_000, 1000
_MARK = object()


@dataclass(frozen=True)
class Name:
    """Of a class or a function: it is not looked up."""

    name: str


@dataclass(eq=False)
class Instance:
    """Of any class: what the file says of it."""

    kind: object
    arguments: Any
    state: Any = field(default=None, repr=False)


def tensors_of_module(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the module in a zip archive of ``torch.save``, memory-mapped, by the names of its state dict.

    Raises ``CheckpointError``. The caller has checked that the archive is not compressed and its pickle not too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            storages = _Storages(path, archive, name.removesuffix("data.pkl"))
            root = _values(archive.read(name), storages)
            return _state_dict(root)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} is a pickle of a whole module whose tensors cannot be read: {reason:.120}; download it again, or save the module's "
            "state_dict() where you trust the file"
        ) from None


class _Storages:
    """The records of an archive that hold numbers, as flat tensors."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        self.archive, self.prefix = archive, prefix
        order = archive.read(f"{prefix}byteorder").decode() if f"{prefix}byteorder" in archive.namelist() else "little"
        if order != sys.byteorder:
            raise ValueError(f"its numbers are {order}-endian")
        self.whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def flat(self, identity: Any) -> Tensor:
        kind, storage, key, _, length = identity
        if kind != "storage" or not isinstance(storage, Name) or storage.name not in _DTYPES or type(length) is not int:
            raise ValueError(f"it holds {_outline(storage):.60} in place of a storage of numbers")
        if not isinstance(key, str):
            raise ValueError(f"its storages are not numbered, but called by a {_outline(key)}")
        record = self.archive.getinfo(f"{self.prefix}data/{key}")
        # The directory says where a record's own header begins, whose length is in it.
        header = bytes(self.whole[record.header_offset : record.header_offset + 30].tolist())
        start = record.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        dtype = _DTYPES[storage.name]
        size = length * dtype.itemsize
        if length < 0 or size > record.file_size or start + size > len(self.whole):
            raise ValueError(f"its record {key} is shorter than the tensor in it")
        if start % dtype.itemsize:
            raise ValueError(f"its record {key} is not aligned, as torch.save does")
        return self.whole[start : start + size].view(dtype)


def _values(pickled: bytes, storages: _Storages) -> Any:
    """What a pickle describes, its tensors being tensors and its objects ``Instance``s."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def popped() -> list[Any]:
        """Down to the last mark."""
        place = next((place for place in reversed(range(len(stack))) if stack[place] is _MARK), None)
        if place is None:
            raise ValueError("it is damaged")
        items = stack[place + 1 :]
        del stack[place:]
        return items

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            num = int(name[-1])
            stack[-num:] = [tuple(stack[-num:])]
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = popped()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = popped()
            stack.append({})
            _put(stack[-1], items)
        elif name in ("APPENDS", "ADDITEMS", "SETITEMS"):
            items = popped()
            _put(stack[-1], items)
        elif name in ("APPEND", "SETITEM"):
            num = 1 if name == "APPEND" else 2
            items = stack[-num:]
            del stack[-num:]
            _put(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(Name(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [Name(".".join(stack[-2:]))]
        elif name in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [_called(*stack[-2:])]
        elif name == "NEWOBJ_EX":
            stack[-3:] = [Instance(stack[-3], stack[-2])]
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Instance):
                stack[-1].state = state
        elif name == "BINPERSID":
            stack.append(storages.flat(stack.pop()))
        elif name in _LITERALS:
            stack.append(argument)
        else:
            raise ValueError(f"it uses {name}, which torch.save does not")
    raise ValueError("it has no end")


def _put(target: object, items: list[Any]) -> None:
    """Into a list or a mapping; what a file puts into other objects is not kept."""
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        target.update({key: value for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str)})


def _called(function: object, arguments: Any) -> Any:
    """What a call that a file describes gives, where it is one of those that tensors need; else a note of it."""
    name = function.name if isinstance(function, Name) else ""
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        storage, offset, size, stride = arguments[:4]
        if offset < 0 or min((*size, *stride), default=0) < 0:
            raise ValueError("a tensor has a negative size")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise ValueError("a tensor is larger than its storage")
        return storage.as_strided(size, stride, storage.storage_offset() + offset)
    if name == "torch._utils._rebuild_parameter":
        return arguments[0]
    if name == "collections.OrderedDict":
        return {}
    if name in ("builtins.set", "__builtin__.set"):
        return arguments[0] if arguments else []
    return Instance(function, arguments)


def _state_dict(root: object) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    left = [("", root)]
    for prefix, module in left:  # which grows
        state = module.state if isinstance(module, Instance) else None
        if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict):
            raise ValueError(f"{prefix.removesuffix('.') or 'what it holds'} is not a module, but a {_outline(module)}")
        kept, parts = [state.get("_parameters") or {}, state.get("_buffers") or {}], state["_modules"]
        unsaved = state.get("_non_persistent_buffers_set") or []
        num_tensors = sum(len(named) for named in kept) + len(tensors)
        if len(prefix) > _LONGEST_NAME or len(left) + len(parts) > _MOST_MODULES or max(num_tensors, len(unsaved)) > _MOST_TENSORS:
            raise ValueError("it has more modules or tensors than any network")
        own = {**kept[0], **kept[1]}
        for name, tensor in own.items():
            if tensor is not None and name not in unsaved:
                if not isinstance(tensor, Tensor):
                    raise ValueError(f"{prefix}{name} is not a tensor, but a {_outline(tensor)}")
                tensors[f"{prefix}{name}"] = tensor
        left += [(f"{prefix}{name}.", part) for name, part in parts.items() if part is not None]
    return tensors


def _outline(value: object) -> str:
    kind = value.kind if isinstance(value, Instance) else value
    return kind.name if isinstance(kind, Name) else type(kind).__name__
