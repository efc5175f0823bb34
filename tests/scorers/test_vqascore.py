"""VQAScore against what t2v_metrics computes with the same small networks: ``data/vqascore_tiny.py`` made the numbers and says how."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import flan
import hub as hubs
import image_reward as ir
import qwen
import seeded
from image_reward.cli import main
from image_reward.downloads import HubFile
from image_reward.errors import CheckpointError, DownloadError, ImageReadError, InputError, PromptError
from image_reward.models.clip_t5 import ClipT5Network, clip_vision_config, float32_logits
from image_reward.scorers import MODELS, qwen_chat, vqascore
from image_reward.scorers.qwen_chat import ChatFiles, chat_text
from image_reward.scorers.vision_language import VisionLanguageScorer, empty_network
from image_reward.scorers.vqascore import (
    QUESTION,
    T5_IMAGE,
    T5_QUESTION,
    AnswerScorer,
    PaddedSquare,
    log_odds_of,
    log_odds_of_mean,
    t5_text,
    vqascore_from_files,
)
from scorer_checks import check_commands, check_ensemble, check_gradient, check_kept, check_saved_ensemble

ORIGINAL = json.loads((Path(__file__).parents[1] / "data" / "vqascore_tiny.json").read_text(encoding="utf-8"))
SEED = 5
PROMPTS = [
    "a cat",
    "portrait of a {beautiful} fox, wide angle, trending on artstation  ",
    "一只猫坐在窗台上 \U0001f600",
    "two red birds\non a  wire\n\n",
]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7), ("noise", 300, 301, 4)]
TOLERANCE = 1e-4
"""Of log odds in float32, as of probabilities relative to themselves."""
KINDS = ("qwen2_5_vl", "qwen3_vl", "clip_t5")
CHAT_KINDS = KINDS[:2]


def images() -> list[Any]:
    return [seeded.image(*arguments) for arguments in IMAGES]


def shapes_of(kind: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in ORIGINAL[kind]["shapes"].items()}


def write(folder: Path, kind: str) -> None:
    """A small checkpoint as it is published: Qwen2.5-VL's in two files, CLIP-FlanT5's as what torch.save writes."""
    shapes = shapes_of(kind)
    if kind == "clip_t5":
        tensors = flan.weights(shapes, SEED)
        torch.save(
            tensors | {"vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(37)[None]},
            folder / "pytorch_model.bin",
        )
        pieces = [(piece, score) for piece, score in ORIGINAL[kind]["pieces"]]
        flan.tokenizer_file(folder, pieces)
        (folder / "config.json").write_text(json.dumps(flan.config(len(pieces))))
        return
    tensors, merges = qwen.weights(shapes, SEED), ORIGINAL[kind]["merges"]
    qwen.tokenizer_file(folder, merges)
    num_tokens = 256 + len(merges) + len(qwen.SPECIAL_TOKENS)
    if kind == "qwen3_vl":
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(qwen.config_3(num_tokens)))
        return
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        save_file({key: tensor for place, (key, tensor) in enumerate(tensors.items()) if place % 2 == number}, folder / name)
    index = {"weight_map": {key: names[place % 2] for place, key in enumerate(tensors)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(qwen.config_2_5(num_tokens)))
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05, "do_sample": True, "top_k": 1}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vqascore")
    for kind in KINDS:
        (root / kind).mkdir()
        write(root / kind, kind)
    return {kind: root / kind for kind in KINDS}


def load(folder: Path, **options: Any) -> Any:
    return vqascore_from_files(ChatFiles.in_folder(folder), **({"dtype": torch.float32} | options))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scorer(folders: dict[str, Path], kind: str) -> AnswerScorer:
    return load(folders[kind])


def log_odds(probabilities: Any) -> Tensor:
    values = torch.tensor(probabilities, dtype=torch.float64)
    return (values.log() - (-values).log1p()).float()


def rewards(scorer: AnswerScorer) -> Tensor:
    """[prompts, images], prompt by prompt as the original's were."""
    with torch.inference_mode():
        return torch.stack([scorer(scorer.prepare([prompt] * len(IMAGES), images())) for prompt in PROMPTS])


def difference(scorer: AnswerScorer, kind: str, precision: str = "float32") -> float:
    return (rewards(scorer) - log_odds(ORIGINAL[kind][precision])).abs().max().item()


# --- the same as the original ---


def test_the_rewards_are_the_log_odds_of_the_originals_scores(scorer: AnswerScorer, kind: str) -> None:
    assert difference(scorer, kind) < TOLERANCE
    theirs = ORIGINAL[kind]["float32"]
    assert scorer.probability(PROMPTS[1], images()) == pytest.approx(theirs[1], rel=TOLERANCE)
    assert scorer.probability(PROMPTS[1], images()[2]) == pytest.approx(theirs[1][2], rel=TOLERANCE)


