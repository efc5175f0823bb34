"""HPSv3 against what its own package computes on the same small network: ``data/hpsv3_tiny.py`` made the numbers and says how."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from clients import serving
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats
from scipy.integrate import quad
from torch import Tensor, nn

import hub as hubs
import image_reward as ir
import qwen
import seeded
from conftest import tiny
from image_reward.cli import main
from image_reward.client import Client, encoded
from image_reward.downloads import HubFile
from image_reward.errors import CheckpointError, DownloadError, ImageReadError, InputError, PromptError
from image_reward.jobs.decoders import Group, prepare_groups
from image_reward.jobs.files import Access
from image_reward.metrics import uncertain_win_probability
from image_reward.scorers import MODELS, ImageRewardScorer, hpsv3
from image_reward.scorers.hpsv3 import HPSv3Files, HPSv3Scorer, chat_text, hpsv3_from_files
from image_reward.scorers.vision_language import VisionLanguageScorer
from image_reward.serving import create_app
from scorer_checks import check_commands, check_ensemble, check_gradient, check_kept, check_saved_ensemble

ORIGINAL = json.loads((Path(__file__).parents[1] / "data" / "hpsv3_tiny.json").read_text(encoding="utf-8"))
SEED = 3
PROMPTS = [
    "a cat",
    "portrait of a {beautiful} fox, wide angle, trending on artstation  ",
    "一只猫坐在窗台上 \U0001f600",
    "two red birds\non a wire\n\n",
]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4)]
TOLERANCE = 1e-4
"""Of outputs of order one in float32; the original one by one and in a batch differ by 6e-7, ours from it by 2e-6."""


def images() -> list[Any]:
    return [seeded.image(*arguments) for arguments in IMAGES]


@cache
def _written(folder: Path) -> None:
    shapes = {name: tuple(shape) for name, shape in ORIGINAL["shapes"].items()}
    save_file(qwen.weights(shapes, SEED), folder / "HPSv3.safetensors")
    num_tokens = max(qwen.tokenizer(ORIGINAL["merges"]).get_vocab().values()) + 1
    (folder / "config.json").write_text(json.dumps(qwen.config(num_tokens, vocab_size=num_tokens + 40)))
    qwen.tokenizer_file(folder, ORIGINAL["merges"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hpsv3") / "tiny"
    path.mkdir()
    _written(path)
    return path


@pytest.fixture
def scorer(folder: Path) -> HPSv3Scorer:
    return hpsv3_from_files(HPSv3Files.in_folder(folder), dtype=torch.float32)


def outputs(scorer: HPSv3Scorer) -> Tensor:
    """[prompts, images, 2], prompt by prompt as the original's were."""
    with torch.inference_mode():
        return torch.stack([scorer.outputs(scorer.prepare([prompt] * len(IMAGES), images())) for prompt in PROMPTS])


def difference(scorer: HPSv3Scorer, precision: str = "trained") -> float:
    return (outputs(scorer) - torch.tensor(ORIGINAL[precision])).abs().max().item()


# --- the same as the original ---


def test_the_outputs_are_the_originals(scorer: HPSv3Scorer) -> None:
    assert difference(scorer) < TOLERANCE


def test_in_bfloat16_they_differ_by_its_rounding(folder: Path) -> None:
    """The original's own bfloat16 and float32 differ by 0.034 here."""
    assert difference(hpsv3_from_files(HPSv3Files.in_folder(folder)), "bfloat16") < 0.05


def test_the_text_is_the_originals_byte_for_byte() -> None:
    texts = [chat_text().replace("{prompt}", prompt) for prompt in PROMPTS]
    assert texts[0] == ORIGINAL["texts"]["first"]
    assert [hashlib.sha256(text.encode()).hexdigest() for text in texts] == ORIGINAL["texts"]["sha256"]
    assert hashlib.sha256(chat_text().encode()).hexdigest() == "7a191aa5ca0641969051e82ba97f833085220c5e1ea0ad187709c15629c1a54f"


