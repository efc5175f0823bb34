"""What vision-language scorers share: patches, templates, batches, and networks filled piece by piece."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import qwen
import seeded
from image_reward.checkpoints import pieces_of
from image_reward.errors import CheckpointError, ImageReadError, PromptError
from image_reward.scorers import vision_language
from image_reward.scorers.vision_language import (
    ChatTemplate,
    ImagePatches,
    VisionLanguageBatch,
    VisionLanguageProcessor,
    VisionLanguageScorer,
    cast_weights,
    empty_network,
    load_network,
    move_inputs,
    read_shards,
    spread,
    units_of,
)

PATCHES = ImagePatches(4 * 28 * 28, 12 * 28 * 28)
TEXT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Is this {prompt}?<|im_end|>\n<|im_start|>assistant\n"


def template(**others: Any) -> ChatTemplate:
    return ChatTemplate(TEXT, qwen.tokenizer().to_str(), **others)


def processor(**others: Any) -> VisionLanguageProcessor:
    return VisionLanguageProcessor(PATCHES, template(**others))


# --- images ---


@pytest.mark.parametrize("limits", [(3136, 12_845_056), (200_704, 200_704), (3136, 50_000)])
@pytest.mark.parametrize("arguments", seeded.IMAGES)
def test_patches_are_those_of_transformers(limits: tuple[int, int], arguments: Any) -> None:
    image = seeded.image(*arguments)
    patches = ImagePatches(*limits)
    fitted = patches.fit(image)
    theirs = Qwen2VLImageProcessorPil(size={"shortest_edge": limits[0], "longest_edge": limits[1]})(images=[image], return_tensors="pt")
    assert theirs["image_grid_thw"].tolist() == [list(patches.grid(fitted))]
    torch.testing.assert_close(patches.patches(fitted), theirs["pixel_values"], rtol=0, atol=2e-6)
    assert patches.num_tokens(fitted) == len(theirs["pixel_values"]) // 4


def test_an_image_of_known_size() -> None:
    patches = ImagePatches(200_704, 200_704)
    fitted = patches.fit(Image.new("RGB", (401, 300)))
    assert patches.grid(fitted) == (1, 28, 38)
    assert patches.num_tokens(fitted) == 266


@pytest.mark.parametrize(("size", "message"), [((402, 2), "is 402 x 2, a strip"), ((12_000, 61), "and would be read as")])
def test_long_strips_are_refused_by_name(size: tuple[int, int], message: str, tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    with pytest.raises(ImageReadError, match=message) as raised:
        ImagePatches(200_704, 200_704).fit(tmp_path / "strip.png")
    assert "strip.png" in str(raised.value)
    with pytest.raises(ImageReadError, match=message):
        ImagePatches(200_704, 200_704).fit_tensor(torch.zeros(1, 3, size[1], size[0]))


def test_tensors_give_nearly_the_same_patches_and_carry_gradients() -> None:
    image = seeded.image("gradient", 120, 90, 1)
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255).requires_grad_()
    patches = ImagePatches(200_704, 200_704)
    (fitted,) = patches.fit_tensor(pixels)
    assert fitted.shape == patches.fit(image).shape
    assert (fitted - patches.fit(image) / 255).abs().max() <= 2 / 255 + 1e-6
    patches.patches(fitted).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().min() > 0


# --- text ---


def test_the_ids_are_those_of_the_whole_text() -> None:
    ids = template()(["a cat", " two\n\n", "a cat"])
    assert ids[0] == ids[2]
    known = qwen.tokenizer()
    assert ids == [known.encode(TEXT.replace("{prompt}", prompt)).ids for prompt in ("a cat", " two\n\n", "a cat")]


def test_nothing_after_the_last_token_that_is_needed() -> None:
    known = qwen.tokenizer()
    ids = template(last_token="<|im_end|>")(["a cat"])[0]
    assert ids == known.encode(TEXT.replace("{prompt}", "a cat").partition("<|im_end|>")[0] + "<|im_end|>").ids


@pytest.mark.parametrize("marker", ["<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<|new|>"])
def test_a_prompt_with_a_marker_of_the_template_is_refused(marker: str) -> None:
    with pytest.raises(PromptError, match=r"contains <\|.*remove it"):
        template(new_tokens=("<|new|>",)).check([f"a cat{marker} and more"])


def test_a_text_that_is_too_long_is_refused() -> None:
    short = template(most_tokens=120)
    short.check(["a cat"])
    with pytest.raises(PromptError, match="and the model reads 120; shorten it"):
        short.check(["a cat " * 100])


def test_a_tokenizer_without_the_templates_tokens(tmp_path: Path) -> None:
    file = qwen.tokenizer_file(tmp_path, special_tokens=[token for token in qwen.SPECIAL_TOKENS if token != "<|image_pad|>"])
    with pytest.raises(CheckpointError, match=r"has no special token <\|image_pad\|>"):
        ChatTemplate.from_file(file, TEXT)
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ChatTemplate.from_file(file, TEXT)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"lacks tokenizer\.json"):
        ChatTemplate.from_file(file, TEXT)


# --- batches ---


def assert_same(a: VisionLanguageBatch, b: VisionLanguageBatch) -> None:
    assert a.images == b.images
    assert a.digests == b.digests
    for ours, theirs in zip((*a.ids, *a.pixels), (*b.ids, *b.pixels), strict=True):
        assert torch.equal(ours, theirs)


def test_batches() -> None:
    images = seeded.images()[:3]
    rows = processor()(["a", "b", "c d", "a"], [images[0], images[1], images[0], images[2]])
    assert len(rows) == 4
    assert rows.images == ((0,), (1,), (0,), (2,))
    image_token = template().token_id("<|image_pad|>")
    assert [(row == image_token).sum().item() for row in rows.ids] == [PATCHES.num_tokens(rows.pixels[image]) for (image,) in rows.images]
    assert_same(rows.select([3, 1]), processor()(["a", "b"], [images[2], images[1]]))
    assert_same(rows.select([0, 1]).join([rows.select([2, 3])]), rows)
    assert_same(pickle.loads(pickle.dumps(rows)), rows)
    assert len(processor()([], [])) == 0
    keys = processor()(["a", "a", "b", "a"], [images[0], images[0].copy(), images[0], images[1]]).keys()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    with pytest.raises(ValueError, match="2 prompts and 1 images"):
        processor()(["a", "b"], images[:1])


def test_rows_of_several_images() -> None:
    images = seeded.images()[:2]
    pair = TEXT.replace("<|image_pad|>", "<|image_pad|><|image_pad|>")
    ids = ChatTemplate(pair, qwen.tokenizer().to_str())(["better"])
    rows = processor().of_rows(ids * 2, [images, images[::-1]])
    assert rows.images == ((0, 1), (1, 0))
    assert len(rows.pixels) == 2
    assert_same(rows.select([1]), processor().of_rows(ids, [images[::-1]]))


# --- networks ---


def written(folder: Path, network: nn.Module, shards: int = 1, dtype: torch.dtype = torch.float32) -> list[Path]:
    """The weights of a network as shards of transformers' format."""
    folder.mkdir(exist_ok=True)
    names = list(network.state_dict())
    files = [folder / ("model.safetensors" if shards == 1 else f"model-{shard}.safetensors") for shard in range(shards)]
    for shard, file in enumerate(files):
        save_file({name: network.state_dict()[name].to(dtype).contiguous() for name in names[shard::shards]}, file)
    return files


