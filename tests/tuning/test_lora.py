from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11
pytest.importorskip("peft")

import diffusers
import tiny_pipelines
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from image_reward.errors import CheckpointError, InputError
from image_reward.tuning import lora, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2

ARGUMENTS = {"prompts": ["a cat"], "steps": 2, "seed": 3}


def image(pipe: Any, own: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return sample(pipe, **ARGUMENTS, grad_steps=0, **own)


def disturb(weights: list[nn.Parameter], scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in weights:
            weight += scale * torch.randn(weight.shape, generator=generator)


def tuned(name: str, rank: int = 2, alpha: float = 6, **options: Any) -> tuple[Any, dict[str, Any], list[nn.Parameter]]:
    pipe, own = tiny_pipelines.build(name)
    weights = lora.attach(pipe, rank, alpha, **options)
    disturb(weights)
    return pipe, own, weights


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_what_is_saved_is_what_diffusers_loads(name: str, tmp_path: Path) -> None:
    pipe, own = tiny_pipelines.build(name)
    untuned = image(pipe, own)
    weights = lora.attach(pipe, 2, 6)
    assert torch.equal(image(pipe, own), untuned)  # B is 0
    disturb(weights)
    after = image(pipe, own)
    assert (after - untuned).abs().max() > 1e-3
    lora.save(pipe, tmp_path)
    alone, _ = tiny_pipelines.build(name)
    if name == "pixart":  # whose pipeline has no load_lora_weights
        lora.load(alone, tmp_path)
    else:
        alone.load_lora_weights(tmp_path)
    assert (image(alone, own) - after).abs().max() == 0.0
    ours, _ = tiny_pipelines.build(name)
    lora.load(ours, tmp_path)
    assert (image(ours, own) - after).abs().max() == 0.0


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_gradients_reach_every_weight_and_nothing_else(name: str) -> None:
    pipe, own, weights = tuned(name)
    sample(pipe, **ARGUMENTS, grad_steps=2, **own).square().sum().backward()
    assert len(weights) == len(set(map(id, weights)))
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)
    every = [weight for part in tiny_pipelines.parts(pipe).values() for weight in part.parameters()]
    assert {id(weight) for weight in every if weight.requires_grad} == {id(weight) for weight in weights}
    assert all(weight.grad is None for weight in every if not weight.requires_grad)


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_strength_goes_from_the_untuned_to_the_tuned_pipeline(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    untuned = image(pipe, own)
    disturb(lora.attach(pipe, 2, 6))
    after = image(pipe, own)
    with lora.strength(pipe, 0.0):
        assert torch.equal(image(pipe, own), untuned)
    with lora.disabled(pipe):
        assert torch.equal(image(pipe, own), untuned)
    with lora.strength(pipe, 1.0):
        assert torch.equal(image(pipe, own), after)
    with lora.strength(pipe, 0.5):
        half = image(pipe, own)
    assert not torch.equal(half, untuned)
    assert not torch.equal(half, after)
    assert torch.equal(image(pipe, own), after)


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl"])
def test_the_names_of_kohya(name: str, tmp_path: Path) -> None:
    pipe, own, _ = tuned(name)
    after = image(pipe, own)
    files = lora.save(pipe, tmp_path, kohya=True, metadata={"base": "tiny"})
    assert files == {"unet": tmp_path / lora.WEIGHTS, "kohya": tmp_path / lora.KOHYA}
    tensors = load_file(files["kohya"])
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert {key.rsplit(".", 1)[-1] for key in tensors} == {"weight", "alpha"}
    alone, _ = tiny_pipelines.build(name)
    alone.load_lora_weights(tmp_path, weight_name=lora.KOHYA)
    assert (image(alone, own) - after).abs().max() == 0.0
    for file in files.values():
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["base"] == "tiny"
    alone, _ = tiny_pipelines.build(name)
    alone.load_lora_weights(tmp_path)  # which of the two is not left to chance
    assert (image(alone, own) - after).abs().max() == 0.0


def test_names_of_kohya_are_those_of_unets(tmp_path: Path) -> None:
    pipe, _, _ = tuned("flux")
    with pytest.raises(InputError, match="FluxPipeline has none; leave kohya out"):
        lora.save(pipe, tmp_path, kohya=True)
    assert not any(tmp_path.iterdir())


def test_two_denoisers(tmp_path: Path) -> None:
    """Wan 2.2 has one for the early and one for the late steps."""

    def two() -> Any:
        pipe, _ = tiny_pipelines.build("wan")
        second, _ = tiny_pipelines.build("wan", seed=1)
        return diffusers.WanPipeline(**pipe.components | {"transformer_2": second.transformer}, boundary_ratio=0.8)

    own = tiny_pipelines.build("wan")[1]
    pipe = two()
    untuned = image(pipe, own)
    weights = lora.attach(pipe, 2, 6)
    disturb(weights)
    after = image(pipe, own)
    sample(pipe, **ARGUMENTS | {"steps": 4}, grad_steps=4, **own).sum().backward()
    assert all(weight.grad is not None for weight in weights)
    files = lora.save(pipe, tmp_path)
    assert set(files) == {"transformer", "transformer_2"}
    alone = two()
    alone.load_lora_weights(tmp_path)
    alone.load_lora_weights(tmp_path, weight_name="transformer_2.safetensors", load_into_transformer_2=True)
    assert (image(alone, own) - after).abs().max() == 0.0
    ours = two()
    lora.load(ours, tmp_path)
    assert (image(ours, own) - after).abs().max() == 0.0
    with lora.disabled(ours):
        assert torch.equal(image(ours, own), untuned)
    files["transformer_2"].unlink()
    with pytest.raises(FileNotFoundError, match=r"no LoRA: .*transformer_2.safetensors does not exist"):
        lora.load(two(), tmp_path)


def test_the_initial_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        pipe, _ = tiny_pipelines.build("stable_diffusion", dtype=dtype)
        torch.manual_seed(seed + 100)  # which must not matter, and stays as it is
        before = torch.random.get_rng_state()
        made = lora.attach(pipe, 4, 4, seed=5)
        assert torch.equal(torch.random.get_rng_state(), before)
        return list(made)

    first = weights(0)
    assert all(map(torch.equal, first, weights(1, torch.bfloat16)))
    down = torch.cat([weight.flatten() for weight in first if weight.any()])
    assert down.std().item() == pytest.approx(1 / 4, rel=0.1)
    assert sum(weight.any() for weight in first) == len(first) / 2
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    other = lora.attach(pipe, 4, 4, seed=6)
    assert not torch.equal(other[0], first[0])


def test_weights_are_float32_in_a_bfloat16_pipeline() -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion", dtype=torch.bfloat16)
    weights = lora.attach(pipe, 2, 2)
    assert {weight.dtype for weight in weights} == {torch.float32}
    disturb(weights)
    pixels = sample(pipe, **ARGUMENTS, **own)
    assert pixels.dtype == torch.bfloat16
    pixels.sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in weights)


def test_the_untuned_model_within_a_step_costs_no_gradient() -> None:
    pipe, own, weights = tuned("stable_diffusion")
    sample(pipe, **ARGUMENTS, **own).square().sum().backward()
    expected = [copy.copy(weight.grad) for weight in weights]
    for weight in weights:
        weight.grad = None
    pixels = sample(pipe, **ARGUMENTS, **own)
    with lora.disabled(pipe):
        assert not any(weight.requires_grad for weight in weights)
        image(pipe, own)
    pixels.square().sum().backward()
    assert all(torch.equal(weight.grad, gradient) for weight, gradient in zip(weights, expected, strict=True))
    weights[0].requires_grad_(False)
    with pytest.raises(KeyError), lora.disabled(pipe):
        raise KeyError
    assert [weight.requires_grad for weight in weights] == [False] + [True] * (len(weights) - 1)


def test_targets_by_name(tmp_path: Path) -> None:
    pipe, own, weights = tuned("stable_diffusion", targets=["to_v", "ff.net.2"])
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, weight in pipe.unet.named_parameters() if weight.requires_grad}
    assert names == {"to_v", "2"}
    after = image(pipe, own)
    lora.save(pipe, tmp_path)
    alone, _ = tiny_pipelines.build("stable_diffusion")
    assert len(lora.load(alone, tmp_path)) == len(weights)
    assert (image(alone, own) - after).abs().max() == 0.0
    with pytest.raises(InputError, match="no linear layer of unet in StableDiffusionPipeline has a name that ends with qkv or conv1"):
        lora.attach(tiny_pipelines.build("stable_diffusion")[0], 2, 2, targets=["qkv", "conv1"])


