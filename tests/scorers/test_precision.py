from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

import image_reward as ir
from image_reward.comparisons import shapes
from image_reward.errors import RewardError
from image_reward.scorers.precision import agreement, is_quantized

NAME = "ImageReward-mini"


@pytest.fixture(scope="module")
def mini() -> Any:
    return ir.load(NAME, "cpu")


@pytest.fixture(scope="module")
def int8() -> Any:
    pytest.importorskip("torchao")
    return ir.load(NAME, "cpu", "int8")


def test_int8_ranks_drawn_shapes_nearly_as_float32(mini: Any, int8: Any) -> None:
    drawn = shapes.comparisons(12, seed=5, split="test")
    rewards = [scorer.matrix([c.prompt for c in drawn], [image for c in drawn for image in c.images]) for scorer in (mini, int8)]
    found = agreement(*rewards)
    assert found.num_pairs > 5000
    assert 0 < found.largest_difference < 0.2  # not the same numbers: something was rounded
    assert found.share_flipped < 0.02
    assert found.spearman is not None
    assert found.spearman > 0.99
    assert found.largest_flipped is not None
    assert found.largest_flipped <= 2 * found.largest_difference


def test_int8_does_not_depend_on_the_batch(int8: Any) -> None:
    drawn = shapes.comparisons(1, seed=6)[0]
    together = int8.score(drawn.prompt, list(drawn.images))
    assert together == pytest.approx([int8.score(drawn.prompt, image) for image in drawn.images], abs=1e-5)


def test_int8_is_what_images_pass_through(mini: Any, int8: Any) -> None:
    def weights(scorer: ir.Scorer) -> dict[str, torch.Tensor]:
        return {name: module.weight for name, module in scorer.named_modules() if isinstance(module, torch.nn.Linear)}

    before, after = weights(mini), weights(int8)
    assert before.keys() == after.keys()
    rounded = {name for name, weight in after.items() if type(weight) is not torch.nn.Parameter}
    network = mini.config.network
    assert len(rounded) == 4 * network.vision_layers + 2 * network.text_layers
    assert all("visual_encoder.blocks" in name or ".crossattention.self.key" in name or ".self.value" in name for name in rounded)
    assert all(torch.equal(weight, before[name]) for name, weight in after.items() if name not in rounded)
    assert is_quantized(int8)
    assert not is_quantized(mini)


def test_int8_has_no_gradients_and_is_not_saved(int8: Any, tmp_path: Path) -> None:
    pixels = torch.rand(1, 3, 64, 64)
    assert int8.rewards("a red circle", pixels).shape == (1,)
    with pytest.raises(RewardError, match=r"no gradients.*float32 or bfloat16"):
        int8.rewards("a red circle", pixels.requires_grad_())
    with pytest.raises(RewardError, match="cannot be saved; save it as loaded in float32"):
        int8.save_pretrained(tmp_path / "saved")
    with pytest.raises(RewardError, match="cannot be saved"):
        int8.state_dict()


def test_torchao_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r"pip install 'image-reward\[int8\]'"):
        ir.load(NAME, "cpu", "int8")


def test_unknown_dtype() -> None:
    for dtype in ("int4", torch.float64):
        with pytest.raises(ValueError, match=r"dtype must be one of float32, bfloat16, float16 and int8, not .*(int4|float64)"):
            ir.load(NAME, "cpu", dtype)


def test_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ValueError, match=r"install g\+\+"):
        ir.load(NAME, "cpu", compile=True)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_compiled(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = shapes.comparisons(3, seed=7)
    images = [image for c in drawn for image in c.images]
    prompts = [c.prompt for c in drawn]
    scorer, plain = ir.load(NAME, "cpu", dtype, compile=True), ir.load(NAME, "cpu", dtype)
    assert "compiling" not in capsys.readouterr().err  # until the first image
    tolerance = 1e-4 if dtype == "float32" else 0.05
    for count in (len(images), 1, 3, 5):
        assert scorer.matrix(prompts, images[:count]) == pytest.approx(plain.matrix(prompts, images[:count]), abs=tolerance)
    assert capsys.readouterr().err.count("compiling the image tower") == 1
    if dtype == "float32":
        pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
        scorer.rewards("a red circle", pixels).sum().backward()
        assert pixels.grad is not None
        assert pixels.grad.abs().sum() > 0


def test_agreement() -> None:
    found = agreement([[0.0, 1.0, 1.5, 1.5], [3.0, 2.0, 1.0, 0.0]], [[0.0, 1.6, 1.5, 1.0], [3.0, 2.0, 1.0, 0.0]])
    assert (found.num_prompts, found.num_images) == (2, 4)
    assert found.num_pairs == 5 + 6  # one pair is tied in float32
    assert found.num_flips == 2  # 1.0 against both 1.5
    assert found.largest_flipped == pytest.approx(0.5)
    assert found.largest_difference == pytest.approx(0.6)
    assert found.mean_difference == pytest.approx(1.1 / 8)
    assert found.spread == pytest.approx((np.std([0, 1, 1.5, 1.5]) + np.std([0, 1, 2, 3])) / 2)


def test_agreement_of_one_image() -> None:
    found = agreement([[1.0]], [[1.5]])
    assert (found.spearman, found.num_pairs, found.num_flips, found.share_flipped, found.largest_flipped) == (None, 0, 0, 0.0, None)
    for shapes_ in ([[1.0]], [[1.0], [2.0]]), ([1.0], [1.0]), ([[]], [[]]):
        with pytest.raises(ValueError, match="the same prompts and images"):
            agreement(*shapes_)