def test_in_bfloat16_they_differ_by_its_rounding(folders: dict[str, Path], kind: str) -> None:
    """The original's own bfloat16 and float32 differ by up to 0.06 here."""
    assert difference(load(folders[kind], dtype=None), kind, "bfloat16") < 0.12


def test_the_text_is_the_originals_byte_for_byte() -> None:
    for kind in CHAT_KINDS:
        assert [chat_text(QUESTION, kind).replace("{prompt}", prompt) for prompt in PROMPTS] == ORIGINAL[kind]["texts"]
    texts = [t5_text().replace("</s>", "").replace("{prompt}", prompt) for prompt in PROMPTS]
    assert texts == ORIGINAL["clip_t5"]["texts"]


def test_ids_and_pixels_are_the_originals(scorer: AnswerScorer, kind: str) -> None:
    batch = scorer.prepare(PROMPTS, images())
    theirs = ORIGINAL[kind]
    if kind == "clip_t5":
        image = scorer.prepare.template.token_id(T5_IMAGE)
        assert scorer.prepare.template(PROMPTS) == [[image if token == -200 else token for token in row] for row in theirs["ids"]]
        assert [row.count(image) for row in map(list, map(Tensor.tolist, batch.ids))] == [36] * 4
        assert scorer.answer_ids == theirs["answer_ids"]
        parts = scorer.prepare.patches.normalized(batch.pixels, torch.device("cpu"))
    else:
        assert [row.tolist() for row in batch.ids] == theirs["ids"]
        patches, grids = scorer.vision_inputs(batch)
        assert grids.tolist() == theirs["grids"]
        parts = patches.split(grids.prod(dim=-1).tolist())
    for own, one in zip(parts, theirs["patches" if kind != "clip_t5" else "pixels"], strict=True):
        assert own.double().sum().item() == pytest.approx(one["sum"], abs=0.1)
        assert own.double().square().sum().item() == pytest.approx(one["squares"], rel=1e-6)
        assert own.flatten()[0].item() == pytest.approx(one["first"], abs=1e-6)


def test_an_answer_of_several_tokens(folders: dict[str, Path]) -> None:
    """The original's number for CLIP-FlanT5; for the others the definition, token by token."""
    answered = load(folders["clip_t5"], answer="a cat")
    assert answered.probability(PROMPTS[0], images()) == pytest.approx(ORIGINAL["clip_t5"]["another_answer"], rel=TOLERANCE)
    for kind in CHAT_KINDS:
        scorer = load(folders[kind], answer="Yes, it does")
        ids = scorer.answer_ids
        assert len(ids) > 2
        plain = load(folders[kind])
        (question,) = plain.prepare([PROMPTS[0]], images()[:1]).ids
        logs = []
        for place, token in enumerate(ids):
            row = torch.cat([question, torch.tensor(ids[:place], dtype=torch.int64)])
            batch = replace(plain.prepare([PROMPTS[0]], images()[:1]), ids=(row,))
            logits = plain.network(**plain.chat_inputs(batch), use_cache=False).logits[0, -1]
            read = row.unique()
            penalty = plain.repetition_penalty
            logits[read] = torch.where(logits[read] < 0, logits[read] * penalty, logits[read] / penalty)
            logs.append(logits.log_softmax(dim=-1)[token].item())
        assert scorer.probability(PROMPTS[0], images()[0]) == pytest.approx(math.exp(np.mean(logs)), rel=TOLERANCE)


# --- planted faults ---


def _question(scorer: Any) -> None:
    text = scorer.prepare.template.text
    changed = text.replace("Yes or No", "yes or no") if "Yes or No" in text else text.replace("yes or no", "Yes or No")
    assert changed != text
    scorer.prepare.template = replace(scorer.prepare.template, text=changed)


def _no_system(scorer: Any) -> None:
    text = scorer.prepare.template.text
    changed = text.replace("You are a helpful assistant.", "") if "helpful assistant." in text else text.replace("A chat between ", "")
    assert changed != text
    scorer.prepare.template = replace(scorer.prepare.template, text=changed)


def _budget(scorer: Any) -> None:
    scorer.prepare.patches = replace(scorer.prepare.patches, max_pixels=50_000)


def _sequential(scorer: Any) -> None:
    """The text model counts 0, 1, 2, … whatever is image or text."""
    scorer.positions = lambda batch, ids, mask: VisionLanguageScorer.positions(scorer, batch, ids, mask)


def _penalty(scorer: Any) -> None:
    scorer.repetition_penalty = 1.0


def _statistics(scorer: Any) -> None:
    patches = scorer.prepare.patches
    scorer.prepare.patches = replace(patches, mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3))


def _class_token(scorer: Any) -> None:
    network = scorer.network
    scorer.prepare.patches = replace(scorer.prepare.patches, num_patches=scorer.prepare.patches.num_patches + 1)

    def encode_images(pixels: Tensor) -> Tensor:
        states = network.vision_tower.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        return network.mm_projector(states[network.layer])

    network.encode_images = encode_images