def test_loading_takes_the_place_of_another_lora(tmp_path: Path) -> None:
    pipe, own, _ = tuned("stable_diffusion")
    after = image(pipe, own)
    lora.save(pipe, tmp_path)
    other, _, _ = tuned("stable_diffusion", rank=3, targets=["to_v"])
    lora.load(other, tmp_path)
    assert (image(other, own) - after).abs().max() == 0.0
    with pytest.raises(InputError, match=r"has a LoRA already: take it out .image_reward.tuning.lora.detach., or make it a part"):
        lora.attach(other, 2, 2)


def test_detaching_leaves_the_pipeline_as_it_was() -> None:
    for name in ("stable_diffusion", "pixart"):
        pipe, own = tiny_pipelines.build(name)
        names, untuned = [key for key, _ in pipe.components.items()], image(pipe, own)
        before = list(tiny_pipelines.denoiser(pipe).state_dict())
        disturb(lora.attach(pipe, 2, 2))
        lora.detach(pipe)
        assert list(tiny_pipelines.denoiser(pipe).state_dict()) == before
        assert [key for key, _ in pipe.components.items()] == names
        assert torch.equal(image(pipe, own), untuned)
        assert lora.attach(pipe, 2, 2)
        for context in (lora.disabled, lambda pipe: lora.strength(pipe, 0.5)):
            lora.detach(pipe)
            with pytest.raises(InputError, match="has no LoRA of this package; call attach"), context(pipe):
                pass


