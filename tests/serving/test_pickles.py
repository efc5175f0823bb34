from __future__ import annotations

import os
import pickle
import pickletools
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_reward.serving.pickles import UnreadablePickleError, loads

ARRAYS = [
    np.array(["a cat", "ein Café, 猫", ""]),
    np.array_split(np.array(["a", "bc", "def"]), 2)[0],
    np.array([], dtype="U5"),
    np.array([""]),
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.array([1, 2], dtype=">i4"),
    np.zeros((2, 2), dtype=np.uint8),
    np.array([True, False]),
    np.array(["big"], dtype=">U3"),
]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_of_any_protocol(array: Any, protocol: int) -> None:
    value = {"images": [b"\xff\xd8", b""], "prompts": array, "only_strict": False, "n": None, "f": 0.5}
    read = loads(pickle.dumps(value, protocol))
    assert read["prompts"].tolist() == array.tolist()
    assert read["prompts"].shape == array.shape
    assert {name: item for name, item in read.items() if name != "prompts"} == {k: v for k, v in value.items() if k != "prompts"}


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


FORBIDDEN: dict[str, Any] = {
    "os.system": Call(os.system, "touch /tmp/never"),
    "eval": Call(eval, "1"),
    "subprocess": Call(subprocess.Popen, ["true"]),
    "a path": Path("a"),
    "objects in an array": np.array([{}], dtype=object),
    "numpy's loader": Call(np.load, "a.npy"),
    "a huge array": Call(np.ndarray, (1 << 40,)),
    "a structured array": np.zeros(2, dtype=[("a", "i4")]),
    "a number of numpy": np.float32(1),
    "a complex array": np.zeros(2, dtype=complex),
    "a class": dict,
    "a set": {1},
    "a function of numpy": np.sum,
    "getattr": Call(getattr, "a", "upper"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", FORBIDDEN)
def test_everything_else_is_refused(name: str, protocol: int) -> None:
    with pytest.raises(UnreadablePickleError):
        loads(pickle.dumps({"images": FORBIDDEN[name]}, protocol))


def test_a_stand_in_cannot_be_changed() -> None:
    """BUILD would set attributes of what a name stands for."""
    for state in (b"}", b"(Nc_codecs\nencode\nt", b"]"):
        with pytest.raises(UnreadablePickleError):
            loads(b"cnumpy\ndtype\n" + state + b"b.")


@pytest.mark.parametrize(
    "data",
    [b"", b".", b"N", b"\x80\x05", b"garbage", b"P0\n.", b"\x80\x02\x82\x01.", b"cnumpy\nndarray\n.", b"cnumpy\ndtype\n(V\nU5\ntR."],
)
def test_damaged_pickles(data: bytes) -> None:
    with pytest.raises(UnreadablePickleError):
        loads(data)


def test_an_array_that_is_longer_than_its_data() -> None:
    array = pickle.dumps(np.zeros(3, dtype=np.uint8), 3)
    with pytest.raises(UnreadablePickleError):
        loads(array.replace(b"K\x03\x85", b"K\x04\x85"))
    assert any(opcode.name == "BUILD" for opcode, _, _ in pickletools.genops(array))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("U0", (1 << 40,)), ("U1", (1 << 40, 0)), ("U1", (0,) * 9), ("U1", (1 << 5000, 0)), ("U1", (-1, -1))],
    ids=["of nothing", "a long side", "many sides", "a huge number", "negative"],
)
def test_arrays_without_data_are_not_large(kind: str, shape: tuple[int, ...]) -> None:
    assert loads(unframed("U1", (0,))).shape == (0,)
    with pytest.raises(UnreadablePickleError):
        loads(unframed(kind, shape))


def unframed(kind: str, shape: tuple[int, ...]) -> bytes:
    """What numpy writes for an array without data, of a shape of one's own."""
    data = pickle.dumps(np.zeros(0, "U7"), 3).replace(b"U7", kind.encode())
    head, _, tail = data.rpartition(b"K\x00\x85")
    return head + pickle.dumps(shape, 2)[2:-1] + tail


def test_a_memo_is_not_larger_than_the_pickle() -> None:
    with pytest.raises(UnreadablePickleError, match="memo"):
        loads(b"\x80\x03Nr\xff\xff\xff\x0f.")


def test_what_is_referred_to_often_is_read_once() -> None:
    value: Any = []
    for _ in range(40):
        value = [value, value]
    read = loads(pickle.dumps(value))
    assert read[0] is read[1]


def test_deep_nesting_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    with pytest.raises(UnreadablePickleError, match="nested"):
        loads(pickle.dumps(value))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(UnreadablePickleError):
        loads(data)


@given(st.integers(0, 400), st.integers(0, 255))
def test_any_change_of_a_pickle_is_read_or_refused(place: int, byte: int) -> None:
    data = bytearray(pickle.dumps({"images": [b"abc"], "prompts": ARRAYS[0]}))
    data[place % len(data)] = byte
    with suppress(UnreadablePickleError):
        loads(bytes(data))