def _black(scorer: Any) -> None:
    class Black(PaddedSquare):
        colour = (0, 0, 0)

    own = scorer.prepare.patches
    scorer.prepare.patches = Black(own.side, own.num_patches, own.mean, own.std, own.options)


def _last_layer(scorer: Any) -> None:
    scorer.network.layer = -1


def _padding_rows(scorer: Any) -> None:
    scorer.num_tokens += flan.PADDING


def _no_end(scorer: Any) -> None:
    scorer.answer_ids = scorer.answer_ids[:-1]


def _one_sentence(scorer: Any) -> None:
    text = scorer.prepare.template.text.replace("</s><image>", "<image>")
    scorer.prepare.template = replace(scorer.prepare.template, text=text)


def _tied(scorer: Any) -> None:
    scorer.network.t5.lm_head.weight = scorer.network.t5.shared.weight


FAULTS: list[tuple[str, str, Callable[[Any], None]]] = [
    *((kind, "another question", _question) for kind in KINDS),
    *((kind, "another pixel budget", _budget) for kind in CHAT_KINDS),
    *((kind, "sequential positions", _sequential) for kind in CHAT_KINDS),
    *((kind, "other pixel statistics", _statistics) for kind in KINDS),
    ("qwen2_5_vl", "no system prompt", _no_system),
    ("qwen2_5_vl", "no repetition penalty", _penalty),
    ("clip_t5", "another system sentence", _no_system),
    ("clip_t5", "the class token kept", _class_token),
    ("clip_t5", "padding in black", _black),
    ("clip_t5", "the last hidden state", _last_layer),
    ("clip_t5", "logits of tokens that are none", _padding_rows),
    ("clip_t5", "the answer's end left out", _no_end),
    ("clip_t5", "no end before the image", _one_sentence),
    ("clip_t5", "embeddings as the head", _tied),
]


@pytest.mark.parametrize(("where", "fault", "plant"), FAULTS, ids=[f"{kind}: {fault}" for kind, fault, _ in FAULTS])
def test_planted_faults_show(where: str, fault: str, plant: Callable[[Any], None], folders: dict[str, Path]) -> None:  # noqa: ARG001
    scorer = load(folders[where])
    plant(scorer)
    assert difference(scorer, where) > 3 * TOLERANCE


# --- log odds ---


def test_log_odds_do_not_saturate() -> None:
    logits = torch.tensor([[[60.0, 0.0, 0.0]], [[61.0, 0.0, 0.0]], [[-90.0, 0.0, 0.0]]])
    odds = log_odds_of(logits, torch.tensor([0]))
    assert odds[:, 0].tolist() == pytest.approx([60 - math.log(2), 61 - math.log(2), -90 - math.log(2)])
    assert vqascore.probability_of(odds[0].item()) == vqascore.probability_of(odds[1].item()) == 1.0
    pairs = torch.tensor([[1.0, 2.0], [-30.0, 40.0], [60.0, 50.0], [-200.0, -100.0], [0.0, 90.0]], requires_grad=True)
    means = log_odds_of_mean(pairs)
    for own, (a, b) in zip(means.tolist(), pairs.tolist(), strict=True):
        # To 60 digits, independently.
        from mpmath import mp, mpf

        mp.dps = 60
        p = mp.sqrt(1 / (1 + mp.exp(-mpf(a))) * 1 / (1 + mp.exp(-mpf(b))))
        assert own == pytest.approx(float(mp.log(p / (1 - p))), rel=1e-6)
    means.sum().backward()
    assert pairs.grad is not None
    assert pairs.grad.isfinite().all()
    assert (pairs.grad.sum(dim=1) > 0).all()
    assert log_odds_of_mean(torch.tensor([[3.5], [-2.0]])).tolist() == [3.5, -2.0]


def test_logits_are_in_float32_whatever_the_weights_are() -> None:
    generator = torch.Generator().manual_seed(0)
    states, head = torch.randn(2, 1, 8, generator=generator).bfloat16(), torch.randn(40_000, 8, generator=generator).bfloat16()
    torch.testing.assert_close(float32_logits(states, head), states.float() @ head.float().T)


# --- every way to ask ---


def test_rewards_do_not_depend_on_how_they_are_asked(scorer: AnswerScorer, kind: str) -> None:
    expected = log_odds(ORIGINAL[kind]["float32"]).numpy()
    assert np.abs(scorer.matrix(PROMPTS, images()) - expected).max() < TOLERANCE
    ranking = scorer.rank(PROMPTS[0], images())
    assert ranking.rewards == pytest.approx(expected[0].tolist(), abs=TOLERANCE)
    assert ranking.order == np.argsort(-expected[0]).tolist()
    alone = [[scorer.score(prompt, image) for image in images()] for prompt in PROMPTS]
    pairs = [(p, i) for p in range(4) for i in range(4)]
    for size in (1, 3, 16):
        scorer.batch_size = size
        order = np.random.default_rng(size).permutation(pairs)
        asked = scorer.score([PROMPTS[p] for p, _ in order], [images()[i] for _, i in order])
        assert asked == pytest.approx([alone[p][i] for p, i in order], abs=1e-5)
    assert scorer.probability(list(PROMPTS), images()) == pytest.approx([ORIGINAL[kind]["float32"][n][n] for n in range(4)], rel=TOLERANCE)
    assert scorer.score("a cat", []) == []


