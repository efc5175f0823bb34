"""Aesthetic Predictor V2.5 against what its own package computes on the same small network, by ``data/aesthetic25_tiny.py``."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

import hub as hubs
import image_reward as ir
import qwen
import seeded
from image_reward.cli import main
from image_reward.downloads import HubFile, WebFile
from image_reward.errors import CheckpointError, InputError
from image_reward.scorers import MODELS
from image_reward.scorers.aesthetic25 import (
    Aesthetic25Files,
    Aesthetic25Scorer,
    SiglipHead,
    aesthetic25_from_files,
    empty_siglip,
)
from image_reward.types import CLIP_MEAN, CLIP_STD
from scorer_checks import check_commands, check_ensemble, check_kept, check_saved_ensemble

ORIGINAL = json.loads((Path(__file__).parents[1] / "data" / "aesthetic25_tiny.json").read_text(encoding="utf-8"))
SHAPES = {name: tuple(shape) for name, shape in ORIGINAL["shapes"].items()}
TOLERANCE = 1e-4
NAMES = {"aesthetic_predictor_v2_5.pth", "config.json", "model.safetensors", "preprocessor_config.json"}


def images() -> list[Any]:
    return [seeded.image(*arguments) for arguments in ORIGINAL["images"]]


def written(folder: Path) -> Path:
    """The published files: SigLIP's also has a text tower, and the scale and bias of its products."""
    folder.mkdir()
    made = qwen.weights(SHAPES, ORIGINAL["seed"])
    made["layers.scoring_head.0.weight"] *= ORIGINAL["gain"]
    head = {name.removeprefix("layers."): tensor for name, tensor in made.items() if name.startswith("layers.")}
    torch.save(head, folder / "aesthetic_predictor_v2_5.pth")
    others = {"logit_scale": torch.zeros(1), "logit_bias": torch.zeros(1), "text_model.head.weight": torch.zeros(3, 3)}
    save_file({name: tensor for name, tensor in made.items() if not name.startswith("layers.")} | others, folder / "model.safetensors")
    config = {"model_type": "siglip", "text_config": {"model_type": "siglip_text_model"}, "vision_config": ORIGINAL["config"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(ORIGINAL["preprocessor"]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("aesthetic25") / "tiny")


@pytest.fixture
def scorer(folder: Path) -> Aesthetic25Scorer:
    return aesthetic25_from_files(Aesthetic25Files.in_folder(folder))


def test_it_is_kept_as_its_files(folder: Path, scorer: Aesthetic25Scorer, tmp_path: Path) -> None:
    check_kept(scorer, ["aesthetic_predictor_v2_5.pth"], folder, tmp_path)


def difference(scorer: Aesthetic25Scorer, precision: str = "float32") -> float:
    return float(np.abs(np.array(scorer.score("", images())) - ORIGINAL[precision]).max())


# --- the same as the original ---


def test_the_scores_are_the_originals(scorer: Aesthetic25Scorer) -> None:
    assert np.ptp(ORIGINAL["float32"]) > 1
    assert difference(scorer) < TOLERANCE


def test_in_bfloat16_they_differ_by_its_rounding(folder: Path) -> None:
    """The original's own bfloat16 and float32 differ by 0.023 here, its head in bfloat16 too."""
    scorer = ir.load(folder, "cpu", "bfloat16")
    assert {weight.dtype for weight in scorer.network.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in scorer.head.parameters()} == {torch.float32}
    assert 0 < difference(scorer, "bfloat16") < 0.05


def test_pixels_are_the_originals(scorer: Aesthetic25Scorer) -> None:
    for image, theirs in zip(images(), ORIGINAL["pixels"], strict=True):
        own = scorer.prepare.transform(image)
        assert own.double().sum().item() == pytest.approx(theirs["sum"], abs=1e-2)
        assert own[:, 0, 0].tolist() == pytest.approx(theirs["first"], abs=1e-6)


def _transform(**changes: Any) -> Callable[[pytest.MonkeyPatch, Aesthetic25Scorer], None]:
    def plant(_: pytest.MonkeyPatch, scorer: Aesthetic25Scorer) -> None:
        scorer.prepare.transform = replace(scorer.prepare.transform, **changes)

    return plant


def _unnormalized(monkeypatch: pytest.MonkeyPatch, _: Aesthetic25Scorer) -> None:
    monkeypatch.setattr("image_reward.scorers.aesthetic25.F.normalize", lambda x, dim: x)  # noqa: ARG005


def _mean_of_patches(_: pytest.MonkeyPatch, scorer: Aesthetic25Scorer) -> None:
    scorer.network.head = _Mean()


class _Mean(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return states.mean(dim=1)


def _rectified(_: pytest.MonkeyPatch, scorer: Aesthetic25Scorer) -> None:
    layers = scorer.head.layers
    scorer.head.layers = nn.Sequential(layers[0], nn.ReLU(), *list(layers)[1:]).eval()


def _another_gelu(_: pytest.MonkeyPatch, scorer: Aesthetic25Scorer) -> None:
    for layer in scorer.network.encoder.layers:
        layer.mlp.activation_fn = nn.ReLU()


FAULTS = {
    "the mean and std of CLIP": _transform(mean=CLIP_MEAN, std=CLIP_STD),
    "a crop in place of the whole image": _transform(fit="crop"),
    "padding in place of the whole image": _transform(fit="pad"),
    "features that are not of length 1": _unnormalized,
    "the mean of patches in place of the pooled feature": _mean_of_patches,
    "an activation in the head": _rectified,
    "another activation in the tower": _another_gelu,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault: str, scorer: Aesthetic25Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch, scorer)
    assert difference(scorer) > 3 * TOLERANCE


# --- the contract ---


def test_any_batch_gives_what_one_at_a_time_gives(scorer: Aesthetic25Scorer) -> None:
    alone = [scorer.score("", image) for image in images()]
    for batch_size in (1, 2, 8):
        scorer.batch_size = batch_size
        assert scorer.score([str(i) for i in range(5)], images()) == pytest.approx(alone, abs=1e-5)
    assert scorer.rank("whatever", images()).order == sorted(range(5), key=lambda i: -alone[i])
    with pytest.raises(ValueError, match=r"Aesthetic-v2.5 does not read the prompt"):
        scorer.matrix(["a", "b"], images())


def test_gradients_reach_the_pixels_and_are_right(scorer: Aesthetic25Scorer) -> None:
    pixels = torch.nn.functional.interpolate(torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(3)), (48, 80))
    pixels = pixels.mul(0.5).add(0.25).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.rewards("", pixels).sum(), pixels)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    direction = gradient / gradient.norm()
    with torch.no_grad():
        up, down = (scorer.rewards("", pixels + sign * 0.02 * direction).double().sum() for sign in (1, -1))
    assert ((up - down) / 0.04).item() == pytest.approx(gradient.norm().item(), rel=0.02)
    files = [image.resize((80, 80)) for image in images()[:2]]
    tensors = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in files])
    assert scorer.rewards("", tensors).tolist() == pytest.approx(scorer.score("", files), abs=0.02)


