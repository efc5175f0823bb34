"""Pickles of plain values and of numpy's arrays of text and numbers, read without numpy or anything else being called by them.

An unpickler calls what a pickle names. This one knows the names that numpy writes for an array, and gives for each of them a stand-in that
holds what it was called with; arrays are made of that afterwards, by this module. Every other name is refused, so pickles of the protocols
before 3, in which bytes are a call too, are not read.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and 2
_ROLES = (
    {("numpy", "ndarray"): "class", ("numpy", "dtype"): "dtype"}
    | {(f"{core}.multiarray", "_reconstruct"): "reconstruct" for core in _CORES}
    | {(f"{core}.numeric", "_frombuffer"): "frombuffer" for core in _CORES}
)
_DTYPE = re.compile(r"U[1-9]\d{0,5}|[iu][1248]|f[248]|b1")
_MOST_DEPTH = 50
_LONGEST_SIDE = 1 << 32
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


class UnreadablePickleError(ValueError):
    """It is damaged, or names what is not allowed."""


class _Dtype:
    __slots__ = ("name", "order")

    def __init__(self, name: str) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) >= 2 else None
        if order not in ("<", ">", "|", "="):
            raise UnreadablePickleError("an array has a strange type")
        self.order = "=" if order == "|" else order

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.name}")


class _Array:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
            raise UnreadablePickleError("an array holds neither text nor numbers")
        if not isinstance(shape, tuple) or len(shape) > 8 or not all(map(_is_side, shape)) or order not in ("C", "F"):
            raise UnreadablePickleError("an array has a strange shape")
        kind = dtype.dtype()
        if math.prod(shape) * kind.itemsize != len(data):
            raise UnreadablePickleError("an array holds more or less than its shape says")
        self.value = np.frombuffer(data, kind).reshape(shape, order=order)
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnreadablePickleError("an array has a strange state")
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")


def _is_side(side: Any) -> bool:
    return type(side) is int and 0 <= side <= _LONGEST_SIDE


class _Name:
    """What a pickle gets for a name. It has no attributes that a pickle could set."""

    __slots__ = ("role",)

    def __init__(self, role: str) -> None:
        self.role = role

    def __setstate__(self, _: Any) -> None:
        raise UnreadablePickleError("it changes what it may only call")

    def __call__(self, *arguments: Any) -> Any:
        if self.role == "reconstruct" and len(arguments) == 3:
            return _Array()
        if self.role == "frombuffer" and len(arguments) == 4:
            return _Array().fill(*arguments)
        if self.role == "dtype" and arguments and isinstance(arguments[0], str) and _DTYPE.fullmatch(arguments[0]):
            return _Dtype(arguments[0])
        raise UnreadablePickleError("it calls numpy for something else than an array of text or numbers")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        role = _ROLES.get((module, name))
        if role is None:
            raise UnreadablePickleError(f"it names {f'{module}.{name}'[:100]}, and only arrays of numpy are read")
        return _Name(role)

    def persistent_load(self, _: Any) -> Any:
        raise UnreadablePickleError("it refers to an object elsewhere")


def loads(data: bytes) -> Any:
    """What a pickle holds, arrays as numpy's. Raises ``UnreadablePickleError``."""
    try:
        for opcode, argument, _ in pickletools.genops(data):  # also finds sizes that are not those of what follows
            if opcode.name in _PUTS and argument is not None and argument > len(data):
                raise UnreadablePickleError("it has a memo of more objects than bytes")  # the memo is an array
        return _plain(_Unpickler(io.BytesIO(data)).load(), 0, {})
    except UnreadablePickleError:
        raise
    except Exception as error:  # of any kind: an unpickler is a machine that runs what it reads
        raise UnreadablePickleError(f"it is damaged ({type(error).__name__})") from None


def _plain(value: Any, depth: int, made: dict[int, Any]) -> Any:
    """``made``: what has been made of each list and dictionary, which may be referred to any number of times."""
    if depth > _MOST_DEPTH:
        raise UnreadablePickleError("it is nested too deeply")
    if isinstance(value, _Array):
        if value.value is None:
            raise UnreadablePickleError("an array has no content")
        return value.value
    if isinstance(value, dict | list | tuple):
        if id(value) not in made:
            if isinstance(value, dict):
                made[id(value)] = {key: _plain(item, depth + 1, made) for key, item in value.items()}
            else:
                made[id(value)] = [_plain(item, depth + 1, made) for item in value]
        return made[id(value)]
    if value is None or isinstance(value, str | bytes | bytearray | bool | int | float):
        return value
    raise UnreadablePickleError("it holds something else than text, numbers, bytes, lists, dictionaries and arrays")