@pytest.mark.parametrize("answer", ["Yes", "Yes, it does"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_encoded_once_and_its_beginning_read_once(
    folders: dict[str, Path], kind: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load(folders[kind], answer=answer)
    pictures = images()[:3]
    alone = np.array([[scorer.score(prompt, image) for image in pictures] for prompt in PROMPTS])
    seen: list[int] = []
    read: list[int] = []
    if kind == "clip_t5":
        scorer.network.vision_tower.vision_tower.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(len((*args, *kwargs.values())[0])), with_kwargs=True
        )
    else:
        model = scorer.network.model
        model.visual.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True)  # noqa: ARG005
        model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs: read.append(kwargs["inputs_embeds"][..., 0].numel()),  # noqa: ARG005
            with_kwargs=True,
        )
    scorer.batch_size = len(PROMPTS)
    assert scorer.matrix(PROMPTS, pictures) == pytest.approx(alone, abs=1e-5)
    assert seen == [1] * len(pictures)
    for batch_size in (5, 12):  # images that share a batch, some of them with one row
        seen.clear()
        read.clear()
        scorer.batch_size = batch_size
        assert scorer.matrix(PROMPTS, pictures) == pytest.approx(alone, abs=1e-5)
        assert sum(seen) <= len(pictures) + 12 // batch_size
    seen.clear()
    assert scorer.rank(PROMPTS[0], [*pictures, pictures[0].copy()]).rewards[:3] == pytest.approx(alone[0].tolist(), abs=1e-5)
    assert sum(seen) == len(pictures)
    if kind == "clip_t5":
        return
    shared = sum(read)
    monkeypatch.setattr("image_reward.scorers.vision_language._common_beginnings", lambda batch, _: (torch.arange(len(batch)),) * 3)
    read.clear()
    assert scorer.matrix(PROMPTS, pictures) == pytest.approx(alone, abs=1e-5)
    assert shared < 0.7 * sum(read)


def test_rewards_of_tensors_have_gradients(scorer: AnswerScorer) -> None:
    check_gradient(scorer, images()[2])
    assert scorer.rewards(PROMPTS[:2], torch.rand(2, 3, 50, 60, requires_grad=True)).grad_fn is not None


def test_another_question(folders: dict[str, Path], kind: str) -> None:
    own = T5_QUESTION if kind == "clip_t5" else QUESTION
    same = load(folders[kind], question=own)
    assert difference(same, kind) < TOLERANCE
    other = load(folders[kind], question='Is "{prompt}" what this shows?')
    assert 'Is "a cat" what this shows?' in other.prepare.template.of("a cat")
    assert other.score("a cat", images()[0]) != same.score("a cat", images()[0])
    with pytest.raises(InputError, match=r"must contain \{prompt\} once"):
        load(folders[kind], question="Is this good?")
    with pytest.raises(InputError, match="the answer must not be empty"):
        load(folders[kind], answer=" ")


# --- loading ---


def test_a_folder_by_its_path(folders: dict[str, Path], kind: str, scorer: AnswerScorer) -> None:
    loaded = ir.load(folders[kind], "cpu")
    assert isinstance(loaded, AnswerScorer)
    assert loaded.name == kind
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    assert loaded.batch_size == 8
    assert not any(weight.requires_grad for weight in loaded.parameters())
    spread = ir.load(folders[kind], "auto", "float32")
    assert spread.is_spread
    assert spread.score("a cat", images()) == pytest.approx(scorer.score("a cat", images()), abs=1e-5)
    with pytest.raises(InputError, match="dtype int8 is for scorers with an image tower"):
        ir.load(folders[kind], "cpu", "int8")
    with pytest.raises(InputError, match="a config is for ImageReward"):
        ir.load(folders[kind], "cpu", config=ir.ScorerConfig())


def test_float16_breaks_flan_t5(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"cannot compute in float16: FlanT5 .* use bfloat16 or float32"):
        ir.load(folders["clip_t5"], "cpu", "float16")
    with pytest.raises(InputError, match="cannot compute in float16"):
        load(folders["clip_t5"]).cast(torch.float16)
    load(folders["qwen3_vl"]).cast(torch.float16)


