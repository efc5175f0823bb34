"""MPS against what imscore's copy of it computes on the same small network: ``data/mps_tiny.py`` made the numbers and says how."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hub as hubs
import image_reward as ir
import seeded
from image_reward.downloads import HubFile
from image_reward.errors import CheckpointError, InputError
from image_reward.models.clip import clip_config_from_json, clip_network
from image_reward.scorers import MODELS, mps
from image_reward.scorers.mps import CONDITION, MPSFiles, MPSScorer, empty_cross_model, mps_from_files, parts_of
from scorer_checks import check_commands, check_ensemble, check_kept

ORIGINAL = json.loads((Path(__file__).parents[1] / "data" / "mps_tiny.json").read_text(encoding="utf-8"))
SHAPES = {name: tuple(shape) for name, shape in ORIGINAL["shapes"].items()}
PROMPTS = ORIGINAL["prompts"]
SHORT = PROMPTS[:5]
TOLERANCE = 1e-4

pytestmark = pytest.mark.filterwarnings("ignore::image_reward.errors.LongPromptWarning")


def images() -> list[Any]:
    return [seeded.image(*arguments) for arguments in ORIGINAL["images"]]


def tensors() -> dict[str, Tensor]:
    return seeded.mps_weights(SHAPES, ORIGINAL["seed"])


def beside(folder: Path) -> Path:
    """The files of the CLIP that it was tuned from."""
    folder.mkdir()
    seeded.clip_tokenizer_files(folder, ORIGINAL["merges"])
    (folder / "config.json").write_text(json.dumps(ORIGINAL["config"]))
    (folder / "preprocessor_config.json").write_text(json.dumps(ORIGINAL["preprocessor"]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = beside(tmp_path_factory.mktemp("mps") / "tiny")
    save_file({f"mps.{name}": tensor for name, tensor in tensors().items()}, folder / "model.safetensors")  # imscore's layout
    return folder


def files_in(folder: Path, name: str = "model.safetensors") -> MPSFiles:
    return MPSFiles.in_folder(folder)._replace(weights=folder / name)


@pytest.fixture
def scorer(folder: Path) -> MPSScorer:
    return mps_from_files(files_in(folder))


def test_it_is_kept_as_its_files(folder: Path, scorer: MPSScorer, tmp_path: Path) -> None:
    published = tmp_path / "published"
    shutil.copytree(folder, published)
    (published / "model.safetensors").rename(published / "MPS_overall_checkpoint.pth")
    check_kept(scorer, ["MPS_overall_checkpoint.pth"], published, tmp_path)


def difference(scorer: MPSScorer, precision: str = "float32") -> float:
    return float(np.abs(scorer.matrix(PROMPTS, images()) - ORIGINAL[precision]).max())


# --- the same as the original ---


def test_the_scores_are_the_originals(scorer: MPSScorer) -> None:
    assert np.ptp(ORIGINAL["float32"]) > 10
    assert difference(scorer) < TOLERANCE
    for prompt, expected in zip(PROMPTS, ORIGINAL["float32"], strict=True):
        assert scorer.score(prompt, images()) == pytest.approx(expected, abs=TOLERANCE)


def test_in_float16_they_differ_by_its_rounding(folder: Path) -> None:
    """The original's own float16 and float32 differ by 0.05 here."""
    scorer = mps_from_files(files_in(folder))
    scorer.cast(torch.float16)
    assert scorer.network.logit_scale.dtype == scorer.cross_model.layers[0][1].fn.rotary_emb.inv_freq.dtype == torch.float32
    assert {weight.dtype for weight in scorer.cross_model.parameters()} == {torch.float16}
    assert 0 < difference(scorer, "float16") < 0.15


def test_tokens_and_what_is_seen_are_the_originals(scorer: MPSScorer) -> None:
    assert ORIGINAL["condition"] == CONDITION
    assert scorer.condition.tolist() == [ORIGINAL["condition_ids"]]
    assert ORIGINAL["condition_ids"].index(scorer.end) == 60  # none of it is cut
    tokens = scorer.prepare.tokenizer(PROMPTS)
    assert scorer._padded(tokens.ids, tokens.mask).tolist() == ORIGINAL["ids"]
    with torch.inference_mode():
        seen = scorer.encode_prompts(tokens.ids, tokens.mask).seen
    assert seen.tolist() == ORIGINAL["seen"]
    assert not seen.all()


def _threshold(monkeypatch: pytest.MonkeyPatch, _: MPSScorer) -> None:
    monkeypatch.setattr(mps, "THRESHOLD", -math.inf)


