"""The table of names, and scorers of other packages."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from image_reward.cli import main
from image_reward.errors import UnknownModelError
from image_reward.models.blip import Blip, MatchingNetwork
from image_reward.models.blip_config import BlipConfig
from image_reward.scorers import MODELS, load
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
    assert any(t == "the scorer Nonsense of the package nonsense is not a ModelSpec: nonsense:SPEC is 'a string'" for t in text)
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


def test_the_table() -> None:
    for name, spec in MODELS.items():
        assert spec.description, name
        assert spec.range, name
        assert spec.licence in {"Apache-2.0", "MIT", "BSD-3-Clause", "AGPL-3.0"}
        assert bool(spec.files) != bool(spec.packaged), name
    assert MODELS["BLIP"].size is None
    assert MODELS["ImageReward-v1.0"].size == 1_786_880_927
    assert [name for name, spec in MODELS.items() if (spec.size is None) != (spec.least_size is not None)] == []


def test_least_sizes_are_of_the_tensors_that_networks_read() -> None:
    """Those that are published are larger by the names of the tensors alone, so this is what can be said where they are not."""
    with torch.device("meta"):
        blip, matching = Blip(BlipConfig()), MatchingNetwork(replace(BlipConfig(), image_size=384))
        openai, vit_h = CLIPModel(_clip_config(768, 12, 1024, 24)), CLIPModel(_clip_config(1024, 24, 1280, 32))
    parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in {"openai": openai, "vit_h": vit_h}.items()}
    assert MODELS["CLIP"].size == pytest.approx(4 * parameters["openai"], rel=1e-4)
    assert MODELS["PickScore"].least_size == 4 * parameters["vit_h"]
    assert MODELS["HPSv2"].least_size == MODELS["HPSv2.1"].least_size == 2 * parameters["vit_h"]
    assert MODELS["BLIP"].least_size == 4 * sum(p.numel() for p in blip.parameters())
    assert MODELS["BLIP-ITM"].least_size == 4 * sum(p.numel() for p in matching.parameters())


def _clip_config(text_width: int, text_layers: int, vision_width: int, vision_layers: int) -> CLIPConfig:
    towers = [
        {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
        for width, layers in ((text_width, text_layers), (vision_width, vision_layers))
    ]
    return CLIPConfig(text_config=towers[0], vision_config=towers[1] | {"patch_size": 14}, projection_dim=text_width)


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_fits_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("image_reward.reports.tables._WIDE", width)
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    (row,) = (line for line in lines if line.lstrip().startswith("BLIP-ITM"))
    assert row.split() == ["BLIP-ITM", ">", "1.78", "GB", "no"]
    assert sum(line.rstrip().endswith("; BSD-3-Clause") for line in lines) == 2