def test_weights_of_either_format_and_in_any_number_of_files(folders: dict[str, Path], tmp_path: Path) -> None:
    expected = log_odds(ORIGINAL["clip_t5"]["float32"][0]).tolist()
    tensors = torch.load(folders["clip_t5"] / "pytorch_model.bin", weights_only=True)
    single = [name for name in tensors if name not in vqascore._SHARED] + [
        "embed_tokens.weight"
    ]  # one of the names that the embeddings have

    def beside(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file in ("config.json", "tokenizer.json"):
            (tmp_path / name / file).write_bytes((folders["clip_t5"] / file).read_bytes())
        return tmp_path / name

    safe = beside("safe")
    save_file({name: tensors[name].contiguous() for name in single}, safe / "model.safetensors")
    sharded = beside("sharded")
    for number in range(2):
        torch.save({name: tensors[name] for name in list(tensors)[number::2]}, sharded / f"pytorch_model-{number}.bin")
    index = {"weight_map": {name: f"pytorch_model-{place % 2}.bin" for place, name in enumerate(tensors)}}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for folder in (safe, sharded):
        assert ir.load(folder, "cpu", "float32").score(PROMPTS[0], images()) == pytest.approx(expected, abs=TOLERANCE)
    torch.save(tensors, sharded / "pytorch_model-1.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-1\.bin: shared\.weight is also in pytorch_model-0\.bin"):
        ir.load(sharded, "cpu")
    (sharded / "pytorch_model-1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks pytorch_model-1\.bin"):
        ir.load(sharded, "cpu")


def test_names_of_today(folders: dict[str, Path], tmp_path: Path) -> None:
    """What transformers has written since 4.52."""
    from image_reward.checkpoints import pieces_of

    files = [folders["qwen2_5_vl"] / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert "model.layers.0.mlp.up_proj.weight" in tensors
    renamed = qwen_chat.chat_names(pieces_of(files))
    save_file({name: tensors[piece.name] for name, piece in renamed.items()}, tmp_path / "model.safetensors")
    assert qwen_chat.chat_names(pieces_of([tmp_path / "model.safetensors"])).keys() == renamed.keys()
    for file in ("config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / file).write_bytes((folders["qwen2_5_vl"] / file).read_bytes())
    assert difference(load(tmp_path), "qwen2_5_vl") < TOLERANCE


def test_a_checkpoints_own_chat_template(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["qwen3_vl"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    published = (
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}{%- for content in message.content %}"
        "{%- if content.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{%- else %}{{- content.text }}{%- endif %}"
        "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": published}))
    assert load(tmp_path).prepare.template.text == chat_text(QUESTION, "qwen3_vl")
    (tmp_path / "chat_template.json").write_text(
        json.dumps({"chat_template": "{{- '<|im_start|>system\nLook.<|im_end|>\n' }}" + published})
    )
    assert load(tmp_path).prepare.template.text.startswith("<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n<|vision_start|>")
    (tmp_path / "chat_template.jinja").write_text(published + "{{- '<think>\\n' }}")
    assert load(tmp_path).prepare.template.text.endswith("assistant\n<think>\n")
    for template, message in (
        ("{{ nothing.at.all }}", "cannot be used"),
        ("{% for", "cannot be used"),
        ("<|im_start|>{{ messages[0].role }}", "does not show one image and one question"),
    ):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8 text"):
        load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": [{"name": "default", "template": published}]}))
    with pytest.raises(CheckpointError, match="has several chat templates"):
        load(tmp_path)


def test_files_that_do_not_belong_together(folders: dict[str, Path], tmp_path: Path) -> None:
    merges = ORIGINAL["qwen3_vl"]["merges"]
    without = qwen.tokenizer(merges, [token for token in qwen.SPECIAL_TOKENS if token != "<|image_pad|>"]).to_str()
    more = qwen.tokenizer(merges, ["<|more|>", *qwen.SPECIAL_TOKENS]).to_str()
    chat = json.loads((folders["qwen3_vl"] / "config.json").read_text())
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("qwen3_vl", {"config": {"model_type": "llava"}}, "is not of a known kind of model"),
        ("qwen3_vl", {"config": {"text_config": chat["text_config"] | {"hidden_size": 32}}}, "does not fit the network"),
        ("qwen3_vl", {"config": {"text_config": chat["text_config"] | {"num_hidden_layers": 2}}}, "layers.2.* is unexpected"),
        ("qwen3_vl", {"config": {"vision_config": {"depth": "many"}}}, "does not describe a network that can be built"),
        ("qwen3_vl", {"config": {"image_token_id": 5}}, "they are of different models"),
        ("qwen3_vl", {"config": {"quantization_config": {"quant_method": "fp8"}}}, "is of quantized weights .*'fp8'"),
        ("qwen3_vl", {"tokenizer": without}, r"has no special token <\|image_pad\|>"),
        ("qwen3_vl", {"tokenizer": more}, "they are of different models"),
        ("qwen3_vl", {"tokenizer": None}, "lacks tokenizer.json"),
        ("qwen3_vl", {"generation_config": '{"repetition_penalty": "much"}'}, "repetition_penalty must be a positive number"),
        ("qwen3_vl", {"generation_config": "[]"}, "is not a JSON object"),
        ("qwen3_vl", {"preprocessor_config": '{"image_mean": [0.5]}'}, "mean of TransformConfig"),
        ("qwen2_5_vl", {"config": {"model_type": "qwen3_vl"}}, "does not describe a network|does not fit|image_token|mrope_section"),
        ("clip_t5", {"config": {"mm_projector_type": "linear"}}, "mm_projector_type is 'linear', and only 'mlp2x_gelu'"),
        ("clip_t5", {"config": {"mm_vision_select_feature": "cls_patch"}}, "mm_vision_select_feature is 'cls_patch'"),
        ("clip_t5", {"config": {"mm_vision_tower": "laion/CLIP"}}, "mm_vision_tower is 'laion/CLIP', and only OpenAI's"),
        ("clip_t5", {"config": {"d_model": 32}}, "does not fit the network"),
        ("clip_t5", {"config": {"vocab_size": 100}}, "they are of different models"),
        ("clip_t5", {"config": {"num_heads": "many"}}, "does not describe a T5 that can be built"),
        ("clip_t5", {"config": {"mm_vision_select_layer": -9}}, "mm_vision_select_layer"),
        ("clip_t5", {"tokenizer": None}, "lacks tokenizer.json: the original takes that of google/flan-t5-xl"),
        ("clip_t5", {"tokenizer": without}, "is not the tokenizer of this model"),
        ("qwen2_5_vl", {"config": {"rope_scaling": None}}, r"mrope_section is \[16, 24, 24\], which does not add up to 8"),
        ("qwen2_5_vl", {"config": {"max_position_embeddings": 8192}}, "is 8,192, and images and answer alone may have 16,384 tokens"),
        ("clip_t5", {"config": {"decoder_start_token_id": -1}}, "decoder_start_token_id is -1"),
        ("clip_t5", {"config": {"decoder_start_token_id": "x"}}, "decoder_start_token_id is 'x'"),
        ("clip_t5", {"config": {"mm_vision_select_layer": True}}, "mm_vision_select_layer is True"),
        ("clip_t5", {"config": {"eos_token_id": 2}}, "is not the tokenizer of this model"),
    ]
    for number, (kind, change, message) in enumerate(cases):
        folder = qwen.changed(folders[kind], tmp_path / str(number), **change)
        with pytest.raises(CheckpointError, match=message) as raised:
            ir.load(folder, "cpu")
        assert "\n" not in str(raised.value)
    folder = qwen.changed(folders["clip_t5"], tmp_path / "alone")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="has no image tower"):
        ir.load(folder, "cpu")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors and pytorch_model\.bin, and"):
        ir.load(folder, "cpu")
    with pytest.raises(CheckpointError, match="is of model_type 'qwen2_vl', and VQAScore is computed with"):
        load(qwen.changed(folders["qwen2_5_vl"], tmp_path / "base", {"model_type": "qwen2_vl"}))