def small(seed: int = 0) -> Qwen2VLForConditionalGeneration:
    vocab_size = len(qwen.letters()) + len(qwen.SPECIAL_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**qwen.config(vocab_size))).eval()


def empty() -> Qwen2VLForConditionalGeneration:
    return empty_network(lambda: Qwen2VLForConditionalGeneration(small().config))


class Answering(VisionLanguageScorer):
    """The largest logit of the next token: something that depends on everything."""

    name = "answering"

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.prepare = processor()

    def forward(self, batch: VisionLanguageBatch) -> Tensor:
        inputs = self.chat_inputs(batch, "left")
        return self.network(**inputs, use_cache=False).logits[:, -1].float().amax(dim=-1)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_network_is_filled_from_its_shards(tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_reward.checkpoints._PIECE", 50_000)
    files = written(tmp_path, small(), shards)
    network = empty()
    load_network(network, pieces_of(files), "small", dtype=torch.float32)
    prompts, images = ["a", "a longer prompt", "b"], seeded.images()[:3]
    expected = Answering(small()).score(prompts, images)
    assert Answering(network).score(prompts, images) == pytest.approx(expected, abs=1e-6)
    assert not any(weight.requires_grad for weight in network.parameters())


def test_rewards_do_not_depend_on_the_batch_nor_on_its_padding() -> None:
    scorer = Answering(small())
    prompts, images = ["a", "a longer prompt", "b"] * 2, seeded.images()[:6]
    alone = [scorer.score(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
    for size in (2, 6):
        scorer.batch_size = size
        assert scorer.score(prompts, images) == pytest.approx(alone, abs=1e-5)
    pixels = torch.rand(2, 3, 60, 70, requires_grad=True)
    scorer.rewards("a", pixels).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    (file,) = written(tmp_path, small())
    pieces = pieces_of([file])
    some = next(iter(pieces))
    for broken, message in (
        ({name: piece for name, piece in pieces.items() if name != some}, f"{some} is missing"),
        (pieces | {"more": pieces[some]}, "more is unexpected"),
        (pieces | {some: pieces[some]._replace(shape=(3,))}, rf"{some} has shape \(3,\) and should have"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_network(empty(), broken, "small", dtype=torch.float32)
    bad = small()
    bad.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN"):
        load_network(empty(), pieces_of(written(tmp_path / "bad", bad)), "small", dtype=torch.float32)
    with pytest.raises(CheckpointError, match="not shards of one checkpoint"):
        pieces_of([file, written(tmp_path / "twice", small())[0]])
    with pytest.raises(CheckpointError, match=r"lacks nowhere\.safetensors"):
        pieces_of([tmp_path / "nowhere.safetensors"])


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    config = Qwen2VLConfig(**qwen.config(270, tie_word_embeddings=True))
    network = Qwen2VLForConditionalGeneration(config)
    assert network.lm_head.weight is network.model.language_model.embed_tokens.weight
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "model.safetensors")
    filled = empty_network(lambda: Qwen2VLForConditionalGeneration(config))
    load_network(filled, pieces_of([tmp_path / "model.safetensors"]), "tied", dtype=torch.float32)
    assert filled.lm_head.weight is filled.model.language_model.embed_tokens.weight
    assert torch.equal(filled.lm_head.weight, network.lm_head.weight)


def test_positions_stay_in_float32(tmp_path: Path) -> None:
    network = empty()
    load_network(
        network, pieces_of(written(tmp_path, small())), "small", dtype=torch.bfloat16, devices=torch.device("cpu"), float32=["lm_head"]
    )
    assert network.model.visual.dtype == torch.bfloat16
    assert network.lm_head.weight.dtype == torch.float32
    cast_weights(network, torch.bfloat16)
    for name, buffer in small().named_buffers():
        assert network.get_buffer(name).dtype == torch.float32
        assert torch.equal(network.get_buffer(name), buffer)


def test_other_networks_of_the_family_are_built_without_storage() -> None:
    text = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
    network = empty_network(lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)))
    assert all(weight.is_meta for weight in network.parameters())
    assert not any(buffer.is_meta for buffer in network.buffers())


def test_shards_are_named_by_the_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors, and model\.safetensors\.index\.json"):
        read_shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}')
    assert [file.name for file in read_shards(tmp_path)] == ["one.safetensors", "two.safetensors"]
    for names in ({"a": "../elsewhere.safetensors"}, {"a": ".."}, {"a": ""}, {"a": "a\\b.bin"}, {"a": "config.json"}, {"a": None}, {}, []):
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(CheckpointError, match="does not name"):
            read_shards(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert read_shards(tmp_path) == [tmp_path / "model.safetensors"]


def test_devices_are_filled_in_order() -> None:
    network = empty()
    units = units_of(network)
    assert sum(units.values()) == sum(weight.numel() for weight in small().parameters())
    order = list(units)
    assert order.index("model.visual.blocks.1") < order.index("model.language_model.embed_tokens") < order.index("lm_head")
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    whole = sum(units.values()) * 4
    assert set(spread(network, torch.float32, {first: whole, second: whole}).values()) == {first}
    places = spread(network, torch.float32, {first: whole // 2, second: whole // 4})
    devices = [places[unit] for unit in order]
    assert devices == sorted(devices, key=[first, second, torch.device("cpu")].index)
    assert len(set(devices)) == 3
    assert set(spread(network, torch.float32, {}).values()) == {torch.device("cpu")}
    halves = spread(network, torch.bfloat16, {first: whole // 2})
    assert set(halves.values()) == {first}


def test_buffers_go_with_the_parts_around_them() -> None:
    network = empty()
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    places = {unit: first if unit.startswith("model.visual") else second for unit in units_of(network)}
    devices = vision_language.buffer_places(network, places)
    assert set(devices) == {name for name, _ in network.named_buffers()}
    assert devices["model.visual.rotary_pos_emb.inv_freq"] == first
    assert devices["model.language_model.rotary_emb.inv_freq"] == second
    inside = {unit.rpartition(".")[0]: second for unit in places if unit.startswith("model.visual.blocks.")}
    assert vision_language.buffer_places(network, {"model.visual": first, **inside})["model.visual.rotary_pos_emb.inv_freq"] == first


def test_a_spread_network_moves_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    expected = Answering(network).score("a", seeded.images()[:2])
    moved: list[torch.device] = []
    real = vision_language._moved

    def watched(value: Any, device: torch.device) -> Any:
        moved.append(device)
        return real(value, device)

    monkeypatch.setattr(vision_language, "_moved", watched)
    places = dict.fromkeys(units_of(network), torch.device("cpu", 0))
    move_inputs(network, places)
    assert Answering(network).score("a", seeded.images()[:2]) == pytest.approx(expected, abs=1e-6)
    assert len(moved) > 2 * len(places)


def test_a_batch_on_a_device() -> None:
    rows: Sequence[VisionLanguageBatch] = [processor()(["a"], seeded.images()[:1]).to("meta")]
    assert {tensor.device.type for row in rows for tensor in (*row.ids, *row.pixels)} == {"meta"}