# --- by name, and with the rest of the package ---


@pytest.fixture
def published(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    """The row of the table, on a server that has the small files."""
    files = MODELS["Aesthetic-v2.5"].files
    content = {f"{file.repo}/{file.name}": (folder / file.name).read_bytes() for file in files.values() if isinstance(file, HubFile)}
    content["aesthetic_predictor_v2_5.pth"] = (folder / "aesthetic_predictor_v2_5.pth").read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with hubs.serve(**content) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        small = dict(files) | {"head": WebFile(f"{hub.url}/aesthetic_predictor_v2_5.pth")}
        monkeypatch.setitem(MODELS, "Aesthetic-v2.5", replace(MODELS["Aesthetic-v2.5"], files=small))
        yield hub


@pytest.mark.usefixtures("published")
def test_by_its_name_the_licence_is_said_aloud(scorer: Aesthetic25Scorer, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(image_folder / f"{name}.png") for name in "abc"]
    assert main(["rank", "a cat", *paths, "--model", "Aesthetic-v2.5", "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    ranked = {row["image"]: row["reward"] for row in json.loads(printed.out)["images"]}
    assert [ranked[path] for path in paths] == pytest.approx(scorer.score("", paths), abs=1e-5)
    assert "AGPL-3.0" in printed.err
    assert MODELS["Aesthetic-v2.5"].licence == "AGPL-3.0"
    with pytest.raises(InputError, match="a config is for ImageReward"):
        ir.load("Aesthetic-v2.5", "cpu", config=ir.ScorerConfig())


def test_jobs_evaluate_ensembles_and_verify_precision(
    folder: Path, scorer: Aesthetic25Scorer, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(image_folder / f"{name}.png") for name in "abc"]
    check_commands(folder, paths, scorer.score("", paths), tmp_path, capsys)
    check_ensemble(scorer, ["a cat"] * 3, paths, mean=0.5)
    check_saved_ensemble(folder, "tiny", paths, tmp_path)


# --- full size ---


def test_the_full_size_layout() -> None:
    """Of the published checkpoints, without storage."""
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision = sizes | {"image_size": 384, "patch_size": 14}
    text = sizes | {"vocab_size": 32000, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1}
    network = empty_siglip({"model_type": "siglip", "vision_config": vision}, Path())
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert shapes["embeddings.position_embedding.weight"] == (729, 1152)
    assert shapes["head.probe"] == (1, 1, 1152)
    assert shapes["head.attention.in_proj_weight"] == (3456, 1152)
    with torch.device("meta"):
        head = {name: tuple(tensor.shape) for name, tensor in SiglipHead(1152).state_dict().items()}
        whole = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    assert head == {
        f"layers.{place}.{kind}": (fan_out, fan_in) if kind == "weight" else (fan_out,)
        for place, fan_in, fan_out in ((0, 1152, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (8, 16, 1))
        for kind in ("weight", "bias")
    }
    own = sum(math.prod(shape) for shape in [*shapes.values(), *head.values()])
    assert MODELS["Aesthetic-v2.5"].least_size == 4 * own
    assert 4 * sum(weight.numel() for weight in whole.parameters()) == pytest.approx(3.51e9, rel=0.002)  # the published file

    def kinds(names: Any) -> set[str]:
        return {".".join("N" if part.isdecimal() else part for part in name.split(".")) for name in names}

    published = kinds(name.removeprefix("vision_model.") for name in SHAPES if name.startswith("vision_model."))
    assert kinds(shapes) == published


# --- bad input ---


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "clip"}, r"config\.json is of model_type 'clip', and Aesthetic-v2.5 is built on 'siglip'"),
        ("config.json", {"vision_config": 3}, "built on 'siglip' with a vision_config"),
        (
            "config.json",
            {"vision_config": ORIGINAL["config"] | {"patch_size": 0}},
            r"config\.json does not describe a SigLIP that can be built",
        ),
        (
            "config.json",
            {"vision_config": ORIGINAL["config"] | {"num_hidden_layers": 2}},
            r"encoder\.layers\.2\S+ is unexpected.*The sizes are",
        ),
        ("preprocessor_config.json", {"image_mean": [0.4, 0.5, 0.5]}, r"image_mean is \[0.4, 0.5, 0.5\], and should be \[0.5, 0.5, 0.5\]"),
        ("preprocessor_config.json", {"resample": 2}, "resample is 2, and should be 3; use the file of google/siglip"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}, "size is {'height': 64"),
    ],
)
def test_files_that_ask_for_something_else(file: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "changed")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        aesthetic25_from_files(Aesthetic25Files.in_folder(folder))


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    folder = written(tmp_path / "other")
    assert {path.name for path in folder.iterdir()} == NAMES
    weights, head = (folder / name for name in ("model.safetensors", "aesthetic_predictor_v2_5.pth"))

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            ir.load(folder, "cpu")

    good = torch.load(head)
    torch.save({name: tensor for name, tensor in good.items() if name != "scoring_head.4.bias"}, head)
    refused(r"aesthetic_predictor_v2_5\.pth does not fit the network: layers\.4\.bias is missing.*this one has 48")
    torch.save(good | {"scoring_head.0.weight": torch.zeros(1024, 768)}, head)
    refused(r"layers\.0\.weight has shape \(1024, 768\) and should have \(1024, 48\)")
    torch.save(seeded.aesthetic_weights(7), head)
    refused("does not fit the network")
    torch.save({"head": io.StringIO()}, head)
    refused("is a pickle that holds _io.StringIO, not just tensors")
    head.unlink()
    refused("a SigLIP alone is not a scorer here; .* load Aesthetic-v2.5 by its name")
    torch.save(good, head)
    assert isinstance(ir.load(folder, "cpu"), Aesthetic25Scorer)
    save_file({"text_model.weight": torch.zeros(2)}, weights)
    refused("has no image tower .* it is not a SigLIP")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        ir.load(folder, "cpu")
