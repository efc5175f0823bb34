"""The table of names, scorers of other packages, and what scorers that are loaded together share."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import seeded
from conftest import tiny
from image_reward.cli import main
from image_reward.downloads import HubFile
from image_reward.errors import CheckpointError, ImageRewardError, UnknownModelError
from image_reward.scorers import MODELS, ImageRewardScorer, LoadOptions, ModelSpec, load, load_all
from image_reward.scorers.build import build_imagereward
from image_reward.scorers.clip import ClipSettings, clip_from_state_dict
from image_reward.scorers.loading import find
from image_reward.scorers.registry import spec_of, specs

DOCS = Path(__file__).parents[2] / "docs" / "scorers.md"


def install(folder: Path, package: str, entry_points: str, **modules: str) -> None:
    """Modules, and the metadata of an installed distribution that names them."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    before = set(sys.modules)
    yield tmp_path / "site"
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_documents_example(site: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = DOCS.read_text(encoding="utf-8").split("## Add your own")[1]
    module, toml = re.findall(r"```(?:python|toml)\n(.*?)```", text, flags=re.DOTALL)
    section, entry = toml.strip().split("\n")
    assert section == '[project.entry-points."image_reward.scorers"]'
    name, value = entry.replace('"', "").split(" = ")
    install(site, "brightness", f"[image_reward.scorers]\n{name} = {value}\n", brightness=module)

    scorer = load("Brightness", "cpu")
    assert scorer.name == "Brightness"
    images = [str(image_folder / f"{name}.png") for name in "abc"]
    rewards = scorer.score("cat", images)
    expected = [scorer.prepare.transform(image).mean().item() for image in images]
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert len(set(rewards)) == 3
    assert scorer.rank("cat", images).order == sorted(range(3), key=lambda i: -expected[i])
    assert scorer.matrix(["cat", "a dog"], images)[1].tolist() == pytest.approx(expected, abs=1e-5)
    scorer.rewards("cat", torch.rand(2, 3, 80, 70, requires_grad=True)).sum().backward()
    assert main(["rank", "cat", *images, "--model", "Brightness", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "Brightness"
    assert main(["models", "list"]) == 0
    assert "how bright the image is" in capsys.readouterr().out
    assert main(["models", "info", "Brightness", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == "MIT"
    with pytest.raises(UnknownModelError, match=r"Did you mean Brightness\?"):
        load("brightnes")


def test_the_documents_table_has_the_rows_of_the_code() -> None:
    rows = {cells[1].strip(" `"): cells for line in DOCS.read_text(encoding="utf-8").split("\n") if len(cells := line.split("|")) == 8}
    for name, spec in MODELS.items():
        assert rows[name][2].strip() == spec.licence


def test_packages_that_are_broken_are_warned_of_by_name(site: Path) -> None:
    install(site, "broken", "[image_reward.scorers]\nBroken = broken:SPEC\n", broken="raise RuntimeError('half installed')")
    install(site, "quits", "[image_reward.scorers]\nQuits = quits:SPEC\n", quits="raise SystemExit(3)")
    install(site, "nonsense", "[image_reward.scorers]\nNonsense = nonsense:SPEC\n", nonsense="SPEC = 'a string'")
    install(site, "taker", "[image_reward.scorers]\nBLIP = taker:SPEC\n", taker="SPEC = None")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert list(specs()) == list(MODELS)
        assert spec_of("BLIP") is MODELS["BLIP"]
        with pytest.raises(UnknownModelError, match="the scorer Broken of the package broken cannot be loaded: see the warning"):
            load("Broken")
    text = [str(warning.message) for warning in seen]
    assert any(t == "the scorer Broken of the package broken cannot be loaded: RuntimeError: half installed" for t in text)
    assert any(t == "the scorer Quits of the package quits cannot be loaded: SystemExit: 3" for t in text)
    assert any(t == "the scorer Nonsense of the package nonsense is no ModelSpec: nonsense:SPEC is 'a string'" for t in text)
    assert any("the package taker names a scorer BLIP, but the name is taken: this package's own is used" in t for t in text)


def test_a_name_that_two_packages_give(site: Path) -> None:
    module = "from image_reward.scorers import ModelSpec\nSPEC = ModelSpec('{}', 'MIT', 'any', None)"
    for package in ("first", "second"):
        install(site / package, package, f"[image_reward.scorers]\nTwice = {package}:SPEC\n", **{package: module.format(package)})
        sys.path.insert(0, str(site / package))
    try:
        with pytest.warns(UserWarning, match=r"the package first names a scorer Twice, but the name is taken: that of the package second"):
            spec = spec_of("Twice")
    finally:
        sys.path[:2] = []
    assert spec is not None
    assert spec.description == "second"


def test_what_scorers_have_in_common_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def build(paths: tuple[Path, ...], options: LoadOptions) -> Any:
        scorer = tiny(ImageRewardScorer)
        scorer.tower = options.once(("tower", paths), lambda: made.append(nn.Linear(1, 1)) or made[-1])
        return scorer

    for name in ("one", "two"):
        monkeypatch.setitem(MODELS, name, ModelSpec(name, "MIT", "any", build))
    one, two = load_all(["one", "two"], "cpu", batch_size=3)
    assert one.tower is two.tower is made[0]
    assert one.batch_size == two.batch_size == 3
    load("one", "cpu")
    assert len(made) == 2


def test_the_table() -> None:
    for name, spec in MODELS.items():
        assert spec.description, name
        assert spec.range, name
        assert spec.licence in {"Apache-2.0", "MIT", "BSD-3-Clause"}
        assert bool(spec.files) != bool(spec.packaged), name
    assert MODELS["BLIP"].size is None
    assert MODELS["ImageReward-v1.0"].size == 1_786_880_927


def test_a_model_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(seeded.weights(seeded.TINY, 7), tmp_path / "tiny.pt")
    files = tuple(HubFile("owner/tiny", name, original_cache=str(tmp_path)) for name in ("tiny.pt", "words.txt"))
    spec = ModelSpec("two files", "MIT", "any", build_imagereward, files, seeded.TINY)
    monkeypatch.setitem(MODELS, "two", spec)
    assert spec.local_paths() is None  # one is missing
    assert main(["models", "path", "two"]) == 1
    assert "models download two" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("cat")
    assert spec.local_paths() == find("two").paths == (tmp_path / "tiny.pt", tmp_path / "words.txt")
    for command in ("path", "download"):
        assert main(["models", command, "two"]) == 0
        assert capsys.readouterr().out.split() == [str(path) for path in spec.local_paths()]
    assert main(["models", "verify", "two"]) == 0
    assert spec.size is None
    monkeypatch.setitem(MODELS, "two", replace(spec, files=tuple(replace(file, size=3) for file in files)))
    assert MODELS["two"].size == 6


def test_the_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("image_reward.reports.tables._WIDE", 80)
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line for line in lines if line.lstrip().startswith("BLIP-ITM"))
    assert row.split()[-3:] == ["BSD-3-Clause", "-", "no"]


def test_folders_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match=r"config\.json describes no model .* is 'vit' and not one of image-reward,"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"describes no model .* is None"):
        load(tmp_path)


# --- folders from strangers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP as this package writes it."""
    words = seeded.clip_tokenizer_files(tmp_path_factory.mktemp("words"), ["c a", "ca t</w>"])
    settings = {"activation": "quick_gelu", "vision_heads": 2, "text_heads": 2}
    folder = tmp_path_factory.mktemp("models") / "clip"
    clip_from_state_dict(seeded.clip_weights(7), words, ClipSettings(), "seeded", **settings).save_pretrained(folder)
    return folder


def changed(folder: Path, target: Path, file: str, change: dict[str, Any]) -> Path:
    """A copy of a model folder in which a JSON file has other values; ``a.b`` is the key b of the object a."""
    shutil.copytree(folder, target)
    values = json.loads((target / file).read_text())
    for key, value in change.items():
        *outer, last = key.split(".")
        (values[outer[0]] if outer else values)[last] = value
    (target / file).write_text(json.dumps(values))
    return target


SIZES = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"]


@pytest.mark.parametrize("value", [150, 201, 10**7, 10**18, 10**19, 0, -1, 2.5, True, None, "2", [2]], ids=repr)
@pytest.mark.parametrize(
    "key",
    [f"{tower}_config.{size}" for tower in ("text", "vision") for size in SIZES]
    + ["vision_config.image_size", "vision_config.patch_size", "vision_config.num_channels", "projection_dim"]
    + ["text_config.vocab_size", "text_config.max_position_embeddings", "text_config.layer_norm_eps", "vision_config.layer_norm_eps"],
)
def test_sizes_of_a_clip_that_do_not_fit(key: str, value: Any, clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/model"):
        load(changed(clip_folder, tmp_path / "model", "config.json", {key: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"return_dict": False, "text_config.return_dict": False, "vision_config.return_dict": False},
        {"text_config.num_labels": 10**9, "num_labels": 10**9},
        {"text_config.output_hidden_states": True, "vision_config.output_attentions": True},
        {"text_config.gradient_checkpointing": True, "vision_config.attention_dropout": 0.9},
        {"dtype": "float16", "attn_implementation": "flash_attention_2"},
        {"text_config.chunk_size_feed_forward": 1, "text_config.pruned_heads": {"0": [0]}},
    ],
    ids=str,
)
def test_what_does_not_decide_a_clip_changes_nothing(change: dict[str, Any], clip_folder: Path, tmp_path: Path) -> None:
    image = seeded.images()[0]
    expected = load(clip_folder).score("cat", image)
    assert load(changed(clip_folder, tmp_path / "model", "config.json", change)).score("cat", image) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_files_of_a_clip_that_are_not_files(name: str, kind: str, clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "model")
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    else:
        (folder / name).mkdir()
    with pytest.raises(ImageRewardError, match=rf"/model.*{name}"):
        load(folder)


def test_ensembles_of_absurd_size(tmp_path: Path) -> None:
    members = [{"model": f"m{i}"} for i in range(100_000)]
    (tmp_path / "many.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": 1, "members": members}))
    with pytest.raises(CheckpointError, match=r"many\.json has 100,000 members; an ensemble has at most 100"):
        load(tmp_path / "many.json")


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 1e-60},
        {"weight": 3e38},
        {"weight": 0},
        {"weight": 10**100},
        {"reference": {"mean": 0, "std": 1e-30, "num_images": 2, "origin": "x"}},
        {"reference": {"mean": 1e300, "std": 1, "num_images": 2, "origin": "x"}},
        {"reference": {"mean": 0, "std": 1, "num_images": 10**19, "origin": "x"}},
    ],
    ids=str,
)
def test_members_on_scales_that_cannot_be_averaged(change: dict[str, Any], tmp_path: Path) -> None:
    reference = {"mean": 0, "std": 1, "num_images": 2, "origin": "x"}
    members = [{"model": "ImageReward-mini", "reference": reference} | change]
    (tmp_path / "odd.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": 1, "members": members}))
    with pytest.raises(CheckpointError, match=r"odd\.json: .* must be "):
        load(tmp_path / "odd.json")


@pytest.mark.parametrize("version", [True, 1.0, "1", [1], None])
def test_versions_that_are_not_the_number_1(version: Any, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps({"format": "image-reward-ensemble", "version": version, "members": []}))
    with pytest.raises(CheckpointError, match=r"e\.json has format version .*; this release of image-reward reads version 1"):
        load(tmp_path / "e.json")
    settings = json.loads((clip_folder / "config.json").read_text())["image_reward"]
    with pytest.raises(CheckpointError, match=r"image_reward has version .*; this release of image-reward reads version 1"):
        load(changed(clip_folder, tmp_path / "model", "config.json", {"image_reward": settings | {"version": version}}))
