"""The generator in the package, and how it is made."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import diffusers
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from image_reward.comparisons.shapes import prompt_specs
from image_reward.tuning import load_pipeline
from image_reward.tuning.pipelines import PACKAGED, SHAPES_GENERATOR
from image_reward.tuning.shapes_generator import MAX_TOKENS, ShapesGenerator, build, held_out_points, parts, tokenizer

FOLDER = PACKAGED[SHAPES_GENERATOR]
MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline(SHAPES_GENERATOR, device="cpu")


def image(pipe: Any, prompt: str, seed: int, **arguments: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(prompt, num_inference_steps=4, generator=generator, **arguments).images[0])


def test_diffusers_alone_loads_it(pipe: Any) -> None:
    alone = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER)
    assert isinstance(alone.vae, diffusers.AutoencoderKL)
    assert isinstance(alone.unet, diffusers.UNet2DConditionModel)
    assert isinstance(alone.text_encoder, CLIPTextModel)
    assert isinstance(alone.tokenizer, CLIPTokenizer)
    assert isinstance(alone.scheduler, diffusers.DDIMScheduler)
    weights = [weight for part in parts(alone).values() for weight in part.parameters()]
    assert {weight.dtype for weight in weights} == {torch.float32}
    alone.set_progress_bar_config(disable=True)
    made = image(alone, "a red circle", 0)
    assert made.shape == (64, 64, 3)
    assert np.abs(made.astype(int) - image(pipe, "a red circle", 0)).max() <= 1  # memory that is aligned otherwise rounds otherwise


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MAX_BYTES


def test_every_word_is_a_token_and_every_prompt_fits(pipe: Any) -> None:
    for kind in ("one", "count", "relation"):
        prompts = [spec.prompt for spec in prompt_specs(kind)[::17]]
        tokens = pipe.tokenizer(prompts).input_ids
        assert [len(ids) - 2 for ids in tokens] == [len(prompt.split()) for prompt in prompts]
        assert max(len(ids) for ids in tokens) <= pipe.tokenizer.model_max_length == MAX_TOKENS
        assert pipe.tokenizer.batch_decode(tokens, skip_special_tokens=True) == prompts
    assert pipe.tokenizer.get_vocab() == tokenizer().get_vocab()


def test_the_same_seed_gives_the_same_image(pipe: Any) -> None:
    first = image(pipe, "a large blue square on a white background", 3)
    assert np.array_equal(first, image(pipe, "a large blue square on a white background", 3))
    assert not np.array_equal(first, image(pipe, "a large blue square on a white background", 4))


def test_it_follows_held_out_prompts(pipe: Any) -> None:
    """At most half the penalty points of the same networks with random weights."""
    torch.manual_seed(0)
    assert fmean(held_out_points(pipe, 32)) <= 0.5 * fmean(held_out_points(build(), 32))


def test_making_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ShapesGenerator(
        output=tmp_path,
        num_images=8,
        autoencoder_images=8,
        autoencoder_steps=2,
        autoencoder_batch=4,
        steps=2,
        batch_size=4,
        widths=(16, 16),
        log_every=1,
        evaluate_every=2,
        evaluation_images=2,
    )
    config.run()
    printed = capsys.readouterr().err
    assert "step 2/2  loss" in printed
    assert "penalty points on held-out prompts" in printed
    made = load_pipeline(tmp_path, device="cpu")
    assert image(made, "a red circle", 0).shape == (64, 64, 3)
    assert diffusers.UNet2DConditionModel.load_config(tmp_path / "unet")["block_out_channels"] == [16, 16]

    again = tmp_path / "again"
    ShapesGenerator(**(vars(config) | {"output": again, "continue_from": tmp_path, "autoencoder_steps": 0, "lr": 0.0})).run()
    for part in ("vae", "unet"):
        before, after = (load_file(folder / part / "diffusion_pytorch_model.safetensors") for folder in (tmp_path, again))
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        assert {weight.dtype for weight in after.values()} == {torch.float16}
