"""What public programs do with image-reward 1.5, each in lines of its own that make the same calls, on a small checkpoint."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import sys
import types
import unittest.mock
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import ImageReward as RM  # noqa: N814 - the name that most programs give it
import seeded
from image_reward import RewardError

CAT, DOGS = "cat", ["cat", "a photo of a dog", "two red birds"]
WIDTH = seeded.TINY.network.text_width  # 768 in the released network
MEAN, STD = 0.16717362830052426, 1.0333394966054072


@pytest.fixture(autouse=True)
def _modules_as_they_were() -> Iterator[None]:
    """Some programs take ImageReward out of ``sys.modules`` and put one of their own there."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "ImageReward"}
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "ImageReward"]:
        del sys.modules[name]
    sys.modules.update(before)


def by_parts(model: Any, prompts: list[str], pixels: torch.Tensor, length: int = 35) -> torch.Tensor:
    """The lines of 1.5's ``score``, which programs have copied."""
    text = model.blip.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    embeds = model.blip.visual_encoder(pixels)
    atts = torch.ones(embeds.size()[:-1], dtype=torch.long)
    output = model.blip.text_encoder(
        text.input_ids,
        attention_mask=text.attention_mask,
        encoder_hidden_states=embeds,
        encoder_attention_mask=atts,
        return_dict=True,
    )
    rewards = model.mlp(output.last_hidden_state[:, 0, :].float())
    return (rewards - MEAN) / STD


