from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import seeded
from image_reward import checkpoints
from image_reward.checkpoints import load_strictly, read_checkpoint
from image_reward.config import RewardConfig, TieConfig, TransformConfig
from image_reward.errors import CheckpointError, FileKindError, ImageRewardError, UnknownModelError
from image_reward.models.blip import ImageRewardNetwork
from image_reward.scorers import ImageRewardScorer, load

IMAGE = seeded.image("rings", 96, 64, 3)
NAME = "blip.visual_encoder.pos_embed"
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return seeded.weights(seeded.TINY, 7)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    """The tiny network as a folder of this package's own format."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    ImageRewardScorer.from_tensors(tensors, seeded.TINY, "seeded weights", name="tiny").save_pretrained(folder)
    return folder


def assert_same(one: Any, other: Any) -> None:
    """Equal weights to the last bit. Rewards may differ in theirs: kernels add up in another order where memory is aligned otherwise."""
    weights, others = one.network.state_dict(), other.network.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[name].to(others[name].dtype), others[name]) for name in weights)
    assert one.config == other.config
    reward, another = (scorer.score("cat", IMAGE) for scorer in (one, other))
    assert reward == pytest.approx(another, abs=1e-5)


# --- what loads ----------------------------------------------------------------------------------------------------------------------


def test_saving_and_loading_changes_nothing(saved: Path, scorer: ImageRewardScorer, tmp_path: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == FILES
    assert_same(load(saved), scorer)
    assert load(saved).name == "tiny"
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((saved / "model.safetensors").read_bytes())
    assert_same(load(alone), scorer)
    load(alone).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == alone.read_bytes()
    assert (tmp_path / "again/config.json").read_text() == (saved / "config.json").read_text()


def test_a_config_survives_with_every_value(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    reward = RewardConfig(mean=0.25, std=2.0, tie=TieConfig("davidson", 0.7), reference=None)
    config = replace(seeded.TINY, max_tokens=20, reward=reward, image=TransformConfig(size=64, mean=(0.5, 0.5, 0.5)))
    ImageRewardScorer.from_tensors(tensors, config, "seeded weights").save_pretrained(tmp_path)
    assert load(tmp_path).config == config


def test_half_precision_is_saved_as_it_is(saved: Path, tmp_path: Path) -> None:
    half = load(saved, dtype="bfloat16")
    half.save_pretrained(tmp_path)
    assert read_checkpoint(tmp_path)[0][NAME].dtype == torch.bfloat16
    assert_same(load(tmp_path, dtype="bfloat16"), half)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
        lambda t: t | {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]},
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t},
        lambda t: {"state_dict": {"model": t}},
        lambda t: {name: torch.nn.Parameter(tensor) for name, tensor in t.items()},
        lambda t: {name: tensor.double() for name, tensor in t.items()},
        lambda t: {name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in t.items()},
    ],
    ids=["released", "module.", "position_ids", "state_dict", "model", "both", "parameters", "float64", "strided"],
)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_layouts_of_pt_files(
    wrap: Callable[[dict[str, Tensor]], Any], new_format: bool, tensors: dict[str, Tensor], scorer: ImageRewardScorer, tmp_path: Path
) -> None:
    torch.save(wrap(tensors), tmp_path / "tiny.pt", _use_new_zipfile_serialization=new_format)
    loaded = load(tmp_path / "tiny.pt", config=seeded.TINY)
    assert_same(loaded, scorer)
    loaded.save_pretrained(tmp_path / "again")
    assert_same(load(tmp_path / "again"), loaded)


def test_a_pt_file_may_have_any_name(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "mod\udce9l.pt"  # of a system whose names were not UTF-8
    torch.save(tensors, path)
    assert read_checkpoint(path)[0].keys() == tensors.keys()


def test_tensors_that_share_one_storage(tensors: dict[str, Tensor], scorer: ImageRewardScorer, tmp_path: Path) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    torch.save({name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}, tmp_path / "flat.pt")
    load(tmp_path / "flat.pt", config=seeded.TINY).save_pretrained(tmp_path)
    assert_same(load(tmp_path), scorer)


def test_a_config_beside_a_pt_file(tensors: dict[str, Tensor], saved: Path, scorer: ImageRewardScorer, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "tiny.pt")
    assert_same(load(tmp_path / "tiny.pt", config=saved / "config.json"), scorer)
    with pytest.raises(CheckpointError, match=r"does not fit the network: .*It carries no config, .* give its config if it is of another"):
        load(tmp_path / "tiny.pt")


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_stay_in_the_file(kind: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """Memory-mapped, not copied: processes on one machine share them. What is written to them does not reach the file."""
    path = tmp_path / f"tiny.{kind}"
    torch.save(tensors, path) if kind == "pt" else save_file(tensors, path)
    read, _ = read_checkpoint(path)
    with torch.device("meta"):
        network = ImageRewardNetwork(seeded.TINY.network)
    load_strictly(network, read, "tiny")
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == {n: t.data_ptr() for n, t in read.items()}
    first, last = (read[name].untyped_storage().data_ptr() for name in (next(iter(read)), list(read)[-1]))
    assert abs(first - last) < 2 * path.stat().st_size  # neighbours in one mapping
    before = path.read_bytes()
    with torch.no_grad():
        network.blip.vision_proj.weight.zero_()
    assert path.read_bytes() == before


# --- what does not -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [torch.save, lambda v, p: torch.save(v, p, _use_new_zipfile_serialization=False)], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_not_run(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    save({"a": seeded.RunsCode(tmp_path / "proof")}, tmp_path / "evil.pt")
    with pytest.raises(
        CheckpointError, match=r"evil\.pt is a pickle that holds posix\.mkdir, not just tensors, .* it was not loaded\. Save"
    ):
        load(tmp_path / "evil.pt")
    for protocol in (0, 2):
        (tmp_path / "raw.pt").write_bytes(pickle.dumps(seeded.RunsCode(tmp_path / "proof"), protocol=protocol))
        with pytest.raises(CheckpointError):
            load(tmp_path / "raw.pt")
    assert not (tmp_path / "proof").exists()


def test_whole_objects_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": tensors, "args": Namespace(lr=1)}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"holds argparse\.Namespace, not just tensors"):
        load(tmp_path / "run.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"holds torch\.nn\.modules\.linear\.Linear, not just tensors"):
        load(tmp_path / "module.pt")


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cat.txt", "cat")
    return file.getvalue()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"", r"a\.pt is empty \(0 bytes\); download it again"),
        ("a.safetensors", b"", r"a\.safetensors is empty"),
        ("a.pt", b"\n <!DOCTYPE html><html>404", "is an HTML or XML page, not a checkpoint: .* download it again"),
        ("a.pt", LFS_POINTER, "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"),
        ("a.safetensors", LFS_POINTER, "is a Git LFS pointer"),
        ("a.pt", b"hello, world\n" * 9, "is neither a PyTorch nor a safetensors file: it begins with b'hello, world.*; download it again"),
        ("a.pt", bytes(range(128, 256)), r"is not a whole PyTorch checkpoint: .*; download or save it again"),
        ("a.pt", a_zip(), "is not a whole PyTorch checkpoint: .*cat.txt; download or save it again"),
        ("a.safetensors", b"hello, world\n" * 9, "is not a whole safetensors file: .*header too large"),
        (
            "a.pt",
            {"epoch": 3, "lr": 0.1},
            "holds no state dict .* but a mapping with the keys 'epoch', 'lr'; save the network's state_dict",
        ),
        ("a.pt", {"state_dict": {}}, "holds no state dict .* but an empty mapping"),
        ("a.pt", {1: torch.zeros(2)}, "holds no state dict .* but a mapping with the keys 1;"),
        ("a.pt", torch.zeros(2), "holds no state dict .* but a Tensor"),
    ],
)
def test_files_that_are_no_checkpoint(name: str, content: Any, message: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.99999])
def test_truncated_files(kind: str, share: float, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / ("tiny.safetensors" if kind == "safetensors" else "tiny.pt")
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        CheckpointError, match=r"tiny\.\w+ is not a whole (PyTorch checkpoint|safetensors file): .*; download or save it again"
    ):
        load(path)


def changed(name: str, tensor: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {n: t for n, t in (tensors | {name: tensor}).items() if t is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(NAME, None), f"does not fit the network: {NAME} is missing$"),
        (changed("mlp.extra", torch.zeros(1)), r"does not fit the network: mlp\.extra is unexpected$"),
        (changed(NAME, torch.zeros(1, 9, 64)), rf"{NAME} has shape \(1, 9, 64\) and should have \(1, 17, 64\)$"),
        (changed(NAME, torch.zeros(1, 17, 64, dtype=torch.int64)), f"{NAME} holds torch.int64 in torch.strided layout; weights are dense"),
        (changed(NAME, torch.zeros(1, 17, 64, dtype=torch.float8_e4m3fn)), f"{NAME} holds torch.float8_e4m3fn"),
        (changed(NAME, torch.zeros(1, 17, 64).to_sparse()), f"{NAME} holds torch.float32 in torch.sparse_coo layout"),
        (changed(NAME, torch.zeros(1, 17, 64, device="meta")), f"{NAME} holds no values"),
        (changed(NAME, torch.full((1, 17, 64), float("nan"))), f"{NAME} holds NaN or infinite weights"),
        (changed(NAME, torch.tensor([float("inf"), -float("inf")] * 544).view(1, 17, 64)), f"{NAME} holds NaN or infinite weights"),
        (changed(NAME, torch.full((1, 17, 64), float("-inf")).half()), f"{NAME} holds NaN or infinite weights"),
        (lambda t: {"x." + n: v for n, v in t.items()}, r"is missing; .* is missing, and 219 more"),
    ],
)
def test_tensors_that_do_not_fit(change: Any, message: str, tensors: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        network = ImageRewardNetwork(seeded.TINY.network)
    with pytest.raises(CheckpointError, match=rf"^tiny\.pt:? .*{message}"):
        load_strictly(network, change(dict(tensors)), "tiny.pt")


def test_large_weights_are_no_error(tensors: dict[str, Tensor]) -> None:
    """Their sum overflows, they do not."""
    with torch.device("meta"):
        network = ImageRewardNetwork(seeded.TINY.network)
    load_strictly(network, tensors | {NAME: torch.full((1, 17, 64), 3e38)}, "tiny")
    assert network.state_dict()[NAME].max() == 3e38


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_folders_that_lack_a_file(missing: str, saved: Path, tmp_path: Path) -> None:
    for name in FILES:
        if name != missing:
            (tmp_path / name).write_bytes((saved / name).read_bytes())
    with pytest.raises(CheckpointError, match=f"is not a model folder: it lacks {missing}"):
        load(tmp_path)
    (tmp_path / missing).write_bytes(LFS_POINTER)
    with pytest.raises(CheckpointError, match="is a Git LFS pointer" if missing == "model.safetensors" else r"config\.json is not JSON"):
        load(tmp_path)


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no model, file or folder is called 'imagereward1.0'\. Did you mean ImageReward-v1.0\?"):
        load("imagereward1.0")
    with pytest.raises(UnknownModelError, match="no model, file or folder is called ''"):
        load("")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*gone\.pt"):
        load(tmp_path / "gone.pt")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*gone"):
        read_checkpoint(tmp_path / "gone")


def test_a_wrong_config_in_a_header_is_named(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, metadata={checkpoints.METADATA_KEY: edited("version", value=9)})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors has format version 9"):
        load(path)


def edited(*path: str, value: Any) -> str:
    config = json.loads(seeded.TINY.to_json())
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(config)


# --- files from strangers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bounded() -> Iterator[None]:
    """What would hang or fill the memory fails instead: a minute, and 2 GiB more than there is now."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("not done after a minute"))
    signal.alarm(60)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 24
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.alarm(0)


