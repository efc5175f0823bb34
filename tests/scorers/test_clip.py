from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

import seeded
import shared
from image_reward.checkpoints import read_checkpoint
from image_reward.errors import CheckpointError, LongPromptWarning, PromptError, RewardError
from image_reward.images import ImageOptions
from image_reward.prompts import ClipTokenizer, PromptTokenizer
from image_reward.scorers import TwoTowerProcessor, score_together
from image_reward.scorers.clip import AestheticScorer, ClipScorer, ClipSettings, clip_from_folder, clip_from_state_dict

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "scores_clip_tiny.json").read_text())
OPENAI = ClipSettings(convention="openai")
IMAGES = seeded.images()
SHORT = ["cat", "", "a photo of a dog", "two red birds"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return seeded.clip_weights(7)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of few merges."""
    return seeded.clip_tokenizer_files(tmp_path_factory.mktemp("tokenizer"), ["c a", "ca t</w>", "d o", "do g</w>", "r e"])


@pytest.fixture
def make(tensors: dict[str, Tensor], tokenizer: Path) -> Callable[..., ClipScorer]:
    def make(tensors: dict[str, Tensor] = tensors, settings: ClipSettings = OPENAI, **options: Any) -> ClipScorer:
        defaults = {"activation": "quick_gelu", "vision_heads": 2, "text_heads": 2}
        return clip_from_state_dict(tensors, tokenizer, settings, "seeded weights", **(defaults | options))

    return make


@pytest.fixture
def clip(make: Callable[..., ClipScorer]) -> ClipScorer:
    return make()


@pytest.fixture
def aesthetic(clip: ClipScorer) -> AestheticScorer:
    return AestheticScorer.on(clip, seeded.aesthetic_weights(7), "seeded head")


def recorded_tokens() -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(row) for row in REFERENCE["token_ids"]]
    return (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True),
    )


def counted(module: torch.nn.Module, seen: list[int], argument: str) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _, __, named: seen.append(len(named[argument])), with_kwargs=True)


# --- values --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_cosines_equal_the_originals(make: Callable[..., ClipScorer], activation: str) -> None:
    expected = REFERENCE[activation]
    scorer = make(activation=activation)
    ids, mask = recorded_tokens()
    with torch.inference_mode():
        images = scorer.encode_images(scorer.prepare.pixels(IMAGES))
        found = scorer.score_pairs(images, ids[None], mask[None])
        scaled = ClipScorer(scorer.network, scorer.prepare, scaled=True).score_pairs(images[:1], ids[None, :1], mask[None, :1])
    np.testing.assert_allclose(found.T, expected["cosine"], rtol=0, atol=1e-5)
    assert scaled.item() == pytest.approx(expected["scaled_first"], rel=1e-5)


def test_the_aesthetic_score_equals_the_originals(aesthetic: AestheticScorer) -> None:
    assert aesthetic.score("whatever", IMAGES) == pytest.approx(REFERENCE["aesthetic"], abs=1e-5)
    assert aesthetic.score([str(i) for i in range(8)], IMAGES) == pytest.approx(REFERENCE["aesthetic"], abs=1e-5)


def test_prompts_and_images_to_cosines_with_openais_merges(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    folder = seeded.clip_tokenizer_files(tmp_path, shared.openai_merges())
    scorer = clip_from_state_dict(tensors, folder, OPENAI, "seeded", activation="gelu", vision_heads=2, text_heads=2)
    tokens = scorer.prepare.tokenizer(seeded.PROMPTS)
    assert [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)] == REFERENCE["token_ids"]
    np.testing.assert_allclose(scorer.matrix(seeded.PROMPTS, IMAGES), REFERENCE["gelu"]["cosine"], rtol=0, atol=1e-5)


def test_scaled_is_the_cosine_times_the_scale(clip: ClipScorer) -> None:
    scaled = ClipScorer(clip.network, clip.prepare, scaled=True)
    factor = math.exp(np.float32(4.6052))
    np.testing.assert_allclose(scaled.matrix(SHORT, IMAGES), factor * clip.matrix(SHORT, IMAGES), rtol=1e-5)
    assert (clip.scale, scaled.scale) == (pytest.approx(factor, rel=1e-5), 1.0)
    # PickScore's probability of choice is the softmax of the scaled cosines, and the cosine alone gives the same.
    preference = clip.compare("cat", *IMAGES[:2])
    choice = torch.tensor(scaled.score("cat", IMAGES[:2])).softmax(0)
    assert (preference.a_better, preference.b_better) == pytest.approx(tuple(choice.tolist()), abs=1e-5)


# --- the contract --------------------------------------------------------------------------------------------------------------------


def test_any_batch_gives_what_one_at_a_time_gives(clip: ClipScorer) -> None:
    alone = np.array([[clip.score(prompt, image) for image in IMAGES] for prompt in SHORT])
    assert np.ptp(alone) > 0.1
    for batch_size in (1, 3, 8):
        clip.batch_size = batch_size
        np.testing.assert_allclose(clip.matrix(SHORT, IMAGES), alone, rtol=0, atol=1e-5)
    order = [5, 0, 3, 3, 1]
    np.testing.assert_allclose(clip.matrix(SHORT, [IMAGES[i] for i in order]), alone[:, order], rtol=0, atol=1e-5)
    pairs = [(p, i) for i in (2, 0, 7, 2) for p in (3, 0, 1)]
    found = clip.score([SHORT[p] for p, _ in pairs], [IMAGES[i] for _, i in pairs])
    np.testing.assert_allclose(found, [alone[p, i] for p, i in pairs], rtol=0, atol=1e-5)
    assert isinstance(clip.score("cat", IMAGES[0]), float)
    assert clip.score("cat", IMAGES[:1]) == [pytest.approx(alone[0, 0], abs=1e-5)]
    assert clip.score("cat", []) == []


def test_padding_does_not_matter(clip: ClipScorer) -> None:
    tokens = clip.prepare.tokenizer(["a photo of a cat"])
    with torch.inference_mode():
        images = clip.encode_images(clip.prepare.pixels(IMAGES[:2]))
        plain = clip.score_pairs(images, tokens.ids[None], tokens.mask[None])
        for value in (0, 7, 49407):
            ids = torch.nn.functional.pad(tokens.ids, (0, 20), value=value)
            padded = clip.score_pairs(images, ids[None], torch.nn.functional.pad(tokens.mask, (0, 20))[None])
            torch.testing.assert_close(padded, plain, rtol=0, atol=1e-5)


def test_each_prompt_and_each_image_is_encoded_once(clip: ClipScorer) -> None:
    texts: list[int] = []
    images: list[int] = []
    with counted(clip.network.text_model, texts, "input_ids"), counted(clip.network.vision_model, images, "pixel_values"):
        clip.score(["cat", "dog", "cat", "cat"], IMAGES[:4])
        assert (texts, images) == ([2], [4])
        clip.matrix(["cat", "dog", "cat", "  CAT"], [*IMAGES[:3], IMAGES[0]])
        assert (texts[1:], images[1:]) == ([2], [3])


def test_a_matrix_encodes_each_prompt_once_however_many_batches_of_images_there_are(clip: ClipScorer) -> None:
    scaled = ClipScorer(clip.network, clip.prepare, scaled=True).eval()
    scaled.batch_size = 3
    seen: list[int] = []
    hook = counted(clip.network.text_model, seen, "input_ids")
    rewards = scaled.matrix([*SHORT, SHORT[0]], IMAGES)
    hook.remove()
    assert seen == [len(SHORT)]
    np.testing.assert_allclose(rewards[1], scaled.score(SHORT[1], IMAGES), rtol=1e-5)
    np.testing.assert_array_equal(rewards[0], rewards[-1])


def test_a_matrix_for_a_scorer_that_reads_no_prompt(aesthetic: AestheticScorer) -> None:
    np.testing.assert_allclose(aesthetic.matrix(["x"], IMAGES), [REFERENCE["aesthetic"]], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"Aesthetic does not read the prompt: all 3 rows would be the same; give matrix\(\) one prompt"):
        aesthetic.matrix(["a", "b", "c"], IMAGES)
    assert aesthetic.matrix([], IMAGES).shape == (0, 8)
    aesthetic.score("word " * 500, IMAGES[0])  # no warning: nothing of the prompt is lost
    with pytest.raises(PromptError, match="a prompt is a string, not NoneType"):
        aesthetic.score(None, IMAGES[0])  # type: ignore[call-overload]
    assert aesthetic.rank("", IMAGES[:2]).ranking == [2, 1]


def test_clip_and_aesthetic_share_the_image_features(clip: ClipScorer, aesthetic: AestheticScorer) -> None:
    scorers = [clip, aesthetic, ClipScorer(clip.network, clip.prepare, scaled=True)]
    prompts, images = ["cat", "dog", "cat", "sea"], [IMAGES[0], IMAGES[0], IMAGES[1], IMAGES[2]]
    alone = [scorer.score(prompts, images) for scorer in scorers]
    seen: list[int] = []
    with counted(clip.network.vision_model, seen, "pixel_values"):
        together = score_together(scorers, prompts, images)
    assert sum(seen) == 3
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    padded = replace(clip.prepare.transform, fit="pad")
    seen.clear()
    with counted(clip.network.vision_model, seen, "pixel_values"):
        found = score_together([clip, ClipScorer(clip.network, TwoTowerProcessor(padded, clip.prepare.tokenizer))], ["cat"], [IMAGES[2]])
    assert sum(seen) == 2  # other pixels, other features
    assert found[0] != found[1]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_gradients_reach_the_pixels_and_are_right(make: Callable[..., ClipScorer], fit: Any) -> None:
    scorer = make(settings=replace(OPENAI, fit=fit))
    pixels = torch.nn.functional.interpolate(seeded_pixels(2), (48, 80), mode="area").mul(0.5).add(0.25).requires_grad_()
    head = AestheticScorer.on(scorer, seeded.aesthetic_weights(7), "seeded head")
    for scores in (lambda x: scorer.rewards(["cat", "dog"], x), lambda x: 10 * head.rewards("", x)):
        (gradient,) = torch.autograd.grad(scores(pixels).sum(), pixels)
        assert gradient.isfinite().all()
        assert (gradient.abs().amax(dim=(1, 2, 3)) > 0).all()
        direction = gradient / gradient.norm()
        with torch.no_grad():
            up, down = (scores(pixels + sign * 0.02 * direction).double().sum() for sign in (1, -1))
        assert ((up - down) / 0.04).item() == pytest.approx(gradient.norm().item(), rel=0.02)


def seeded_pixels(num_images: int) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(image.resize((160, 96)))) for image in IMAGES[:num_images]]).permute(0, 3, 1, 2) / 255


def test_gradients_reach_both_towers_through_repeated_prompts(clip: ClipScorer) -> None:
    clip(clip.prepare(["cat", "dog", "cat"], [IMAGES[0], IMAGES[0], IMAGES[1]])).sum().backward()
    without = [name for name, parameter in clip.network.named_parameters() if parameter.grad is None]
    assert without == ["logit_scale"]
    scaled = ClipScorer(clip.network, clip.prepare, scaled=True)
    reward = scaled(scaled.prepare(["cat"], IMAGES[:1]))
    reward.sum().backward()
    assert clip.network.logit_scale.grad.item() == pytest.approx(reward.item(), rel=1e-5)  # d exp(s) c / ds = exp(s) c


def test_bfloat16_towers_and_float32_cosines(clip: ClipScorer, aesthetic: AestheticScorer) -> None:
    exact, beauty = clip.matrix(SHORT, IMAGES), aesthetic.score("", IMAGES)
    aesthetic.cast(torch.bfloat16)  # one network, so the CLIP scorer's too
    assert clip.network.visual_projection.weight.dtype == torch.bfloat16
    assert clip.network.logit_scale.dtype == torch.float32
    assert aesthetic.head.layers[0].weight.dtype == torch.float32
    found = clip.matrix(SHORT, IMAGES)
    assert found.dtype == np.float32
    assert not np.array_equal(found, found.astype(np.float16))  # not half numbers in a float's clothes
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.02)
    assert aesthetic.score("", IMAGES) == pytest.approx(beauty, abs=0.02)


def test_autocast_around_a_call_leaves_the_cosine_in_float32(clip: ClipScorer) -> None:
    exact = clip.matrix(SHORT, IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = clip.matrix(SHORT, IMAGES)
        assert clip.rewards("cat", torch.rand(1, 3, 64, 64)).dtype == torch.float32
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.02)


def test_a_reward_that_is_not_a_number_names_the_scorer(clip: ClipScorer) -> None:
    head = {name: torch.full_like(tensor, 1e30) for name, tensor in seeded.aesthetic_weights(7).items()}
    broken = AestheticScorer.on(clip, head, "huge head", name="Huge")
    with pytest.raises(RewardError, match="Huge gave a reward that is not a finite number"):
        score_together([clip, broken], ["cat"], IMAGES[:1])
    with pytest.raises(RewardError, match="Huge gave a reward"):
        broken.matrix([""], IMAGES[:1])


def test_long_prompts(make: Callable[..., ClipScorer]) -> None:
    scorer = make()
    with pytest.warns(LongPromptWarning, match="the model reads 77"):
        scorer.score("z" * 200, IMAGES[0])
    with pytest.raises(PromptError, match="the last 125 of 202 tokens"):
        make(long_prompts="error").score("z" * 200, IMAGES[0])


def test_preparation_travels(clip: ClipScorer) -> None:
    again = pickle.loads(pickle.dumps(clip.prepare))
    assert again == clip.prepare
    np.testing.assert_array_equal(again(["a cat"], IMAGES[:1]).ids, clip.prepare(["a cat"], IMAGES[:1]).ids)


def test_parts_of_two_conventions_are_refused(clip: ClipScorer) -> None:
    for wrong in (
        TwoTowerProcessor(clip.prepare.transform, PromptTokenizer()),
        TwoTowerProcessor(replace(clip.prepare.transform, convention="transformers"), clip.prepare.tokenizer),
    ):
        with pytest.raises(ValueError, match="takes a ClipTokenizer and an ImageTransform of the same convention"):
            ClipScorer(clip.network, wrong)


# --- loading and saving --------------------------------------------------------------------------------------------------------------


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert (one.settings, one.prepare, one.scale) == (other.settings, other.prepare, other.scale)
    weights, others = one.state_dict(), other.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert one.score("a cat", IMAGES[2]) == pytest.approx(other.score("a cat", IMAGES[2]), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        OPENAI,
        ClipSettings(),
        ClipSettings(scaled=True, max_tokens=20),
        ClipSettings(convention="openai", fit="pad"),
        ClipSettings(fit="stretch"),
    ],
)
def test_saving_and_loading_changes_nothing(make: Callable[..., ClipScorer], settings: ClipSettings, tmp_path: Path) -> None:
    scorer = make(settings=settings, activation="gelu", name="tiny")
    scorer.save_pretrained(tmp_path / "tiny")
    files = {file.name for file in (tmp_path / "tiny").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"}
    loaded = clip_from_folder(tmp_path / "tiny")
    assert loaded.name == "tiny"
    assert loaded.network.config.vision_config.hidden_act == "gelu"
    assert_same(loaded, scorer)
    loaded.save_pretrained(tmp_path / "again")
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "tiny" / name).read_bytes()


def test_an_aesthetic_scorer_is_saved_with_its_clip(aesthetic: AestheticScorer, tmp_path: Path) -> None:
    aesthetic.save_pretrained(tmp_path)
    assert_same(clip_from_folder(tmp_path), aesthetic)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.safetensors"):
        clip_from_folder(tmp_path)


def test_transformers_reads_what_is_saved(clip: ClipScorer, tmp_path: Path) -> None:
    from transformers import CLIPModel

    clip.save_pretrained(tmp_path)
    network = CLIPModel.from_pretrained(tmp_path).eval()
    tokens = clip.prepare.tokenizer(["a cat"])
    pixels = clip.prepare.transform(IMAGES[0])[None]
    with torch.inference_mode():
        found = network(input_ids=tokens.ids, attention_mask=tokens.mask, pixel_values=pixels).logits_per_image
    assert found.item() == pytest.approx(clip.score("a cat", IMAGES[0]) * clip.scale, rel=1e-5)


@pytest.fixture
def plain_folder(clip: ClipScorer, tokenizer: Path, tmp_path: Path) -> Path:
    """As the hub has them: a config without our key, a pickle with buffers, an old preprocessor config, vocab.json and merges.txt."""
    clip.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tokenizer / name).read_bytes())
    state = clip.network.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, tmp_path / "pytorch_model.bin"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_reward"]
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = {"crop_size": 64, "size": 64, "resample": 3, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 1]}))
    return tmp_path


def test_a_folder_of_transformers(plain_folder: Path, clip: ClipScorer) -> None:
    found = clip_from_folder(plain_folder, name="plain")
    assert isinstance(found, ClipScorer)
    assert found.settings == ClipSettings()
    assert (found.name, found.scaled, found.prepare.transform.mean, found.prepare.transform.std) == (
        "plain",
        False,
        (0.5, 0.4, 0.3),
        (0.2, 0.2, 1.0),
    )
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    half = clip_from_folder(plain_folder, dtype=torch.float16)
    assert {name for name, p in half.network.named_parameters() if p.dtype != torch.float16} == {"logit_scale"}
    pick = clip_from_folder(
        plain_folder, ClipSettings(scaled=True, convention="openai"), options=ImageOptions(orient=True), long_prompts="error"
    )
    assert isinstance(pick.prepare.tokenizer, ClipTokenizer)
    assert (pick.prepare.tokenizer.long_prompts, pick.prepare.transform.options.orient) == ("error", True)
    pick.prepare.transform = clip.prepare.transform  # type: ignore[misc]
    assert pick.score("a cat", IMAGES) == pytest.approx([s * clip.scale for s in clip.score("a cat", IMAGES)], abs=0.5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "siglip"}, r"config\.json is of model_type 'siglip', and not 'clip'"),
        ("config.json", {"image_reward": {"version": 2}}, "image_reward has version 2; this release of image-reward reads version 1"),
        ("config.json", {"image_reward": 3}, "image_reward has version None"),
        ("config.json", {"image_reward": {"version": 1, "scaled": True}}, "ClipSettings lacks 'architecture'"),
        ("config.json", {"text_config.eos_token_id": 7}, "reads prompts at token 7, but its tokenizer ends them with 49407"),
        ("config.json", {"text_config.num_hidden_layers": 1}, r"text_model\.encoder\.layers\.1\.\S+ is unexpected"),
        ("config.json", {"vision_config.image_size": 32}, "size is 64; .* shorter side to the network's 32 px"),
        (
            "config.json",
            {"image_reward": {**asdict(ClipSettings()), "version": 1, "max_tokens": 2}},
            r"config\.json: max_tokens .* at least 3",
        ),
        ("config.json", {"vision_config": 5}, r"config\.json does not describe a CLIP that can be built: .*'vision_config'"),
        ("config.json", {"vision_config.patch_size": 0}, r"config\.json does not describe a CLIP that can be built: "),
        ("config.json", {"text_config.hidden_act": "other"}, r"config\.json does not describe a CLIP that can be built: .*'other'"),
        ("preprocessor_config.json", {"rescale_factor": None}, "rescale_factor is None"),
        ("preprocessor_config.json", {"resample": 2}, r"preprocessor_config\.json: resample is 2; .* with the bicubic filter \(3\)"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}, "size is {'height': 64, 'width': 64}"),
        ("preprocessor_config.json", {"crop_size": {"height": 64, "width": 32}}, "crop_size is"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop is False"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ("preprocessor_config.json", {"image_std": [0.2, 0.2, 0]}, "std must be finite and std positive"),
        ("preprocessor_config.json", {"image_mean": [0.2, 0.2]}, "mean of TransformConfig must be a list of 3 numbers"),
    ],
)
def test_a_folder_that_asks_for_something_else(plain_folder: Path, file: str, change: dict[str, Any], message: str) -> None:
    values = json.loads((plain_folder / file).read_text())
    for key, value in change.items():
        *outer, last = key.split(".")
        target = values[outer[0]] if outer else values
        target[last] = value
    (plain_folder / file).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        clip_from_folder(plain_folder)


@pytest.mark.parametrize("key", ["architecture", "convention", "fit"])
def test_settings_of_another_release_are_refused(clip: ClipScorer, key: str, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["image_reward"][key] = "other"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"{key} of ClipSettings must be one of '.*', not 'other'"):
        clip_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"lacks config\.json; download it again"),
        ("preprocessor_config.json", r"lacks preprocessor_config\.json; download it again"),
        ("pytorch_model.bin", r"lacks model\.safetensors and pytorch_model\.bin"),
        ("merges.txt", r"has no tokenizer: it lacks tokenizer\.json, and vocab\.json with merges\.txt"),
    ],
)
def test_a_folder_that_lacks_a_file(plain_folder: Path, name: str, message: str) -> None:
    (plain_folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        clip_from_folder(plain_folder)


def test_damaged_texts(plain_folder: Path) -> None:
    for text, message in (("{", r"config\.json is not JSON"), ("[1]", r"is not a JSON object but \[1\]")):
        (plain_folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            clip_from_folder(plain_folder)


def test_a_file_of_openclip(tensors: dict[str, Tensor], make: Callable[..., ClipScorer], tmp_path: Path) -> None:
    """As HPSv2's: half precision, under a key, with what distributed training puts before the names."""
    half = {f"module.{name}": tensor.half() for name, tensor in tensors.items()}
    torch.save({"state_dict": half, "epoch": 3}, tmp_path / "HPS.pt")
    read, _ = read_checkpoint(tmp_path / "HPS.pt")
    settings = ClipSettings(convention="openai", fit="pad")
    found = make(read, settings, activation="gelu", name="HPSv2")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert found.matrix(SHORT, IMAGES) == pytest.approx(make(settings=settings, activation="gelu").matrix(SHORT, IMAGES), abs=2e-3)
    assert (found.name, found.prepare.transform.fit) == ("HPSv2", "pad")


def test_wrong_uses_of_tensors(make: Callable[..., ClipScorer], clip: ClipScorer, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="seeded weights reads 77 tokens, and not 78; lower max_tokens"):
        make(settings=ClipSettings(max_tokens=78))
    with pytest.raises(CheckpointError, match="seeded weights knows 40000 tokens, but its tokenizer has 49408: it belongs to another"):
        make(tensors | {"token_embedding.weight": tensors["token_embedding.weight"][:40000]})
    with pytest.raises(CheckpointError, match=r"seeded weights .* unknown are logit_bias"):
        make(tensors | {"logit_bias": torch.tensor(0.0)})
    with pytest.raises(ValueError, match="Aesthetic is a head on a CLIP"):
        make(settings=ClipSettings("Aesthetic"))
    with pytest.raises(CheckpointError, match=r"l14\.pth does not fit the network: layers\.0\.weight has shape \(1024, 768\)"):
        AestheticScorer.on(clip, seeded.aesthetic_weights(7, width=768), "l14.pth")


def test_openais_own_files_are_programs(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself is
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-L-14.pt")
    with pytest.raises(CheckpointError, match=r"ViT-L-14\.pt is a TorchScript archive.*use the same model as a folder from the hub"):
        read_checkpoint(tmp_path / "ViT-L-14.pt")


def test_importing_it_does_not_load_transformers() -> None:
    code = "import sys, image_reward.scorers.clip; sys.exit('transformers' in sys.modules or 'ftfy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