def stacked(model: Any, images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([model.preprocess(image) for image in images])


# --- programs that score: each gives the rewards of three images with CAT ------------------------------------------------------------

SCORES: dict[str, Callable[[Any], Any]] = {}


def scores(program: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def add(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        SCORES[program] = function
        return function

    return add


@scores("THUDM example.py and test.py: load by name, inference_rank and score of paths")
def example(released: Any) -> Any:
    paths = [str(released.root / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, released.images(), strict=True):
        image.save(path)
    model = RM.load(name="ImageReward-v1.0", device="cpu", download_root=str(released.root))
    with torch.no_grad():
        ranking, rewards = model.inference_rank(CAT, paths)
        assert rewards[ranking.index(1)] == max(rewards)
        return [model.score(CAT, path) for path in paths]


@scores("sdwebui, ComfyUI, cog: load a path, score PIL images")
def comfy(released: Any) -> Any:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    return [0.0 + model.score(CAT, [image]) for image in released.images()]


@scores("flow_grpo: load().eval().to(dtype), one image at a time")
def flow_grpo(released: Any) -> Any:
    model = RM.load(released.checkpoint, device="cpu", med_config=released.med_config).eval().to(dtype=torch.float32)
    model.requires_grad_(False)
    return [model.inference_rank(CAT, [image])[1] for image in released.images()]


@scores("GRPO scorers: N x N, and the diagonal")
def diagonal(released: Any) -> Any:
    _, rewards = RM.load("ImageReward-v1.0").inference_rank([CAT] * 3, released.images())
    return torch.diagonal(torch.tensor(rewards).reshape(3, 3)).tolist()


@scores("ReNO, t2v-turbo, VisionReward: score_gard and the parts, with gradients")
def gradients(released: Any) -> Any:
    model = RM.load(released.checkpoint, "cpu", str(released.root), released.med_config)
    text = model.blip.tokenizer([CAT] * 3, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    pixels = stacked(model, released.images()).requires_grad_()
    rewards = model.score_gard(prompt_ids=text.input_ids, prompt_attention_mask=text.attention_mask, image=pixels)
    rewards.sum().backward()
    assert pixels.grad.abs().sum() > 0
    torch.testing.assert_close(by_parts(model, [CAT] * 3, pixels), rewards, rtol=0, atol=1e-5)
    return rewards[:, 0].tolist()


@scores("DPOK: from ImageReward import ImageReward, model.device")
def dpok(released: Any) -> Any:
    from ImageReward import ImageReward

    model = RM.load(released.checkpoint, med_config=released.med_config)
    assert isinstance(model, ImageReward)
    return [by_parts(model, [CAT], model.preprocess(image).unsqueeze(0).to(model.device)).item() for image in released.images()]


@scores("rewards of 512 tokens: tokenizer.model_max_length")
def long_prompts(released: Any) -> Any:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    model.blip.tokenizer.model_max_length = 512
    text = model.blip.tokenizer([CAT] * 3, padding="max_length", truncation=True, return_tensors="pt")
    assert text.input_ids.shape == (3, 512)
    return model.score_gard(text.input_ids, text.attention_mask, stacked(model, released.images()))[:, 0].tolist()


@scores("video rewards: one prompt, many frames, and one image with many prompts")
def video(released: Any) -> Any:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    text = model.blip.tokenizer(CAT, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    frames = stacked(model, released.images())
    rewards = model.score_gard(text.input_ids, text.attention_mask, frames)
    torch.testing.assert_close(by_parts(model, [CAT], frames), rewards, rtol=0, atol=1e-5)
    one_image = by_parts(model, [CAT, *DOGS[1:]], frames[:1])
    torch.testing.assert_close(one_image[:1], rewards[:1], rtol=0, atol=1e-5)
    return rewards[:, 0].tolist()


@scores("wrappers that move the model: model.device = x")
def moved(released: Any) -> Any:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    model.to(torch.device("cpu"))
    model.device = torch.device("cpu")
    return model.score(CAT, released.images())


@scores("patches for newer libraries: init_tokenizer and BertModel of the submodules")
def patches(released: Any) -> Any:
    import ImageReward.models.BLIP.blip as blip
    import ImageReward.models.BLIP.blip_pretrain as blip_pretrain
    import ImageReward.models.BLIP.med as med

    def init_tokenizer() -> Any:
        raise AssertionError("the tokenizer is in the package: none is fetched")

    blip.init_tokenizer = blip_pretrain.init_tokenizer = init_tokenizer
    with unittest.mock.patch.object(med.BertModel, "all_tied_weights_keys", {}, create=True):
        for name in ("BertModel", "BertLMHeadModel", "BertEncoder", "BertLayer", "BertAttention"):
            kind = getattr(med, name, None)
            if kind is not None:
                kind.tie_weights = lambda self: None  # noqa: ARG005
                kind.get_head_mask = lambda self, mask, num_layers: [mask] * num_layers  # noqa: ARG005
        model = RM.load(released.checkpoint, med_config=released.med_config)
        return model.score(CAT, released.images())


@scores("offline evaluator: mock.patch.object of init_tokenizer around the constructor, strict load")
def mocked(released: Any) -> Any:
    from ImageReward.ImageReward import ImageReward
    from ImageReward.models.BLIP import blip_pretrain

    with unittest.mock.patch.object(blip_pretrain, "init_tokenizer", return_value=None):
        model = ImageReward(med_config=released.med_config, device="cpu")
    model.load_state_dict(torch.load(released.checkpoint, map_location="cpu"), strict=True)
    model = model.eval().to("cpu")
    return [model.score(CAT, image) for image in released.images()]


@scores("HPSv2-style evaluators, threestudio, servers: the constructor and load_state_dict(strict=False)")
def constructed(released: Any) -> Any:
    model = RM.ImageReward(device="cpu", med_config=released.med_config).to("cpu")
    model.load_state_dict(torch.load(released.checkpoint, map_location="cpu"), strict=False)
    model.eval()
    return model.score(CAT, released.images())


@scores("IterComp: the constructor with a 'module.' checkpoint, and no eval()")
def itercomp(released: Any) -> Any:
    trained = {f"module.{name}": tensor for name, tensor in torch.load(released.checkpoint).items()}
    model = RM.ImageReward(device="cpu", med_config=released.med_config).to("cpu")
    model.load_state_dict({key.split("module.")[1]: value for key, value in trained.items()}, strict=False)
    return model.score(CAT, released.images())


@scores("silent_load: ImageReward_download of both files, _MODELS, available_models")
def silent_load(released: Any) -> Any:
    from ImageReward.ImageReward import ImageReward
    from ImageReward.utils import _MODELS, ImageReward_download, available_models

    assert available_models() == list(_MODELS)
    root = str(released.root.parent / "downloads")
    path = ImageReward_download(_MODELS["ImageReward-v1.0"], root)
    assert Path(path) == Path(root) / "ImageReward.pt"
    med_config = ImageReward_download("https://huggingface.co/THUDM/ImageReward/blob/main/med_config.json", root)
    assert json.loads(Path(med_config).read_text())["hidden_size"] == 768
    model = ImageReward(device="cpu", med_config=released.med_config)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=False)
    return model.eval().score(CAT, released.images())


@scores("subclasses of ImageReward")
def subclassed(released: Any) -> Any:
    class Reward(RM.ImageReward):
        def __init__(self, med_config: str, device: str) -> None:
            super().__init__(med_config, device)
            self.temperature = 1.0

    model = Reward(released.med_config, "cpu")
    model.load_state_dict(torch.load(released.checkpoint))
    return model.eval().score(CAT, released.images())


@scores("builders of their own ImageReward: BLIP_Pretrain, _transform and MLP, loaded as parts of their class")
def built(released: Any) -> Any:
    from ImageReward.ImageReward import MLP, BLIP_Pretrain, _transform

    class Reward(nn.Module):
        def __init__(self, med_config: str) -> None:
            super().__init__()
            self.blip = BLIP_Pretrain(image_size=224, vit="large", med_config=med_config)
            self.preprocess = _transform(224)
            self.mlp = MLP(WIDTH)

    model = Reward(released.med_config)
    model.load_state_dict(torch.load(released.checkpoint), strict=True)  # with the original's position_ids
    model.eval()
    return by_parts(model, [CAT] * 3, stacked(model, released.images()))[:, 0].tolist()


@scores("builders with an MLP of their own: from ImageReward import BLIP_Pretrain, ImageReward_download")
def built_with_own_head(released: Any) -> Any:
    from ImageReward import BLIP_Pretrain, ImageReward_download

    class Head(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            widths = [width, 1024, 128, 64, 16, 1]
            linears = [nn.Linear(a, b) for a, b in pairwise(widths)]
            dropouts = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
            self.layers = nn.Sequential(*(x for pair in zip(linears, dropouts, strict=False) for x in pair), *linears[3:])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    class Reward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = ImageReward_download("https://huggingface.co/THUDM/ImageReward/blob/main/ImageReward.pt", str(released.root))
            self.blip = BLIP_Pretrain(image_size=224, vit="large", med_config=released.med_config)
            self.mlp = Head(WIDTH)
            self.load_state_dict(torch.load(weights, map_location="cpu"), strict=False)
            self.eval()

    model = Reward()
    pixels = torch.stack([released.scorer.prepare.transform(image) for image in released.images()])
    return by_parts(model, [CAT] * 3, pixels)[:, 0].tolist()


@scores("towers built one by one: VisionTransformer, BertConfig and BertModel, a checkpoint without 'blip.'")
def towers(released: Any) -> Any:
    from ImageReward.ImageReward import MLP, _transform
    from ImageReward.models.BLIP import init_tokenizer
    from ImageReward.models.BLIP.med import BertConfig, BertModel
    from ImageReward.models.BLIP.vit import VisionTransformer

    sizes = seeded.TINY.network

    class Reward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual_encoder = VisionTransformer(
                img_size=224,
                patch_size=16,
                embed_dim=sizes.vision_width,
                depth=sizes.vision_layers,
                num_heads=sizes.vision_heads,
                use_grad_checkpointing=False,
                ckpt_layer=0,
                drop_path_rate=0.1,
            )
            config = BertConfig.from_json_file(released.med_config)
            config.encoder_width = sizes.vision_width
            self.text_encoder = BertModel(config=config, add_pooling_layer=False)
            self.mlp = MLP(WIDTH)

    model = Reward()
    state = {name.replace("blip.", ""): tensor for name, tensor in torch.load(released.checkpoint).items() if "_proj." not in name}
    model.load_state_dict(state)
    model.eval()
    model.blip = types.SimpleNamespace(tokenizer=init_tokenizer(), visual_encoder=model.visual_encoder, text_encoder=model.text_encoder)
    model.preprocess = _transform(224)
    return by_parts(model, [CAT] * 3, stacked(model, released.images()))[:, 0].tolist()


@scores("from ImageReward import utils; utils.load")
def by_utils(released: Any) -> Any:
    from ImageReward import utils

    return utils.load(released.checkpoint, med_config=released.med_config).score(CAT, released.images())


@scores("from ImageReward import RM, and from ImageReward import load")
def by_other_names(released: Any) -> Any:
    from ImageReward import RM as again  # noqa: N811
    from ImageReward import load

    assert again.load is load
    return load(released.checkpoint, med_config=released.med_config).score(CAT, released.images())


@scores("loaders that pass by __init__: a bare package, then ImageReward.utils")
def bare_package(released: Any) -> Any:
    spec = importlib.util.find_spec("ImageReward")
    for name in [name for name in sys.modules if name == "ImageReward" or name.startswith("ImageReward.")]:
        del sys.modules[name]
    package = types.ModuleType("ImageReward")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["ImageReward"] = package
    utils = importlib.import_module("ImageReward.utils")
    assert "ImageReward.ReFL" not in sys.modules
    return utils.load(released.checkpoint, med_config=released.med_config).score(CAT, released.images())


@scores("loaders by file: spec_from_file_location of utils.py beside ImageReward.py")
def by_file(released: Any) -> Any:
    folder = Path(RM.__file__).parent
    assert (folder / "ImageReward.py").is_file()
    spec = importlib.util.spec_from_file_location("reward_utils", folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    return utils.load(released.checkpoint, med_config=released.med_config).score(CAT, released.images())


@scores("PEFT: hidden sizes, and adapters in the place of layers")
def peft(released: Any) -> Any:
    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.down, self.up = base, nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.up(self.down(x))

    model = RM.load(released.checkpoint, med_config=released.med_config)
    vision, text = model.blip.visual_encoder, model.blip.text_encoder
    assert vision.embed_dim == vision.num_features == seeded.TINY.network.vision_width
    assert (text.config.hidden_size, text.config.num_hidden_layers, text.config.encoder_width) == (WIDTH, 2, vision.embed_dim)
    before = model.score(CAT, released.images())
    layer = text.encoder.layer[1]
    layer.attention.self.query = Adapter(layer.attention.self.query)
    vision.blocks[0].attn.qkv = Adapter(vision.blocks[0].attn.qkv)
    assert model.score(CAT, released.images()) == pytest.approx(before, abs=1e-5)
    nn.init.ones_(layer.attention.self.query.up.weight)
    changed = model.score(CAT, released.images())
    assert changed != pytest.approx(before, abs=1e-4)
    pixels = stacked(model, released.images())
    assert by_parts(model, [CAT] * 3, pixels)[:, 0].tolist() == pytest.approx(changed, abs=1e-5)
    return before


@scores("preprocess.transforms taken apart")
def steps(released: Any) -> Any:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    pixels = []
    for image in released.images():
        for step in model.preprocess.transforms:
            image = step(image)
        pixels.append(image)
    torch.testing.assert_close(torch.stack(pixels), stacked(model, released.images()), rtol=0, atol=1e-6)
    normalize = model.preprocess.transforms[-1]
    assert normalize.mean == (0.48145466, 0.4578275, 0.40821073)
    assert model.preprocess.transforms[0].size == model.preprocess.transforms[1].size == 224
    tensor = torch.rand(2, 3, 300, 260)
    for step in [*model.preprocess.transforms[:2], normalize]:
        tensor = step(tensor)
    assert tensor.shape == (2, 3, 224, 224)
    return by_parts(model, [CAT] * 3, torch.stack(pixels))[:, 0].tolist()


@scores("a trainer's checkpoint of a class around the model, and copies of the model")
def trainers_checkpoint(released: Any) -> Any:
    class Ranker(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.blip, self.mlp = model.blip, model.mlp

    ranker = Ranker(RM.load(released.checkpoint, med_config=released.med_config))
    for parameter in ranker.parameters():
        parameter.data.zero_()
    ranker.load_state_dict(torch.load(released.checkpoint), strict=True)  # with the original's position_ids
    model = RM.load(released.checkpoint, med_config=released.med_config)
    model.blip, model.mlp = ranker.blip, ranker.mlp
    return copy.deepcopy(model).score(CAT, released.images())


@pytest.mark.parametrize("program", SCORES)
def test_programs_that_score(program: str, released: Any) -> None:
    assert SCORES[program](released) == pytest.approx(released.rewards(CAT), abs=2e-5)


# --- programs that train ---------------------------------------------------------------------------------------------------------------


def test_a_fine_tuner_freezes_by_name_and_by_block(released: Any) -> None:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("mlp"))
    for block in (*model.blip.visual_encoder.blocks[-1:], *model.blip.text_encoder.encoder.layer[-1:]):
        block.requires_grad_(True)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "blip.text_encoder.encoder.layer.0.attention.self.query.weight" in fixed
    assert "blip.text_encoder.encoder.layer.1.attention.self.query.weight" not in fixed
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    loss = -F.logsigmoid(by_parts(model, [CAT], stacked(model, released.images()[:1])))
    loss.backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in fixed)
    assert not torch.equal(after["mlp.layers.0.weight"], before["mlp.layers.0.weight"])
    path = released.root / "trained.pt"
    torch.save(model.state_dict(), path)
    again = RM.load(str(path), med_config=released.med_config)
    assert again.score(CAT, released.images()) == pytest.approx(model.eval().score(CAT, released.images()), abs=1e-5)


def test_the_original_trainers_class_trains_from_random_weights(released: Any) -> None:
    """1.5's own training: BLIP's checkpoint into the towers, a new head, pairs of images."""
    from ImageReward.models.BLIP.blip import load_checkpoint
    from ImageReward.models.BLIP.blip_pretrain import BLIP_Pretrain

    torch.manual_seed(0)
    blip, outcome = load_checkpoint(BLIP_Pretrain(released.med_config, 224, "large"), str(released.root / "model_large.pth"))
    assert outcome.missing_keys == outcome.unexpected_keys == []
    torch.testing.assert_close(blip.state_dict()["vision_proj.weight"], released.weights["blip.vision_proj.weight"])
    model = RM.ImageReward(released.med_config)
    model.blip = blip
    with pytest.raises(RewardError, match=r"10 tensors of the model were never loaded, such as mlp\.layers\.0\.weight: they are random"):
        model.score(CAT, released.images())
    model.train()
    text = model.blip.tokenizer([CAT] * 2, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    pixels = stacked(model, released.images()[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(2):
        better, worse = model.score_gard(text.input_ids, text.attention_mask, pixels)
        optimizer.zero_grad()
        (-F.logsigmoid(better - worse)).sum().backward()
        optimizer.step()
    assert len(model.eval().score(CAT, released.images())) == 3


# --- weights that were never loaded ----------------------------------------------------------------------------------------------------


def test_weights_that_were_never_loaded_give_no_score(released: Any) -> None:
    model = RM.ImageReward(device="cpu", med_config=released.med_config).eval()
    images = released.images()
    text = model.blip.tokenizer([CAT] * 3, return_tensors="pt")
    pixels = stacked(model, images)
    ways: list[Callable[[Any], Any]] = [
        lambda m: m.score(CAT, images[0]),
        lambda m: m.inference_rank(CAT, images),
        lambda m: m.rank(CAT, images),
        lambda m: m.matrix([CAT], images),
        lambda m: m.compare(CAT, *images[:2]),
        lambda m: m.rewards(CAT, torch.rand(1, 3, 64, 64)),
        lambda m: m.score_gard(text.input_ids, text.attention_mask, pixels),
    ]
    for unloaded in (model, copy.deepcopy(model), model.to(torch.float64).float(), model.bfloat16()):
        for way in ways:
            with pytest.raises(RewardError, match=r"tensors of the model were never loaded, such as blip\.visual_encoder\.cls_token"):
                way(unloaded)


def test_what_strict_false_leaves_random_is_a_warning_and_then_an_error(released: Any) -> None:
    weights = torch.load(released.checkpoint)
    model = RM.ImageReward(released.med_config).eval()
    wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
    with pytest.warns(UserWarning) as caught:  # noqa: PT030 - there are two
        model.load_state_dict(wrapped, strict=False)
    messages = sorted(str(warning.message).split(": give")[0] for warning in caught)
    assert [message.split(" random, such as ")[0] for message in messages] == [
        "load_state_dict() left 10 tensors of the MLP",
        f"load_state_dict() left {sum(name.startswith('blip') for name in released.weights)} tensors of the BLIP_Pretrain",
    ]
    assert all(message.endswith("the state dict has module.blip.visual_encoder.cls_token") for message in messages)
    del weights["mlp.layers.7.bias"]
    with pytest.warns(UserWarning, match=r"left 1 tensors of the MLP random, such as layers\.7\.bias"):
        model.load_state_dict(weights, strict=False)
    with pytest.raises(RewardError, match=r"1 tensors of the model were never loaded, such as mlp\.layers\.7\.bias"):
        model.score(CAT, released.images())
    model.mlp.load_state_dict({name.removeprefix("mlp."): w for name, w in released.weights.items() if name.startswith("mlp.")})
    assert model.score(CAT, released.images()) == pytest.approx(released.rewards(CAT), abs=1e-5)


def test_weights_may_be_put_in_place_by_hand(released: Any) -> None:
    model = RM.ImageReward(released.med_config).eval()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(released.weights[name])
    assert model.score(CAT, released.images()) == pytest.approx(released.rewards(CAT), abs=1e-5)
    model = RM.ImageReward(released.med_config).eval()
    model.load_state_dict(model.state_dict())  # who wants a random score says so
    assert np.isfinite(model.score(CAT, released.images())).all()


def test_a_load_that_fits_nothing_of_a_loaded_model_is_a_warning(released: Any) -> None:
    model = RM.load(released.checkpoint, med_config=released.med_config)
    with pytest.warns(UserWarning, match=r"changed nothing: it was given reward\.mlp\.layers\.0\.weight and the model has"):
        model.load_state_dict({"reward.mlp.layers.0.weight": torch.zeros(1)}, strict=False)


def test_a_med_config_that_is_not_this_networks_is_refused(released: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RM.ImageReward(med_config=str(tmp_path / "nowhere.json"))
    for changed, message in (({"hidden_act": "relu"}, "hidden_act = 'relu'"), ({"hidden_size": "48"}, "'48', which is not a whole number")):
        path = tmp_path / "med_config.json"
        path.write_text(json.dumps(json.loads(Path(released.med_config).read_text()) | changed))
        with pytest.raises(ValueError, match=message):
            RM.ImageReward(med_config=str(path))
    with pytest.raises(ValueError, match="vit must be one of base, large, not 'huge'"):
        RM.BLIP_Pretrain(released.med_config, vit="huge")


# --- the scores ------------------------------------------------------------------------------------------------------------------------


def clip_ids(released: Any, prompts: list[str]) -> torch.Tensor:
    """What ``clip.tokenize`` gives: 77 ids, zeros after the end."""
    tokens = released.clip.prepare.tokenizer(prompts)
    return F.pad(tokens.ids.masked_fill(~tokens.mask, 0), (0, 77 - tokens.ids.shape[1])).int()


def test_evaluators_call_clip_and_the_head_themselves(released: Any) -> None:
    images = released.images()
    clip, aesthetic = RM.load_score("CLIP", device="cpu"), RM.load_score("Aesthetic", device="cpu")
    with torch.no_grad():
        texts = F.normalize(clip.clip_model.encode_text(clip_ids(released, DOGS))).float()
        features = F.normalize(clip.clip_model.encode_image(torch.stack([clip.preprocess(i) for i in images]))).float()
        assert (texts * features).sum(dim=1).tolist() == pytest.approx(released.clip.score(DOGS, images), abs=1e-5)
        assert [clip.score(p, i) for p, i in zip(DOGS, images, strict=True)] == pytest.approx(released.clip.score(DOGS, images), abs=1e-5)
        per_image, per_prompt = clip.clip_model(torch.stack([clip.preprocess(i) for i in images]), clip_ids(released, DOGS))
        assert torch.equal(per_image, per_prompt.T)
        torch.testing.assert_close(per_image, clip.clip_model.logit_scale.exp() * features @ texts.T, rtol=1e-4, atol=1e-3)
        features = F.normalize(aesthetic.clip_model.encode_image(torch.stack([aesthetic.preprocess(i) for i in images]))).float()
        expected = aesthetic.mlp(features).squeeze(dim=-1).tolist()
    assert aesthetic.score("whatever", images) == pytest.approx(expected, abs=1e-5)
    assert aesthetic.score(None, images) == pytest.approx(expected, abs=1e-5)
    assert aesthetic.score(None, images[0]) == pytest.approx(expected[0], abs=1e-5)
    assert aesthetic.inference_rank(None, images)[1] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="a prompt is a string, not NoneType"):
        clip.score(None, images)
    aesthetic.mlp = nn.Sequential(nn.Linear(32, 1))
    with torch.no_grad():
        assert aesthetic.score(None, images) == pytest.approx(aesthetic.mlp(features)[:, 0].tolist(), abs=1e-5)
    with pytest.raises(AttributeError, match="clip_model"):
        clip.clip_model = nn.Identity()


def test_scores_are_built_as_1_5_builds_them(released: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from image_reward.scorers import MODELS
    from ImageReward.models import AestheticScore, CLIPScore
    from ImageReward.models.AestheticScore import MLP
    from ImageReward.utils import _SCORES, _download

    images = released.images()
    assert isinstance(RM.load_score("CLIP"), CLIPScore)
    assert CLIPScore(download_root=None, device="cpu").score(CAT, images) == pytest.approx(released.clip.score(CAT, images), abs=1e-5)
    score = AestheticScore(download_root=str(released.root), device="cpu").to("cpu")
    assert isinstance(score.mlp, MLP)
    with pytest.raises(RewardError, match=r"10 tensors of the score were never loaded, such as head\.layers\.0\.weight"):
        score.score(None, images)
    assert list(_SCORES) == RM.available_scores()
    monkeypatch.setitem(_SCORES, "Aesthetic", MODELS["Aesthetic"].files["head"].url)
    path = _download(url=_SCORES["Aesthetic"], root=str(released.root))
    assert Path(path) == released.root / "head%2Bnew.pth"  # as 1.5 calls it
    assert _download(_SCORES["Aesthetic"], str(released.root)) == path
    score.mlp.load_state_dict(torch.load(path, map_location="cpu"), strict=False)
    assert score.score(None, images) == pytest.approx(RM.load_score("Aesthetic").score("", images), abs=1e-5)


def test_the_blip_score_and_its_parts(released: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from image_reward.scorers import BlipScorer
    from image_reward.scorers import blip as blip_scorers

    network = released.scorer.network.config
    monkeypatch.setattr(blip_scorers, "BlipConfig", lambda: network)
    images = released.images()
    expected = BlipScorer.from_tensors(released.weights, "seeded weights", network).score(CAT, images)
    score = RM.load_score("BLIP", device="cpu")
    assert isinstance(score, RM.BLIPScore)
    assert score.score(CAT, images) == pytest.approx(expected, abs=1e-5)
    text = score.blip.tokenizer(CAT, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        prompt = score.blip.text_encoder(text.input_ids, attention_mask=text.attention_mask, mode="text").last_hidden_state[:, 0, :]
        embeds = score.blip.visual_encoder(torch.stack([score.preprocess(image) for image in images]))[:, 0, :]
        a, b = F.normalize(score.blip.text_proj(prompt)), F.normalize(score.blip.vision_proj(embeds))
    assert (a * b).sum(dim=1).tolist() == pytest.approx(expected, abs=1e-5)
    assert score.score(CAT, images) == pytest.approx(expected, abs=1e-5)  # with the tokenizer that was asked for
    own = RM.BLIPScore(med_config=released.med_config, device="cpu").to("cpu")
    with pytest.raises(RewardError, match="never loaded"):
        own.score(CAT, images)
    own.blip.load_state_dict(torch.load(released.root / "model_large.pth")["model"], strict=False)
    assert own.eval().score(CAT, images) == pytest.approx(expected, abs=1e-5)


def test_the_class_and_the_module_share_a_name() -> None:
    module = importlib.import_module("ImageReward.ImageReward")
    assert module.ImageReward is RM.ImageReward
    assert isinstance(RM.ImageReward, type)
    assert RM.models.BLIP.med.BertModel is importlib.import_module("ImageReward.models.BLIP.blip_pretrain").BertModel
    from ImageReward.models.BLIP import BertConfig

    assert BertConfig is RM.models.BLIP.med.BertConfig
    with pytest.raises(ImportError, match="BertLMHeadModel"):
        from ImageReward.models.BLIP.med import BertLMHeadModel  # noqa: F401