def _half_threshold(monkeypatch: pytest.MonkeyPatch, _: MPSScorer) -> None:
    monkeypatch.setattr(mps, "THRESHOLD", 0.1)


def _mean_of_tokens(monkeypatch: pytest.MonkeyPatch, scorer: MPSScorer) -> None:
    """In place of the first: the last layer then has to compute all of them."""

    def forward(image: Tensor, text: Tensor, seen: Tensor) -> Tensor:
        tokens = image[:, None]
        for cross, own in scorer.cross_model.layers:
            tokens = tokens + cross.fn(tokens, text, seen)
            tokens = tokens + own.fn(tokens, tokens.shape[-2])
        return tokens.mean(dim=-2)

    monkeypatch.setattr(scorer.cross_model, "forward", forward)


def _half_scale(_: pytest.MonkeyPatch, scorer: MPSScorer) -> None:
    scorer.network.logit_scale.data = scorer.network.logit_scale.data.half()


def _positions(_: pytest.MonkeyPatch, scorer: MPSScorer) -> None:
    for _cross, own in scorer.cross_model.layers:
        own.fn.rotary_emb.inv_freq.zero_()


def _pooled_norm(_: pytest.MonkeyPatch, scorer: MPSScorer) -> None:
    """CLIP's own normalisation of the class token, which the original leaves out."""
    scorer.network.visual_projection = nn.Sequential(scorer.network.vision_model.post_layernorm, scorer.network.visual_projection)
    scorer.network.visual_projection.weight = scorer.network.visual_projection[1].weight


def _padding_of_zeros(monkeypatch: pytest.MonkeyPatch, scorer: MPSScorer) -> None:
    encode = scorer._encoded

    def encoded(ids: Tensor) -> Any:
        after = (ids == scorer.end).cumsum(dim=1) > 1
        return encode(ids.masked_fill(after, 0))

    monkeypatch.setattr(scorer, "_encoded", encoded)


FAULTS = {
    "no threshold": _threshold,
    "another threshold": _half_threshold,
    "the mean of image tokens": _mean_of_tokens,
    "a scale in half precision": _half_scale,
    "no positions": _positions,
    "image tokens normalised": _pooled_norm,
    "padding of zeros": _padding_of_zeros,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault: str, scorer: MPSScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch, scorer)
    assert difference(scorer) > 3 * TOLERANCE