def copied(saved: Path, folder: Path, config: str | None = None) -> Path:
    """The saved model in another folder, with another config beside the weights."""
    shutil.copytree(saved, folder)
    if config is not None:
        (folder / "config.json").write_text(config)
    return folder


def special(path: Path, kind: str) -> None:
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a socket"])
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "a.json", "a"])
def test_what_is_not_a_file_is_not_read(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    special(Path(name), kind)
    with pytest.raises(ImageRewardError, match=rf"{name} is {kind}.* not a file"):
        load(f"./{name}")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a socket", "a folder"])
@pytest.mark.parametrize("name", FILES[1:])
def test_what_is_not_a_file_in_a_model_folder(name: str, kind: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied(saved, tmp_path / "model"))
    Path(name).unlink()
    special(Path(name), kind)
    with pytest.raises(ImageRewardError, match=name):
        load(tmp_path / "model")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", ["a named pipe", "a device"])
def test_a_config_that_is_not_a_file(kind: str, saved: Path, tmp_path: Path) -> None:
    special(tmp_path / "config.json", kind)
    with pytest.raises(FileKindError, match=rf"config\.json is {kind}, not a file"):
        load(saved / "model.safetensors", config=tmp_path / "config.json")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    "path",
    [
        ("network", "vision_layers"),
        ("network", "text_layers"),
        ("network", "vision_width"),
        ("network", "text_width"),
        ("network", "text_hidden"),
        ("network", "vocab_size"),
        ("network", "max_positions"),
        ("network", "projection_width"),
        ("network", "image_size"),
        ("network", "patch_size"),
        ("network", "vision_heads"),
        ("image", "size"),
        ("max_tokens",),
    ],
    ids=".".join,
)
@pytest.mark.parametrize("value", [5, 199, 100_000, 10**7, 10**9, 10**18, 10**19, 10**299], ids=lambda value: f"{value:.0e}")
def test_sizes_that_no_network_has(path: tuple[str, ...], value: int, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "model", edited(*path, value=value))
    if path == ("max_tokens",) and value < 512:
        load(folder)
        return
    with pytest.raises(CheckpointError, match="/model"):
        load(folder)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("widths", [[16] * 200_000, [16] * 101, [10**18], [1] * 50, []], ids=["many", "101", "wide", "50", "none"])