def test_ids_and_patches_are_the_originals(scorer: HPSv3Scorer) -> None:
    batch = scorer.prepare(PROMPTS, images())
    end = scorer.prepare.template.token_id("<|Reward|>")
    for ids, theirs in zip(batch.ids, ORIGINAL["ids"], strict=True):
        assert theirs.count(end) == 1
        assert ids.tolist() == theirs[: theirs.index(end) + 1]  # nothing after it reaches it
    patches, grids = scorer.vision_inputs(batch)
    assert grids.tolist() == ORIGINAL["grids"]
    for own, theirs in zip(patches.split(grids.prod(dim=-1).tolist()), ORIGINAL["patches"], strict=True):
        assert own.double().sum().item() == pytest.approx(theirs["sum"], abs=0.1)
        assert own.double().square().sum().item() == pytest.approx(theirs["squares"], rel=1e-6)
        assert own[0, :3].tolist() == pytest.approx(theirs["first"], abs=1e-6)


def _mrope(monkeypatch: pytest.MonkeyPatch, scorer: HPSv3Scorer) -> None:
    """Qwen2-VL's own positions of images."""

    def positions(self: Any, batch: Any, ids: Tensor, mask: Tensor) -> Tensor:
        inputs = self.chat_inputs(batch)
        kinds = inputs["mm_token_type_ids"]
        model = scorer.network.model
        return model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=inputs["image_grid_thw"], attention_mask=mask.long())[0]

    monkeypatch.setattr(VisionLanguageScorer, "positions", positions)


def _pixels(_: pytest.MonkeyPatch, scorer: HPSv3Scorer) -> None:
    scorer.prepare.patches = replace(scorer.prepare.patches, min_pixels=3136, max_pixels=12_845_056)


def _text(change: Callable[[str], str]) -> Callable[[pytest.MonkeyPatch, HPSv3Scorer], None]:
    def plant(_: pytest.MonkeyPatch, scorer: HPSv3Scorer) -> None:
        text = change(scorer.prepare.template.text)
        assert text != scorer.prepare.template.text
        scorer.prepare.template = replace(scorer.prepare.template, text=text)

    return plant


def _unrounded(_: pytest.MonkeyPatch, scorer: HPSv3Scorer) -> None:
    """Frequencies of rotary positions in float32, as transformers 5 keeps them."""
    rotary = scorer.network.model.language_model.rotary_emb
    rotary.inv_freq = rotary.original_inv_freq