@pytest.mark.parametrize(("old", "new"), [("face, hair", "face hair"), ("artistry", "art istry"), ("things.", "things"), ("tone, ", "")])
def test_the_conditions_words_commas_and_full_stop_count(old: str, new: str, scorer: MPSScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And white space within words; that between them does not. They reach the score through what is seen alone, which is a threshold."""
    for text, same in ((CONDITION.replace(old, new), False), (CONDITION.replace(", ", ",  \n"), True)):
        monkeypatch.setattr(mps, "CONDITION", text)
        other = MPSScorer(scorer.network, scorer.cross_model, scorer.prepare)
        assert (other.condition.tolist() == [ORIGINAL["condition_ids"]]) is same


def test_the_condition_decides_what_is_seen(scorer: MPSScorer) -> None:
    tokens = scorer.prepare.tokenizer(["things.", *SHORT])
    with torch.inference_mode():
        exact = scorer.encode_prompts(tokens.ids, tokens.mask).seen
        scorer.condition = scorer.condition.clone().fill_(scorer.end)
        assert not torch.equal(scorer.encode_prompts(tokens.ids, tokens.mask).seen, exact)
    assert difference(scorer) > 3 * TOLERANCE


def test_resemblance_is_relative_to_the_prompts_own_largest(scorer: MPSScorer) -> None:
    """The original's is the batch's largest, so that its scores depend on what else is scored."""
    together = scorer.prepare(PROMPTS, [images()[0]] * len(PROMPTS))
    with torch.inference_mode():
        found = scorer(together)
    assert found.tolist() == pytest.approx([row[0] for row in ORIGINAL["float32"]], abs=TOLERANCE)


# --- the contract ---


def test_any_batch_gives_what_one_at_a_time_gives(scorer: MPSScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = np.array([[scorer.score(prompt, image) for image in images()] for prompt in SHORT])
    for batch_size, pairs in ((1, 64), (3, 64), (8, 64), (8, 3)):
        monkeypatch.setattr(mps, "_MOST_PAIRS", pairs)
        monkeypatch.setattr(mps, "_MOST_PROMPTS", pairs)
        scorer.batch_size = batch_size
        np.testing.assert_allclose(scorer.matrix(SHORT, images()), alone, rtol=0, atol=3e-5)
    order = [(2, 3), (0, 0), (4, 3), (2, 1), (0, 3)]
    found = scorer.score([SHORT[prompt] for prompt, _ in order], [images()[image] for _, image in order])
    assert found == pytest.approx([alone[pair] for pair in order], abs=3e-5)


def test_each_image_and_each_prompt_is_encoded_once(scorer: MPSScorer) -> None:
    seen: dict[str, list[int]] = {"pixel_values": [], "input_ids": []}
    for tower, argument in ((scorer.network.vision_model, "pixel_values"), (scorer.network.text_model, "input_ids")):
        tower.register_forward_pre_hook(
            lambda _, __, named, argument=argument: seen[argument].append(len(named[argument])), with_kwargs=True
        )
    scorer.batch_size = 3
    scorer.matrix(SHORT, images())
    assert seen == {"pixel_values": [3, 1], "input_ids": [6]}  # with the condition
    scorer.score(["cat", "dog", "cat"], images()[:1] * 3)
    assert (seen["pixel_values"][2:], seen["input_ids"][1:]) == ([1], [3])


def test_gradients_reach_the_pixels_and_are_right(scorer: MPSScorer) -> None:
    pixels = nn.functional.interpolate(torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(3)), (48, 80))
    pixels = pixels.mul(0.5).add(0.25).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.rewards(["a cat", "red birds"], pixels).sum(), pixels)
    assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
    direction = gradient / gradient.norm()
    with torch.no_grad():
        up, down = (scorer.rewards(["a cat", "red birds"], pixels + sign * 0.002 * direction).double().sum() for sign in (1, -1))
    assert ((up - down) / 0.004).item() == pytest.approx(gradient.norm().item(), rel=0.05)


def test_bfloat16_and_autocast_leave_the_cosine_in_float32(scorer: MPSScorer) -> None:
    exact = scorer.matrix(SHORT, images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.matrix(SHORT, images())
    assert found.dtype == np.float32
    assert not np.array_equal(found, found.astype(np.float16))  # not half numbers in a float's clothes
    scorer.cast(torch.bfloat16)
    for rounded in (found, scorer.matrix(SHORT, images())):
        assert 0 < np.abs(rounded - exact).mean() < 0.5


# --- by name, and with the rest of the package ---


@pytest.fixture
def published(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    """A hub that has the small files under the published names."""
    (tmp_path / "whole").mkdir()
    tokenizer = mps_from_files(files_in(folder)).prepare.tokenizer.definition.encode()
    content = {
        f"{file.repo}/{file.name}": tokenizer if file.name == "tokenizer.json" else (folder / file.name).read_bytes()
        for file in MODELS["MPS"].files.values()
        if isinstance(file, HubFile)
    }
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with hubs.serve(**content) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


@pytest.mark.usefixtures("published")
def test_by_its_name(scorer: MPSScorer) -> None:
    loaded = ir.load("MPS", "cpu")
    assert loaded.name == "MPS"
    assert loaded.score(SHORT[1], images()) == pytest.approx(scorer.score(SHORT[1], images()), abs=1e-5)
    preference = loaded.compare("a cat", *images()[:2])
    probabilities = torch.tensor(loaded.score("a cat", images()[:2])).softmax(0).tolist()
    assert [preference.a_better, preference.b_better] == pytest.approx(probabilities, abs=1e-5)
    with pytest.raises(InputError, match="a config is for ImageReward"):
        ir.load("MPS", "cpu", config=ir.ScorerConfig())
    with pytest.raises(ir.UnknownModelError, match="RE-N-Y/mpsv1 is not a model folder, but what MPS comes from"):
        ir.load("RE-N-Y/mpsv1", "cpu")


def pickled(folder: Path) -> Path:
    """A whole module in half precision, whose classes are not on this machine."""
    pickled_module(folder / "MPS_overall_checkpoint.pth", tensors())
    return folder


def pickled_module(path: Path, tensors: dict[str, Tensor]) -> None:
    seeded.save_module(path, {name: tensor.half() for name, tensor in tensors.items()}, "trainer.models.clip_model", "CLIPModel")


def test_a_folder_with_the_published_pickle(tmp_path: Path, scorer: MPSScorer) -> None:
    loaded = ir.load(pickled(beside(tmp_path / "original")), "cpu")
    assert isinstance(loaded, MPSScorer)
    assert loaded.name == "original"
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert loaded.matrix(SHORT, images()) == pytest.approx(scorer.matrix(SHORT, images()), abs=0.15)  # the weights are rounded
    rounded = {name: tensor.half().float() for name, tensor in tensors().items()}
    save_file(rounded, tmp_path / "original" / "rounded.safetensors")
    again = mps_from_files(files_in(tmp_path / "original", "rounded.safetensors"))
    np.testing.assert_allclose(loaded.matrix(SHORT, images()), again.matrix(SHORT, images()), rtol=0, atol=1e-5)


def test_jobs_evaluate_ensembles_and_verify_precision(
    scorer: MPSScorer, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pickled(beside(tmp_path / "tiny"))
    paths = [str(image_folder / f"{name}.png") for name in "abc"]
    check_commands(folder, paths, ir.load(folder, "cpu").score("a cat", paths), tmp_path, capsys, largest_difference=2)
    check_ensemble(scorer, ["a cat"] * 3, paths, mean=0.5)


# --- full size ---


def test_the_full_size_layout() -> None:
    """Of the published checkpoint, without storage."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "projection_dim": 1024}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14}
    network = clip_network(clip_config_from_json({"projection_dim": 1024, "text_config": text, "vision_config": vision}))
    cross_model = empty_cross_model(1024, [f"layers.{layer}." for layer in range(4)])
    shapes = {f"model.{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes |= {f"cross_model.{name}": tuple(tensor.shape) for name, tensor in cross_model.state_dict().items()}
    assert shapes["cross_model.layers.3.0.fn.to_q.weight"] == (1024, 1024)
    assert shapes["cross_model.layers.3.0.fn.to_kv.weight"] == (128, 1024)
    assert shapes["cross_model.layers.3.0.fn.ff.0.weight"] == (8192, 1024)
    assert shapes["cross_model.layers.3.1.fn.fused_attn_ff_proj.weight"] == (1024 + 128 + 8192, 1024)
    assert shapes["cross_model.layers.3.1.fn.ff_out.1.weight"] == (1024, 4096)
    assert shapes["cross_model.layers.0.1.fn.rotary_emb.inv_freq"] == (32,)

    def kinds(names: Any) -> set[str]:
        plain = (name.split(".") for name in names)
        return {".".join("N" if part.isdecimal() and parts[1] != "layers" else part for part in parts) for parts in plain}

    assert kinds(shapes) == kinds(SHAPES)
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    assert MODELS["MPS"].least_size == size
    assert size == pytest.approx(4.42e9, rel=0.002)  # the published file


# --- bad input ---


def test_checkpoints_of_something_else(folder: Path, tmp_path: Path) -> None:
    plain = beside(tmp_path / "other")
    good = tensors()

    def refused(changed: dict[str, Tensor | None], message: str) -> None:
        save_file({name: tensor for name, tensor in (good | changed).items() if tensor is not None}, plain / "x.safetensors")
        with pytest.raises(CheckpointError, match=message):
            mps_from_files(files_in(plain, "x.safetensors"))

    name = "cross_model.layers.1.0.fn.to_kv.weight"
    refused({name: None}, r"x\.safetensors does not fit the network: layers\.1\.0\.fn\.to_kv\.weight is missing")
    refused({name: torch.zeros(128, 64)}, r"has shape \(128, 64\) and should have \(128, 128\).*is it of another base\?")
    refused({"model.text_projection.weight": None}, r"text_projection\.weight is missing.*is it of another base")
    refused({"model.visual_projection.weight": torch.zeros(64, 96)}, r"visual_projection\.weight has shape \(64, 96\)")
    refused({"head.weight": torch.zeros(2)}, r"is not an MPS checkpoint: unknown is head\.weight; use model\.safetensors of RE-N-Y/mpsv1")
    refused({own: None for own in good if own.startswith("cross_model")}, "it has no cross model beside a CLIP")
    refused({own: None for own in good if own.startswith("model")}, "it has no CLIP")
    refused({name: torch.full((128, 128), math.nan)}, "holds NaN or infinite weights")
    with pytest.raises(CheckpointError, match="it has no CLIP"):
        parts_of({}, "nothing")
    with pytest.raises(FileNotFoundError, match=r"MPS_overall_checkpoint\.pth"):
        mps_from_files(MPSFiles.in_folder(plain))
    (plain / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        mps_from_files(files_in(plain)._replace(weights=folder / "model.safetensors"))
    assert load_file(folder / "model.safetensors").keys() == {f"mps.{own}" for own in good}
