"""Greedy decoding against transformers' own ``generate``, with small networks of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import image_reward as ir
import judges
import seeded
from image_reward.scorers.judge import Judge, written_tokens

KINDS = ("qwen3_vl", "qwen2_5_vl")
PROMPTS = ["a cat", "two red birds\non a  wire", "portrait of a {beautiful} fox, wide angle, trending on artstation  "]
IMAGES = [("rings", 401, 300, 3), ("gradient", 225, 1024, 5), ("checker", 97, 61, 7)]
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What these write is of no form, and long. They have the published Qwen2.5-VL's penalty of repetition."""
    root = tmp_path_factory.mktemp("judges")
    for kind in KINDS:
        judges.write(root / kind, seed=8, kind=kind)
        file = root / kind / "generation_config.json"
        end = json.loads((root / kind / "config.json").read_text())["video_token_id"]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.05, "eos_token_id": end}))
    return {kind: root / kind for kind in KINDS}


def load(folder: Path) -> Judge:
    judge: Any = ir.load(folder, "cpu", "float32")
    judge.decoding = replace(judge.decoding, most_tokens=NUM_TOKENS)
    return judge


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch_of(judge: Judge) -> Any:
    return judge.prepare(PROMPTS, [seeded.image(*arguments) for arguments in IMAGES])


def tokens(judge: Judge) -> list[list[int]]:
    with torch.inference_mode():
        return written_tokens(judge.network, judge.chat_inputs(batch_of(judge), "left"), judge.decoding)


_GENERATED: dict[str, list[list[int]]] = {}


def generated(folder: Path) -> list[list[int]]:
    """What transformers writes, each row alone."""
    if folder.name not in _GENERATED:
        judge = load(folder)
        _GENERATED[folder.name] = []
        for row in range(len(PROMPTS)):
            inputs = judge.chat_inputs(batch_of(judge).select([row]))
            network: Any = judge.network
            network.generation_config.update(repetition_penalty=judge.decoding.repetition_penalty)
            ends = list(judge.decoding.ends)
            whole = network.generate(**inputs, do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=ends, pad_token_id=ends[-1])
            _GENERATED[folder.name].append(whole[0, inputs["input_ids"].shape[1] :].tolist())
    return _GENERATED[folder.name]


def test_what_is_written_is_what_transformers_writes(folders: dict[str, Path], kind: str) -> None:
    written = tokens(load(folders[kind]))
    assert written == generated(folders[kind])
    assert max(map(len, written)) == NUM_TOKENS
    assert len({tuple(row) for row in written}) == 3


def test_images_are_read_as_transformers_reads_them(folders: dict[str, Path], kind: str) -> None:
    """By the size in the checkpoint's preprocessor_config.json."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    judge = load(folders[kind])
    patches = judge.prepare.patches
    asked = json.loads((folders[kind] / "preprocessor_config.json").read_text())
    processor = Qwen2VLImageProcessorPil(
        **asked,
        patch_size=patches.patch_size,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=list(patches.mean),
        image_std=list(patches.std),
    )
    theirs = processor([seeded.image(*arguments) for arguments in IMAGES], return_tensors="pt")
    own, grids = judge.vision_inputs(batch_of(judge))
    assert grids.tolist() == theirs["image_grid_thw"].tolist()
    torch.testing.assert_close(own, theirs["pixel_values"], rtol=0, atol=1e-5)


def _sequential(judge: Any) -> None:
    """What is written is counted on from the number of tokens, of which an image has more than it takes positions."""
    text = judge.network.model.language_model

    def positions(_: Any, args: Any, kwargs: Any) -> Any:
        if kwargs["inputs_embeds"].shape[1] == 1:
            kwargs["position_ids"] = (kwargs["attention_mask"].sum(dim=1) - 1)[None, :, None].expand(3, -1, -1)
        return args, kwargs

    text.register_forward_pre_hook(positions, with_kwargs=True)


def _flat(judge: Any) -> None:
    """An image has no rows and columns."""
    index = judge.network.model.get_rope_index

    def get_rope_index(*args: Any, **kwargs: Any) -> Any:
        _, deltas = index(*args, **kwargs)
        return (kwargs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)[None].expand(3, -1, -1), deltas

    judge.network.model.get_rope_index = get_rope_index


def _space(judge: Any) -> None:
    text = judge.prepare.template.text
    judge.prepare.template = replace(judge.prepare.template, text=text.replace("Style Score (1-5): Z\n", "Style Score (1-5): Z \n"))
    assert judge.prepare.template.text != text


def _budget(judge: Any) -> None:
    judge.prepare.patches = replace(judge.prepare.patches, max_pixels=12_000)


def _penalty(judge: Any) -> None:
    judge.decoding = replace(judge.decoding, repetition_penalty=1.0)


FAULTS: list[tuple[str, Callable[[Any], None]]] = [
    ("qwen3_vl", _sequential),
    ("qwen3_vl", _flat),
    ("qwen3_vl", _space),
    ("qwen3_vl", _budget),
    ("qwen3_vl", _penalty),
    ("qwen2_5_vl", _sequential),
    ("qwen2_5_vl", _flat),
    ("qwen2_5_vl", _penalty),
]


@pytest.mark.parametrize(("where", "plant"), FAULTS, ids=[f"{where}{plant.__name__}" for where, plant in FAULTS])
def test_planted_faults_show(where: str, plant: Callable[[Any], None], folders: dict[str, Path]) -> None:
    judge = load(folders[where])
    plant(judge)
    assert tokens(judge) != generated(folders[where])


def test_answers_do_not_depend_on_what_shares_a_batch(folders: dict[str, Path]) -> None:
    judge = load(folders["qwen3_vl"])
    images = [seeded.image(*arguments) for arguments in IMAGES]
    pairs = [(p, i) for p in range(3) for i in range(3)]
    alone = {(p, i): judge.answers(PROMPTS[p], [images[i]])[0] for p, i in pairs}
    assert len(set(alone.values())) > 5
    for size in (2, 9):
        judge.batch_size = size
        order = np.random.default_rng(size).permutation(pairs).tolist()
        assert judge.answers([PROMPTS[p] for p, _ in order], [images[i] for _, i in order]) == [alone[p, i] for p, i in order]
    assert judge.answers("a cat", []) == []
    with pytest.raises(ValueError, match="2 prompts and 3 images"):
        judge.answers(PROMPTS[:2], images)


def test_rows_end_each_at_its_time(folders: dict[str, Path]) -> None:
    """Some token of each row ends it, and the others are what they would be without."""
    judge = load(folders["qwen3_vl"])
    whole = generated(folders["qwen3_vl"])
    ends = tuple(row[place] for row, place in zip(whole, (1, 9, 5), strict=True))
    expected = [row[: min(row.index(end) for end in ends if end in row) + 1] for row in whole]
    assert len({len(row) for row in expected}) > 1
    judge.decoding = replace(judge.decoding, ends=ends)
    assert tokens(judge) == expected


def test_too_little_memory_halves_the_batch(folders: dict[str, Path]) -> None:
    judge = load(folders["qwen3_vl"])
    images = [seeded.image(*arguments) for arguments in IMAGES] * 2
    expected = judge.answers(PROMPTS * 2, images)
    sizes = []

    def forward(_: Any, __: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2 and len(sizes) % 5 == 0:  # in the middle of an answer
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = judge.network.model.register_forward_pre_hook(forward, with_kwargs=True)
    assert judge.answers(PROMPTS * 2, images) == expected
    assert max(sizes) == 6
    assert sizes[-1] < 6
    hook.remove()
    judge.network.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        judge.answers(PROMPTS, images[:3])