def test_heads_that_no_network_has(widths: list[int], saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "model", edited("network", "head_widths", value=widths))
    with pytest.raises(CheckpointError, match=r"/model"):
        load(folder)


def rezipped(source: Path, target: Path, method: int, data: bytes | None = None) -> None:
    """The records of an archive, compressed in another way, and with another pickle."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", method) as changed:
        for record in archive.infolist():
            content = archive.read(record) if data is None or not record.filename.endswith("data.pkl") else data
            changed.writestr(record.filename, content)


@pytest.mark.usefixtures("bounded")
def test_compressed_archives_are_refused_before_they_are_read(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "plain.pt")
    for name, method in (("deflated", zipfile.ZIP_DEFLATED), ("bz2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        rezipped(tmp_path / "plain.pt", tmp_path / f"{name}.pt", method)
        with pytest.raises(
            CheckpointError, match=rf"{name}\.pt is not a PyTorch checkpoint: its record .* is compressed, which torch\.save"
        ):
            load(tmp_path / f"{name}.pt")
    rezipped(tmp_path / "plain.pt", tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED, bytes(1 << 24))
    with pytest.raises(CheckpointError, match=r"bomb\.pt .* its record plain/data\.pkl is compressed"):
        load(tmp_path / "bomb.pt")
    rezipped(tmp_path / "plain.pt", tmp_path / "large.pt", zipfile.ZIP_STORED, bytes(17 << 20))
    with pytest.raises(CheckpointError, match=r"large\.pt .* its record plain/data\.pkl has 17,825,792 bytes; names and shapes"):
        load(tmp_path / "large.pt")


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("size", [10**8, 10**9, (1 << 32) - 1, 10**15])
@pytest.mark.parametrize("which", ["data.pkl", "data/0", "version"])
def test_archives_that_lie_about_their_records(which: str, size: int, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """In the directory at the end, and where the size needs 64 bits in the extra field."""
    torch.save(tensors, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive, zipfile.ZipFile(tmp_path / "lies.pt", "w") as changed:
        for record in archive.infolist():
            changed.writestr(record.filename, archive.read(record))
            if record.filename.endswith(which):
                changed.filelist[-1].file_size = changed.filelist[-1].compress_size = size
    with pytest.raises(CheckpointError, match=r"lies\.pt is not a (whole )?PyTorch checkpoint: .*(download or )?save it again"):
        load(tmp_path / "lies.pt")


@pytest.mark.usefixtures("bounded")
def test_archives_of_a_huge_directory(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        for i in range(20):
            archive.writestr(zipfile.ZipInfo("a/" + f"{i:05}" * 12_000), b"")
        archive.comment = b"x" * 60_000
    assert load(tmp_path / "a.pt", config=seeded.TINY)
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        for i in range(80):
            archive.writestr(zipfile.ZipInfo("a/" + f"{i + 1000:06}" * 10_000), b"")
    with pytest.raises(CheckpointError, match=r"a\.pt is not a whole PyTorch checkpoint: its directory is said to have"):
        load(tmp_path / "a.pt", config=seeded.TINY)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("length", [0, 1, 10**6, 10**9, 1 << 40, (1 << 64) - 1])
def test_safetensors_headers_of_absurd_length(length: int, saved: Path, tmp_path: Path) -> None:
    content = (saved / "model.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not a whole safetensors file: "):
        load(tmp_path / "a.safetensors")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_named_in_pickles_of_every_protocol(protocol: int, zipped: bool, tmp_path: Path) -> None:
    evil = {"weights": [1, 2, "posix"], "a": seeded.RunsCode(tmp_path / "proof"), "b": seeded.RunsCode(tmp_path / "proof")}
    path = tmp_path / "evil.pt"
    if zipped:
        torch.save(evil, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=protocol))
    expected = r"evil\.pt is a pickle that holds posix\.mkdir, not just tensors" if zipped or protocol > 1 else r"evil\.pt is neither"
    with pytest.raises(CheckpointError, match=expected):
        load(path)
    assert not (tmp_path / "proof").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_harmless_pickles_of_other_protocols(protocol: int, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "a.pt", pickle_protocol=protocol)
    try:
        load(tmp_path / "a.pt", config=seeded.TINY)
    except CheckpointError as error:
        assert "its pickle uses what torch.save does not write by default (protocol 2)" in str(error)  # noqa: PT017


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "its brackets are nested too deeply"),
        ('{"format":' * 100_000, "its brackets are nested too deeply"),
        (edited("reward", "mean", value=0.125).replace("0.125", "1" + "0" * 400), "a number has 401 digits"),
        (edited("reward", "mean", value=0.125).replace("0.125", "1" * 5000), "a number has 5000 digits"),
        (edited("reward", "mean", value=0.125).replace("0.125", "1e400"), "the number 1e400 is beyond the range of a float"),
        (edited("reward", "mean", value=0.125).replace("0.125", "-Infinity"), "-Infinity is not a number that JSON has"),
        (edited("reward", "mean", value=10**299), "the reward's mean and std must be finite"),
        (edited("reward", "reference", value="x").replace('"x"', '"\\ud800"'), "surrogates not allowed"),
        (edited("version", value=True), "has format version True"),
        (edited("version", value=1.0), "has format version 1.0"),
        (edited("version", value=[1]), r"has format version \[1\]"),
        (edited("format", value=[]), 'its "format" or "model_type" is None'),
        (edited("format", value=["image-reward"]), r'its "format" or "model_type" is \[.image-reward.\]'),
        (edited("format", value={"a": 1}), 'its "format" or "model_type" is {'),
        (edited("format", value=7), 'its "format" or "model_type" is 7'),
        (seeded.TINY.to_json().replace('"max_tokens"', '"max_tokens": 5, "max_tokens"'), "the key 'max_tokens' occurs twice"),
        (seeded.TINY.to_json() + "x" * (17 << 20), "is larger than"),
        (seeded.TINY.to_json().encode("utf-16").decode("latin-1"), "is not JSON"),
    ],
)
def test_configs_from_strangers(text: str, message: str, saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ImageRewardError, match=rf"/model/config\.json.*{message}"):
        load(folder)


def test_a_byte_order_mark_is_no_error(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "model", "\ufeff" + seeded.TINY.to_json())
    assert load(folder).config == seeded.TINY


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]


@pytest.mark.parametrize(
    ("vocabulary", "size", "message"),
    [
        (None, 31, "BLIP's vocabulary, which null stands for, has 30524 tokens and the network 31 embeddings"),
        (WORDS, 8, "the vocabulary has 7 tokens and the network 8 embeddings"),
        (["cat", *WORDS[1:]], 7, r"a vocabulary is \[PAD\], "),
        ([*WORDS[:-1], "cat"], 7, "each once"),
        ([*WORDS[:-1], "qqzz"], 7, "'qqzz' is not one"),
        ([*WORDS[:-1], ""], 7, "'' is not one"),
        ([], 1, "the vocabulary has 0 tokens"),
    ],
)
def test_vocabularies_that_do_not_fit(vocabulary: list[str] | None, size: int, message: str, saved: Path, tmp_path: Path) -> None:
    config = json.loads(edited("vocabulary", value=vocabulary))
    config["network"]["vocab_size"] = size
    with pytest.raises(CheckpointError, match=rf"/model/config\.json: .*{message}"):
        load(copied(saved, tmp_path / "model", json.dumps(config)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("reward", "std"), 1e-300),
        (("reward", "std"), 1e-40),
        (("reward", "std"), 1e38),
        (("reward", "mean"), 1e300),
        (("reward", "mean"), -1e39),
        (("reward", "tie"), {"model": "davidson", "parameter": 1e308}),
        (("image", "std"), [0.2, 0.2, 1e-45]),
        (("image", "mean"), [0.2, 1e39, 0.2]),
    ],
    ids=str,
)
def test_scales_on_which_nothing_can_be_scored(path: tuple[str, ...], value: Any, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/model/config\.json: .* must be "):
        load(copied(saved, tmp_path / "model", edited(*path, value=value)))


@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_the_widest_scales_give_rewards(value: float, saved: Path, tmp_path: Path) -> None:
    for path in (("reward", "std"), ("reward", "mean")):
        load(copied(saved, tmp_path / str(path), edited(*path, value=value))).score("cat", IMAGE)
    load(copied(saved, tmp_path / "image", edited("image", "std", value=[value] * 3))).score("cat", IMAGE)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a.pt", "a\0b", "a\0b.pt", "x" * 5000, "x/" * 3000, "\ud800", "owner/\u732b"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises((UnknownModelError, FileNotFoundError)):
        load(name)


# --- saving that fails ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB, which is how a full disk looks to who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_checkpoint(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match=r"model\.safetensors could not be written: .*; a checkpoint that was there is unchanged"):
        scorer.save_pretrained(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(FILES, "old")


def test_weights_and_config_are_replaced_together(scorer: ImageRewardScorer, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New weights beside an old config would be a wrong score, silently."""
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    monkeypatch.setattr(scorer, "model_card", lambda: "\ud800")  # cannot be encoded: the last file fails
    with pytest.raises(UnicodeEncodeError):
        scorer.save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_a_folder_that_cannot_be_written(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        scorer.save_pretrained(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        scorer.save_pretrained(tmp_path / "file" / "folder")


def test_saving_over_the_weights_in_use(scorer: ImageRewardScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    loaded = load(tmp_path)  # memory-mapped from the file that is replaced
    loaded.save_pretrained(tmp_path)
    assert_same(loaded, load(tmp_path))
    assert_same(loaded, scorer)