def test_a_lora_of_another_base(tmp_path: Path) -> None:
    pipe, _, _ = tuned("stable_diffusion")
    lora.save(pipe, tmp_path)
    larger, _ = tiny_pipelines.build("stable_diffusion_xl")
    with pytest.raises(
        CheckpointError,
        match=r"is a LoRA of another base: its weight unet\.\S+attn2.to_k.lora_A.weight is \[2, 16\], and the layer here has 32",
    ):
        lora.load(larger, tmp_path)
    with pytest.raises(CheckpointError, match="which is none of a LoRA of the pipeline's transformer"):
        lora.load(tiny_pipelines.build("flux")[0], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no LoRA: .*nowhere.*pytorch_lora_weights.safetensors does not exist"):
        lora.load(pipe, tmp_path / "nowhere")
    other, _, _ = tuned("wan")
    lora.save(other, tmp_path / "wan")
    untouched, own = tiny_pipelines.build("pixart")
    untuned = image(untouched, own)
    with pytest.raises(CheckpointError, match=r"its weight transformer\.\S+ has no layer in this PixArtTransformer2DModel"):
        lora.load(untouched, tmp_path / "wan")
    assert torch.equal(image(untouched, own), untuned)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    pipe, _, _ = tuned("stable_diffusion")
    file = lora.save(pipe, tmp_path)["unet"]
    tensors = load_file(file)
    name = next(key for key in tensors if ".lora_A." in key)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=f"lacks the weight {name}"):
        lora.load(pipe, tmp_path)
    save_file(tensors | {name: torch.zeros(3, tensors[name].shape[1])}, file)
    with pytest.raises(CheckpointError, match="has weights of the ranks 2, 3"):
        lora.load(pipe, tmp_path)
    save_file(tensors, file, {"lora_adapter_metadata": "[]"})
    with pytest.raises(CheckpointError, match="has no number for alpha"):
        lora.load(pipe, tmp_path)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"is damaged: .*; copy it again"):
        lora.load(pipe, tmp_path)
    assert lora.save(pipe, tmp_path)  # the LoRA that the pipeline has is untouched


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda _: None)
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    with pytest.raises(InputError, match="a LoRA needs peft: pip install"):
        lora.attach(pipe, 2, 2)


@pytest.mark.parametrize(("values", "message"), [((0, 1), "rank of a LoRA must be"), ((2, 0), "alpha of a LoRA must be above 0")])
def test_values_that_make_no_sense(values: tuple[int, float], message: str) -> None:
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    with pytest.raises(InputError, match=message):
        lora.attach(pipe, *values)