FAULTS = {
    "M-RoPE's positions of images": _mrope,
    "another number of pixels": _pixels,
    "a space dropped at a line's end": _text(lambda text: text.replace("being the best. \n", "being the best.\n")),
    "white space stripped around the instruction": _text(lambda text: text.replace("<|vision_end|>\n", "<|vision_end|>")),
    "no system prompt": _text(lambda text: text.replace("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "")),
    "frequencies that were not rounded": _unrounded,
    "tanh GELU in the image tower": lambda _, scorer: setattr(scorer.network.model.visual.merger.mlp, "1", nn.GELU("tanh")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_show(fault: str, monkeypatch: pytest.MonkeyPatch, scorer: HPSv3Scorer) -> None:
    FAULTS[fault](monkeypatch, scorer)
    assert difference(scorer) > 2 * TOLERANCE


# --- every way to ask ---


def test_rewards_do_not_depend_on_how_they_are_asked(scorer: HPSv3Scorer) -> None:
    expected = np.array(ORIGINAL["trained"])[..., 0]
    matrix = scorer.matrix(PROMPTS, images())
    assert np.abs(matrix - expected).max() < TOLERANCE
    assert scorer.rank(PROMPTS[0], images()).rewards == pytest.approx(expected[0].tolist(), abs=TOLERANCE)
    alone = [[scorer.score(prompt, image) for image in images()] for prompt in PROMPTS]
    pairs = [(p, i) for p in range(4) for i in range(4)]
    for size in (1, 3, 16):
        scorer.batch_size = size
        order = np.random.default_rng(size).permutation(pairs)
        rewards = scorer.score([PROMPTS[p] for p, _ in order], [images()[i] for _, i in order])
        assert rewards == pytest.approx([alone[p][i] for p, i in order], abs=1e-5)
    one, same = scorer.score("a cat", [images()[0], images()[0].copy()])
    assert one == same


def test_a_beginning_is_computed_once(scorer: HPSv3Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image with several prompts: everything up to the prompt."""
    seen: list[int] = []
    text = scorer.network.model.language_model
    text.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"][..., 0].numel()),  # noqa: ARG005
        with_kwargs=True,
    )
    scorer.batch_size = 8
    rewards = scorer.score([*PROMPTS, *PROMPTS], [images()[0]] * 4 + [images()[2]] * 4)
    assert sum(seen) < 2600  # of 6,400 tokens
    monkeypatch.setattr("image_reward.scorers.vision_language._common_beginnings", lambda batch, _: (torch.arange(len(batch)),) * 3)
    seen.clear()
    assert scorer.score([*PROMPTS, *PROMPTS], [images()[0]] * 4 + [images()[2]] * 4) == pytest.approx(rewards, abs=1e-5)
    assert sum(seen) > 6000
    batch = scorer.prepare(["a cat", "a cat and more"], [images()[0]] * 2)
    monkeypatch.undo()
    assert scorer(batch).tolist() == pytest.approx([scorer.score(prompt, images()[0]) for prompt in ("a cat", "a cat and more")], abs=1e-5)


def test_rewards_of_tensors_have_gradients(scorer: HPSv3Scorer) -> None:
    check_gradient(scorer, images()[2])
    two = scorer.rewards(PROMPTS[:2], torch.rand(1, 3, 50, 60).expand(2, -1, -1, -1).clone().requires_grad_())
    assert two.grad_fn is not None


# --- uncertainty ---


def test_the_spread_is_shown_and_compared_with(scorer: HPSv3Scorer) -> None:
    original = np.array(ORIGINAL["trained"])[1]
    judged = scorer.judge(PROMPTS[1], images())
    assert judged.mean.tolist() == pytest.approx(original[:, 0].tolist(), abs=TOLERANCE)
    assert judged.spread.tolist() == pytest.approx(np.exp(original[:, 1]).tolist(), rel=2 * TOLERANCE)
    preference = scorer.compare(PROMPTS[1], *images()[:2])
    assert preference.rewards == pytest.approx(original[:2, 0].tolist(), abs=TOLERANCE)
    assert preference.spreads == pytest.approx(np.exp(original[:2, 1]).tolist(), rel=2 * TOLERANCE)
    std = float(np.hypot(*preference.spreads))
    exact, _ = quad(lambda d: stats.norm.pdf(d, preference.rewards[0] - preference.rewards[1], std) / (1 + np.exp(-d)), -80, 80, limit=400)
    assert preference.a_better == pytest.approx(exact, abs=1e-6)
    assert preference.a_better + preference.b_better == 1
    certain = scorer.preference(*preference.rewards).a_better
    assert abs(preference.a_better - 0.5) < abs(certain - 0.5)
    assert preference.as_dict()["spreads"] == preference.spreads
    assert "±" in preference._repr_html_()
    swapped = scorer.compare(PROMPTS[1], *images()[1::-1])
    assert swapped.b_better == pytest.approx(preference.a_better, abs=1e-5)


def test_the_service_compares_as_the_scorer_does(scorer: HPSv3Scorer) -> None:
    other = tiny(ImageRewardScorer)
    with serving(create_app([other, scorer])) as url:
        with Client(url, model=scorer.name) as client:
            answered, preference = (asked.compare(PROMPTS[1], *images()[:2]) for asked in (client, scorer))
            for name, expected in preference.as_dict().items():
                assert answered.as_dict()[name] == pytest.approx(expected, abs=1e-5)
            assert answered.spreads is not None
            assert client.matrix(PROMPTS[:2], images()[:2]) == pytest.approx(scorer.matrix(PROMPTS[:2], images()[:2]), abs=1e-5)
        with Client(url) as client:
            assert client.compare("a cat", *images()[:2]).spreads is None
        image = encoded(images()[0])
        asked = {"prompt": "a cat", "images": [base64.b64encode(image).decode()], "models": [scorer.name, other.name]}
        with urlopen(Request(f"{url}/v1/score", json.dumps(asked).encode(), {"content-type": "application/json"})) as response:
            rewards = json.load(response)["rewards_by_model"]
    assert rewards == {one.name: [pytest.approx(one.score("a cat", image), abs=1e-5)] for one in (scorer, other)}


@pytest.mark.parametrize(("difference", "std"), [(0.3, 0.0), (-2.0, 0.4), (5.0, 30.0), (1000.0, 1.0), (0.0, 1e6), (-1e5, 1e6)])
def test_the_mean_of_a_sigmoid(difference: float, std: float) -> None:
    draws = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000) * std + difference
    expected = (0.5 * (1 + np.tanh(draws / 2))).mean()
    assert uncertain_win_probability(difference, std) == pytest.approx(expected, abs=1e-3)
    assert uncertain_win_probability(difference, std) + uncertain_win_probability(-difference, std) == pytest.approx(1)


# --- loading ---


def test_a_folder_by_its_path(folder: Path, scorer: HPSv3Scorer) -> None:
    loaded = ir.load(folder, "cpu")
    assert loaded.name == "tiny"
    assert loaded.network.model.dtype == torch.bfloat16
    head = load_file(folder / "HPSv3.safetensors")["rm_head.0.weight"]
    assert torch.equal(loaded.network.rm_head[0].weight, head)
    assert not torch.equal(head, head.bfloat16().float())
    assert loaded.batch_size == 8
    spread = ir.load(folder, "auto", "float32")
    assert spread.is_spread
    assert spread.score("a cat", images()) == pytest.approx(scorer.score("a cat", images()), abs=1e-5)
    assert not any(weight.requires_grad for weight in spread.parameters())
    with pytest.raises(InputError, match="dtype int8 is for scorers with an image tower"):
        ir.load(folder, "cpu", "int8")
    with pytest.raises(InputError, match="a config is for ImageReward"):
        ir.load(folder, "cpu", config=ir.ScorerConfig())


@pytest.fixture
def published(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub that has the small network under the published names."""
    files = MODELS["HPSv3"].files
    content = {f"{file.repo}/{file.name}": (folder / file.name).read_bytes() for file in files.values() if isinstance(file, HubFile)}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with hubs.serve(**content) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield hub


def test_by_its_name(published: hubs.Hub, capsys: pytest.CaptureFixture[str], image_folder: Path, scorer: HPSv3Scorer) -> None:
    paths = [str(image_folder / f"{name}.png") for name in "ab"]
    assert main(["compare", "a cat", *paths, "--model", "HPSv3", "--dtype", "float32", "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rewards"] == pytest.approx(scorer.score("a cat", paths), abs=1e-5)
    assert len(printed["spreads"]) == 2
    assert main(["compare", "a cat", *paths, "--model", "HPSv3", "--dtype", "float32", "--device", "cpu"]) == 0
    assert "±" in capsys.readouterr().out
    assert {path.split("/resolve")[0] for _, path, _ in published.requests} == {"/MizzenAI/HPSv3", "/Qwen/Qwen2-VL-7B-Instruct"}
    with pytest.raises(ir.UnknownModelError, match="MizzenAI/HPSv3 is not a model folder, but what HPSv3 comes from"):
        ir.load("MizzenAI/HPSv3", "cpu")


@pytest.mark.parametrize(("status", "words"), [(401, "401"), (403, "hf auth login"), (404, r"By hand: fetch .*HPSv3.safetensors")])
def test_a_repository_that_is_gated_or_gone(published: hubs.Hub, status: int, words: str) -> None:
    published.status = status
    with pytest.raises(DownloadError, match=words) as raised:
        ir.load("HPSv3", "cpu")
    assert "HPSv3.safetensors" in str(raised.value)


def changed(folder: Path, to: Path, config: dict[str, Any] | None = None, special_tokens: list[str] | None = None) -> Path:
    to.mkdir()
    for name in ("HPSv3.safetensors", "config.json", "tokenizer.json"):
        (to / name).write_bytes((folder / name).read_bytes())
    (to / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | (config or {})))
    if special_tokens is not None:
        qwen.tokenizer_file(to, ORIGINAL["merges"], special_tokens)
    return to


def test_files_that_do_not_belong_together(folder: Path, tmp_path: Path) -> None:
    without = [token for token in qwen.SPECIAL_TOKENS if token != "<|image_pad|>"]
    for number, (change, message) in enumerate(
        [
            ({"config": {"model_type": "qwen2_5_vl"}}, "is of model_type 'qwen2_5_vl', and HPSv3 is built on 'qwen2_vl'"),
            ({"config": {"hidden_size": 32, "num_attention_heads": 2}}, "does not fit the network.*is it of another base"),
            ({"config": {"num_hidden_layers": 2}}, r"model\.language_model\.layers\.2.* is unexpected"),
            ({"config": {"hidden_size": "many"}}, "does not describe a Qwen2-VL that can be built"),
            ({"config": {"max_position_embeddings": 100}}, "is 100, and images and answer alone may have 512 tokens"),
            ({"config": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}}, r"mrope_section is \[2, 3, 4\].* add up to 8"),
            ({"config": {"image_token_id": 5}}, "they are of different models"),
            (
                {"config": {"quantization_config": {"quant_method": "awq"}}},
                "is of quantized weights .*'awq'.* use the checkpoint",
            ),
            ({"special_tokens": without}, r"has no special token <\|image_pad\|>"),
            ({"special_tokens": [*qwen.SPECIAL_TOKENS, "<|more|>"]}, r"lm_head\.weight has shape.*is it of another base"),
        ]
    ):
        with pytest.raises(CheckpointError, match=message):
            hpsv3_from_files(HPSv3Files.in_folder(changed(folder, tmp_path / str(number), **change)))
    later = hpsv3_from_files(HPSv3Files.in_folder(changed(folder, tmp_path / "later", {"made_up": {"by": "a later release"}})))
    picture = images()[2]
    assert later.score("a cat", picture) == hpsv3_from_files(HPSv3Files.in_folder(folder)).score("a cat", picture)
    plain = changed(folder, tmp_path / "plain")
    tensors = load_file(plain / "HPSv3.safetensors")
    (plain / "HPSv3.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks HPSv3\.safetensors: .* which alone is not a scorer"):
        ir.load(plain, "cpu")
    save_file({name: tensor for name, tensor in tensors.items() if "rm_head" not in name}, plain / "model.safetensors")
    with pytest.raises(CheckpointError, match="it has no head"):
        ir.load(plain, "cpu")
    save_file(tensors | {"rm_head.7.bias": torch.zeros(2)}, plain / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"rm_head\.7\.bias is unexpected"):
        ir.load(plain, "cpu")
    (plain / "config.json").unlink()
    with pytest.raises(CheckpointError):
        ir.load(plain, "cpu")


def test_the_full_size_layout() -> None:
    """Of the published checkpoint, without storage: Qwen2-VL-7B-Instruct's, 151,657 tokens and one more, and the head."""
    from transformers import Qwen2VLConfig

    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    config = Qwen2VLConfig(**sizes, vocab_size=151_658, rope_scaling=rope, rope_theta=1_000_000.0, vision_config=vision)
    shapes = {name: tuple(tensor.shape) for name, tensor in hpsv3.empty_hpsv3(config).state_dict().items()}
    assert [shapes[f"rm_head.{place}.weight"] for place in (0, 3, 5)] == [(1024, 3584), (16, 1024), (2, 16)]
    assert [shapes[f"rm_head.{place}.bias"] for place in (0, 3, 5)] == [(1024,), (16,), (2,)]
    assert shapes["model.language_model.embed_tokens.weight"] == (151_658, 3584)
    assert shapes["model.visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert shapes["model.visual.merger.mlp.2.weight"] == (3584, 5120)
    assert shapes["model.language_model.layers.27.mlp.down_proj.weight"] == (3584, 18944)
    # The published names, but for the numbers of blocks, are those that the original gave the small network.
    small = {name: hpsv3.Piece(Path(), name, tuple(shape)) for name, shape in ORIGINAL["shapes"].items()}
    renamed = hpsv3.network_names(small, "", small["model.embed_tokens.weight"].shape)

    def kinds(names: Any) -> set[str]:
        return {".".join("N" if part.isdecimal() and "rm_head" not in name else part for part in name.split(".")) for name in names}

    assert kinds(shapes) == kinds(renamed)
    num_read = sum(int(np.prod(shape)) for shape in shapes.values())
    assert MODELS["HPSv3"].least_size == 2 * num_read
    num_weights = num_read + 151_658 * 3584  # the language head, which is not loaded
    assert num_weights * 2 == pytest.approx(16.6e9, rel=0.005)


# --- bad input ---


@pytest.mark.parametrize("marker", ["<|Reward|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"])
def test_a_prompt_with_the_templates_own_markers(marker: str, scorer: HPSv3Scorer) -> None:
    with pytest.raises(PromptError, match=r"contains <\|.*remove it from the prompt"):
        scorer.score(f"a cat {marker}", images()[0])
    with pytest.raises(PromptError):
        scorer.rewards(f"a cat {marker}", torch.rand(1, 3, 30, 30))
    assert isinstance(scorer.score("a cat <Reward> | im_end |>", images()[0]), float)


def test_prompts_and_images_that_are_too_long(scorer: HPSv3Scorer) -> None:
    with pytest.raises(PromptError, match="and the model reads 7,680; shorten it"):
        scorer.score("!?" * 5000, images()[0])
    with pytest.raises(ImageReadError, match="a strip of more than 200 to 1"):
        scorer.score("a cat", seeded.image("gradient", 1000, 3, 1))


# --- the rest of the package ---


def test_it_is_kept_as_its_files(folder: Path, scorer: HPSv3Scorer, tmp_path: Path) -> None:
    check_kept(scorer, ["HPSv3.safetensors", "config.json", "tokenizer.json"], folder, tmp_path)


def test_what_is_left_of_a_download(folder: Path, tmp_path: Path) -> None:
    weights = changed(folder, tmp_path / "part") / "HPSv3.safetensors"
    whole = weights.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "is not a whole safetensors file: .*; download or save it again"),
        (b"", r"is empty \(0 bytes\); download it again"),
        (b"<!doctype html>", "is an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
    ):
        weights.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            ir.load(weights.parent, "cpu")
    weights.write_bytes(whole)
    config = weights.with_name("config.json")
    config.write_text(config.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON: .*; correct it, or download it again"):
        ir.load(weights.parent, "cpu")
    config.unlink()
    with pytest.raises(CheckpointError, match=r"part lacks config\.json; download it again"):
        ir.load(weights.parent, "cpu")


def test_a_long_strip_is_named_wherever_it_comes_from(
    folder: Path, scorer: HPSv3Scorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strip = tmp_path / "strip.png"
    Image.new("RGB", (900, 4)).save(strip)
    assert main(["score", "a cat", str(strip), "--model", str(folder), "--device", "cpu"]) == 1
    assert f"{strip} is 900 x 4, a strip of more than 200 to 1" in capsys.readouterr().err
    prepared = prepare_groups([scorer.prepare], [Group(str(strip), "strip.png", (0,), ("a cat",))], Access())
    assert prepared.errors[0].startswith("ImageReadError: strip.png is 900 x 4, a strip")
    with serving(create_app([scorer])) as url, Client(url) as client, pytest.raises(ImageReadError, match=r"images\[1\] is 900 x 4"):
        client.score("a cat", [images()[0], strip])


def test_in_ensembles_and_beside_others(folder: Path, scorer: HPSv3Scorer, tmp_path: Path) -> None:
    check_ensemble(scorer, PROMPTS, images(), mean=1.0)
    check_saved_ensemble(folder, "tiny", images(), tmp_path)


def test_jobs_evaluate_rank_and_verify_precision(
    folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(image_folder / f"{name}.png") for name in "abc"]
    rewards = ir.load(folder, "cpu", "float32").score("a cat", paths)
    check_commands(folder, paths, rewards, tmp_path, capsys, options=["--dtype", "float32"], num_workers=1, refused="<|Reward|>")
