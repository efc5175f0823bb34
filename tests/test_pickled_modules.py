"""Whole modules that ``torch.save`` pickled, read as data: what they hold, and files from strangers."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import seeded
from image_reward.checkpoints import read_checkpoint
from image_reward.errors import CheckpointError

TENSORS = {
    "model.a.weight": torch.arange(6.0).view(2, 3).T,
    "model.a.scale": torch.tensor(2.5),
    "model.b.weight": torch.ones(4, dtype=torch.bfloat16),
    "inv_freq": torch.arange(3.0).half(),
}


def test_tensors_of_a_module_whose_class_is_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    seeded.save_module(path, TENSORS, "nowhere.models", "Network")
    assert "nowhere" not in sys.modules
    with pytest.raises(CheckpointError, match=r"is a pickle that holds nowhere\.models\.Network, not just tensors"):
        read_checkpoint(path)
    read, config = read_checkpoint(path, whole_module=True)
    assert config is None
    assert read.keys() == TENSORS.keys()  # without the buffer that is not saved
    for name, tensor in TENSORS.items():
        assert (read[name].dtype, read[name].stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(read[name], tensor)


def test_they_are_those_of_the_state_dict(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.TransformerEncoderLayer(4, 2, 5), None)
    torch.save(network, tmp_path / "module.pt")
    read, _ = read_checkpoint(tmp_path / "module.pt", whole_module=True)
    expected = network.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    torch.save(expected, tmp_path / "state.pt")
    assert read_checkpoint(tmp_path / "state.pt", whole_module=True)[0].keys() == expected.keys()


def test_they_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(300, 300), path)
    before = path.read_bytes()
    read, _ = read_checkpoint(path, whole_module=True)
    storages = {tensor.untyped_storage().data_ptr() for tensor in read.values()}
    assert len(storages) == 1
    read["weight"].zero_()
    assert path.read_bytes() == before


def test_code_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    network = torch.nn.Linear(2, 2)
    network.extra = seeded.RunsCode(proof)
    torch.save(network, tmp_path / "module.pt")
    read, _ = read_checkpoint(tmp_path / "module.pt", whole_module=True)
    assert torch.equal(read["weight"], network.weight)
    network.register_parameter("more", None)
    network._buffers["more"] = seeded.RunsCode(proof)  # type: ignore[assignment]
    torch.save(network, tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"whole module whose tensors cannot be read: more is not a tensor, but a \S*mkdir"):
        read_checkpoint(tmp_path / "module.pt", whole_module=True)
    torch.save({"weight": seeded.RunsCode(proof)}, tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="what it holds is not a module, but a dict"):
        read_checkpoint(tmp_path / "module.pt", whole_module=True)
    torch.save(network, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not just tensors"):
        read_checkpoint(tmp_path / "old.pt", whole_module=True)
    assert not proof.exists()


def archive(path: Path, pickled: bytes, data: bytes = bytes(64)) -> None:
    with zipfile.ZipFile(path, "w") as file:
        first = zipfile.ZipInfo("module/data/0")
        first.extra = b"FB" + struct.pack("<H", 17) + bytes(17)  # so that its content begins at byte 64
        file.writestr(first, data)
        file.writestr("module/data.pkl", pickled)
        file.writestr("module/version", "3\n")


def described(parts: bytes) -> bytes:
    """A pickle of a module whose parameters, a mapping, are what these opcodes put into it."""
    return b"\x80\x02cnowhere\nModule\n)\x81}(X\x0b\x00\x00\x00_parameters}" + parts + b"X\x08\x00\x00\x00_modules}ub."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x10tQ"


def tensor(offset: int = 0, size: int = 2, stride: int = 1, storage: bytes = STORAGE) -> bytes:
    numbers = [b"J" + struct.pack("<i", number) for number in (offset, size, stride)]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers[0] + numbers[1] + b"\x85" + numbers[2] + b"\x85\x89}tR"


def test_a_tensor_by_hand(tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", described(text("w") + tensor(3, 4, 2) + b"s"), torch.arange(16.0).numpy().tobytes())
    (read,) = read_checkpoint(tmp_path / "a.pt", whole_module=True)[0].values()
    assert read.tolist() == [3, 5, 7, 9]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (text("w") + tensor(0, 17) + b"s", "a tensor is larger than its storage"),
        (text("w") + tensor(10, 4, 2) + b"s", "a tensor is larger than its storage"),
        (text("w") + tensor(-1) + b"s", "a tensor has a negative size"),
        (text("w") + tensor(storage=STORAGE.replace(b"K\x10", b"K\x11")) + b"s", "its record 0 is shorter than the tensor in it"),
        (text("w") + tensor(storage=STORAGE.replace(text("0"), text("1"))) + b"s", r"There is no item named 'module/data/1'"),
        (text("w") + tensor(storage=STORAGE.replace(b"torch\nFloat", b"evil\nFloat")) + b"s", r"it holds evil\.FloatStorage in place of"),
        (text("w") + tensor(storage=STORAGE.replace(text("0"), b"K\x00")) + b"s", "its storages are not numbered"),
        (text("w") + tensor(storage=b"}") + b"s", "whose tensors cannot be read"),
        (text("w") + b"\x82\x01s", "it uses EXT1, which torch.save does not"),
        (text("w") + b"\x96" + struct.pack("<Q", 1 << 40) + b"s", "whose tensors cannot be read"),
        (text("w") + b"j\xff\xff\xff\x7fs", "whose tensors cannot be read"),
        (b"tt", "it is damaged"),
        (text("w") + b"0000000", "whose tensors cannot be read"),
        (text("w") + b"(K\x01K\x02)\x93s", "whose tensors cannot be read"),
    ],
)
def test_what_strangers_write(parts: bytes, message: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", described(parts))
    with pytest.raises(CheckpointError, match=rf"a\.pt .*{message}"):
        read_checkpoint(tmp_path / "a.pt", whole_module=True)


def without_end(kind: str) -> bytes:
    """Small files that describe no end of modules, names or tensors."""
    head, tail = b"\x80\x02cnowhere\nModule\n)\x81q\x00}(", b"ub."
    empty = text("_parameters") + b"}"
    if kind == "a module in itself":
        return head + empty + text("_modules") + b"}" + text("a") + b"h\x00s" + tail
    if kind == "a long name":
        return head + empty + text("_modules") + b"}" + text("a" * 5000) + b"h\x00s" + tail
    many = text("first") + tensor() + b"q\x01" + b"".join(text(str(number)) + b"h\x01" for number in range(400))
    both = b"".join(text(str(number)) + b"h\x00" for number in range(400))
    shared = text("_parameters") + b"}(" + many + b"u"
    return head + shared + text("_modules") + b"}(" + both + b"u" + tail


@pytest.mark.parametrize("kind", ["a module in itself", "a long name", "many of many"])
def test_files_without_end(kind: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", without_end(kind))
    with pytest.raises(CheckpointError, match="it has more modules or tensors than any network"):
        read_checkpoint(tmp_path / "a.pt", whole_module=True)


@pytest.mark.parametrize("change", [lambda b: b.replace(b"data.pkl", b"date.pkl"), lambda b: b[: len(b) // 2], lambda b: b + b"more"])
def test_damaged_archives(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(20, 20), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(change((tmp_path / "a.pt").read_bytes()))
    try:
        read = read_checkpoint(tmp_path / "a.pt", whole_module=True)[0]
    except CheckpointError:
        return
    assert read["weight"].isfinite().all()


def test_every_single_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    """Of the pickle: no other exception comes out, and nothing is imported."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    buffer = io.BytesIO()
    torch.save(network, buffer)
    with zipfile.ZipFile(buffer) as file:
        (name,) = (name for name in file.namelist() if name.endswith("data.pkl"))
        good = file.read(name)
    modules = set(sys.modules)
    for place in range(0, len(good), 3):
        archive(tmp_path / "a.pt", good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        try:
            read: dict[str, Tensor] = read_checkpoint(tmp_path / "a.pt", whole_module=True)[0]
        except CheckpointError:
            continue
        assert all(isinstance(tensor, Tensor) for tensor in read.values())
    assert set(sys.modules) == modules