# --- the hub ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with hubs.serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield served


def test_any_checkpoint_by_its_hub_id(hub: hubs.Hub, folders: dict[str, Path]) -> None:
    for kind in KINDS:
        hub.files |= {f"someone/{kind}/{file.name}": file.read_bytes() for file in folders[kind].iterdir()}
        loaded = ir.load(f"someone/{kind}", "cpu", "float32")
        assert loaded.name == f"someone/{kind}"
        assert loaded.score(PROMPTS[0], images()) == pytest.approx(log_odds(ORIGINAL[kind]["float32"][0]).tolist(), abs=TOLERANCE)
    del hub.files["someone/qwen2_5_vl/model-00002-of-00002.safetensors"]
    hub.files = {name.replace("qwen2_5_vl", "broken"): content for name, content in hub.files.items()}
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors"):
        ir.load("someone/broken", "cpu")


NAMES = {"VQAScore-Qwen2.5-VL-7B": "qwen2_5_vl", "VQAScore-CLIP-FlanT5-XL": "clip_t5"}


@pytest.mark.parametrize("name", NAMES)
def test_by_name(
    name: str,
    hub: hubs.Hub,
    folders: dict[str, Path],
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folders[NAMES[name]]
    files = [file for file in MODELS[name].files.values() if isinstance(file, HubFile)]
    beside = {f"{files[0].repo}/{file.name}": file.read_bytes() for file in folder.glob("model-*")}
    extra = {"preprocessor_config.json": b"{}", "tokenizer_config.json": b"{}"}
    content = {file.name: (folder / file.name).read_bytes() if (folder / file.name).is_file() else extra[file.name] for file in files}
    hub.files = {f"{file.repo}/{file.name}": content[file.name] for file in files} | beside
    paths = [str(image_folder / f"{letter}.png") for letter in "ab"]
    assert main(["models", "path", name]) == 1
    capsys.readouterr()
    assert main(["compare", "a cat", *paths, "--model", name, "--dtype", "float32", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"] == pytest.approx(load(folder).score("a cat", paths), abs=1e-5)
    assert main(["models", "path", name]) == 0
    if beside:  # a damaged index is not an end of the list
        monkeypatch.setattr(
            "image_reward.scorers.spec.shards_of", lambda index: (_ for _ in ()).throw(CheckpointError(f"{index} is damaged"))
        )
        assert MODELS[name].local_paths() is None
    assert len(capsys.readouterr().out.split()) == len(files) + len(beside)
    if name.startswith("VQAScore-CLIP"):
        with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json: .* by its name, such as VQAScore-CLIP-FlanT5-XL"):
            ir.load("zhiqiulin/clip-flant5-xl", "cpu")


@pytest.mark.parametrize(("status", "words"), [(401, "401"), (403, "hf auth login"), (404, "By hand: fetch ")])
def test_a_repository_that_is_gated_or_gone(hub: hubs.Hub, status: int, words: str) -> None:
    hub.status = status
    for name in ("VQAScore-Qwen3-VL-8B", "someone/qwen3_vl"):
        with pytest.raises(DownloadError, match=words if name in MODELS else "is neither a file here nor a model that could be") as raised:
            ir.load(name, "cpu")
        assert "\n" not in str(raised.value)


# --- full size ---


def kinds_of(names: Any) -> set[str]:
    """Names but for the numbers of blocks."""
    return {".".join("N" if part.isdecimal() and "mm_projector" not in name else part for part in name.split(".")) for name in names}


def test_the_full_size_layouts() -> None:
    """Of the published checkpoints, without storage."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        T5Config,
    )

    from image_reward.checkpoints import Piece

    def renamed(kind: str) -> set[str]:
        pieces = {name: Piece(Path(), name, shape) for name, shape in shapes_of(kind).items()}
        return set(vqascore.clip_t5_names(pieces) if kind == "clip_t5" else qwen_chat.chat_names(pieces))

    def layout(network: Any) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    vision = {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32, "num_heads": 16, "intermediate_size": 3420}
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    config: Any = Qwen2_5_VLConfig(**sizes, vocab_size=152_064, rope_scaling=rope, vision_config=vision, tie_word_embeddings=False)
    shapes = layout(empty_network(lambda: Qwen2_5_VLForConditionalGeneration(config)))
    assert shapes["lm_head.weight"] == shapes["model.language_model.embed_tokens.weight"] == (152_064, 3584)
    assert shapes["model.visual.merger.mlp.2.weight"] == (3584, 5120)
    assert kinds_of(shapes) == kinds_of(renamed("qwen2_5_vl"))
    assert MODELS["VQAScore-Qwen2.5-VL-7B"].least_size == 2 * sum(map(math.prod, shapes.values())) == pytest.approx(16.6e9, rel=0.005)

    text = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
    text |= {
        "head_dim": 128,
        "vocab_size": 151_936,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    }
    vision = {"hidden_size": 1152, "out_hidden_size": 4096, "depth": 27, "num_heads": 16, "intermediate_size": 4304, "patch_size": 16}
    vision |= {"deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304, "spatial_merge_size": 2, "temporal_patch_size": 2}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    shapes = layout(empty_network(lambda: Qwen3VLForConditionalGeneration(config)))
    assert shapes["lm_head.weight"] == (151_936, 4096)
    assert shapes["model.visual.patch_embed.proj.weight"] == (1152, 3, 2, 16, 16)
    assert kinds_of(shapes) == kinds_of(renamed("qwen3_vl"))
    assert MODELS["VQAScore-Qwen3-VL-8B"].least_size == 2 * sum(map(math.prod, shapes.values())) == pytest.approx(17.5e9, rel=0.005)

    tower = {"embeddings.patch_embedding.weight": (1024, 3, 14, 14), "embeddings.position_embedding.weight": (577, 1024)}
    tower |= {f"encoder.layers.{layer}.mlp.fc1.weight": (4096, 1024) for layer in range(24)}
    clip = clip_vision_config(tower)
    assert (clip.image_size, clip.num_attention_heads, clip.num_hidden_layers, clip.hidden_act) == (336, 16, 24, "quick_gelu")
    for size, d_model, d_ff, heads, gigabytes in (("XL", 2048, 5120, 32, 6.32), ("XXL", 4096, 10240, 64, 22.9)):
        t5 = T5Config(
            vocab_size=32_128,
            d_model=d_model,
            d_ff=d_ff,
            num_layers=24,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        network = empty_network(lambda t5=t5: ClipT5Network(clip, t5))  # type: ignore[misc]
        shapes = layout(network)
        assert shapes["mm_projector.0.weight"] == (d_model, 1024)
        assert shapes["mm_projector.2.weight"] == (d_model, d_model)
        assert shapes["t5.lm_head.weight"] == (32_128, d_model)
        assert network.t5.lm_head.weight is not network.t5.shared.weight
        repeated = {"t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight"}
        assert kinds_of(shapes) - repeated == kinds_of(renamed("clip_t5"))
        own = sum(math.prod(shape) for name, shape in shapes.items() if name not in repeated)
        assert MODELS[f"VQAScore-CLIP-FlanT5-{size}"].least_size == 2 * own == pytest.approx(gigabytes * 1e9, rel=0.01)


# --- bad input ---


@pytest.mark.parametrize(
    ("kind", "marker"),
    [(kind, marker) for kind in CHAT_KINDS for marker in ("<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>")]
    + [("clip_t5", marker) for marker in ("<image>", "</s>", "<pad>", "<unk>", "<extra_id_7>")],
)
def test_a_prompt_with_the_templates_own_markers(kind: str, marker: str, folders: dict[str, Path]) -> None:
    scorer = load(folders[kind])
    with pytest.raises(PromptError, match=r"contains <.*remove it from the prompt"):
        scorer.score(f"a cat {marker}", images()[0])
    with pytest.raises(PromptError):
        scorer.rewards(f"a cat {marker}", torch.rand(1, 3, 30, 30))
    assert isinstance(scorer.score("a cat < image > | im_end |>", images()[0]), float)


@pytest.mark.parametrize("prompt", ["a cat ＜/s＞", "a cat <\x01/s>", "＜extra_id_7＞", "﹤pad﹥"])
def test_markers_that_t5s_normalisation_makes(prompt: str, folders: dict[str, Path]) -> None:
    scorer = load(folders["clip_t5"])
    with pytest.raises(PromptError, match=r"contains <.*remove it from the prompt"):
        scorer.score(prompt, images()[0])


def test_prompts_and_images_that_are_too_long(scorer: AnswerScorer, kind: str) -> None:
    with pytest.raises(PromptError, match=r"and the model reads .*; shorten it"):
        scorer.score("!? " * 9000, images()[0])
    with pytest.raises(ImageReadError, match="a strip of more than 200 to 1"):
        scorer.rewards("a cat", torch.rand(1, 3, 3, 1000))
    with pytest.raises(ImageReadError, match="a strip of more than 200 to 1"):
        scorer.score("a cat", seeded.image("gradient", 1000, 3, 1))
    assert kind != "clip_t5" or scorer.score("a cat", seeded.image("gradient", 3, 600, 1)) != 0


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (80, 80), (3, 500), (500, 3)])
def test_squares_are_padded_as_the_original_does(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    square = PaddedSquare(84, 36)
    image = seeded.image("noise", *size, 3)
    whole = max(size)
    padded = Image.new("RGB", (whole, whole), (122, 116, 104))
    padded.paste(image, ((whole - size[0]) // 2, (whole - size[1]) // 2))
    expected = np.array(padded.resize((84, 84), Image.Resampling.BICUBIC))
    monkeypatch.setattr(vqascore, "_PADDED_PIXELS", 2000)  # in parts
    assert np.array_equal(square.fit(image).permute(1, 2, 0).numpy(), expected)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    assert (square.fit_tensor(pixels)[0] - square.fit(image) / 255).abs().max() <= 3 / 255


def test_squares_that_are_too_large() -> None:
    with pytest.raises(ImageReadError, match="the image is 70000 x 400, and squares of more than 65,536 px are not read; resize it"):
        PaddedSquare(84, 36).size(70_000, 400, "the image")


# --- the rest of the package ---


def test_in_ensembles_and_beside_others(folders: dict[str, Path], kind: str, scorer: AnswerScorer, tmp_path: Path) -> None:
    check_ensemble(scorer, PROMPTS, images(), mean=1.0)
    check_saved_ensemble(folders[kind], kind, images(), tmp_path)


def test_jobs_evaluate_rank_and_verify_precision(
    folders: dict[str, Path], kind: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(image_folder / f"{name}.png") for name in "abc"]
    rewards = load(folders[kind]).score("a cat", paths)
    marker = "<image>" if kind == "clip_t5" else "<|im_end|>"
    check_commands(folders[kind], paths, rewards, tmp_path, capsys, options=["--dtype", "float32"], refused=marker)


def test_the_config_names_question_and_answer(scorer: AnswerScorer) -> None:
    again = pickle.loads(pickle.dumps(scorer.prepare))  # for loader processes
    assert again.template(PROMPTS) == scorer.prepare.template(PROMPTS)
    assert isinstance(scorer, VisionLanguageScorer)
    assert scorer.config["answer"] == "Yes"
    assert "Does this figure show" in repr(scorer.prepare)


def test_it_is_kept_as_its_files(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    check_kept(load(folders[kind]), ["config.json", "tokenizer.json"], folders[kind], tmp_path)
