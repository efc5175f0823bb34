from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import tiny_pipelines
import torch
from test_sampling import SCHEDULERS, with_scheduler

from image_reward.errors import InputError
from image_reward.tuning import sample
from image_reward.tuning.denoising import clean_from, encode_images, generate, pretraining_loss, starting_from, unguided
from image_reward.tuning.methods import noise_like, published_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2
PROMPTS = ["a cat", "a dog"]


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_images_and_their_clean_samples(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    made = generate(pipe, PROMPTS, steps=3, seeds=[4, 5], **own)
    assert torch.equal(made.pixels, sample(pipe, PROMPTS, steps=3, grad_steps=0, seed=4, **own))
    with torch.no_grad():
        seeds = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
        plain = pipe(prompt=list(PROMPTS), num_inference_steps=3, generator=seeds, output_type="latent", return_dict=False, **own)[0]
    torch.testing.assert_close(made.latents, plain, rtol=1e-4, atol=1e-5)
    assert len(made.levels.alphas) == 3
    assert all(a > b for a, b in zip(made.levels.sigmas, made.levels.sigmas[1:], strict=False))


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_the_pretraining_loss_reaches_the_denoiser_of_any_pipeline(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    arguments = unguided(pipe, own)
    made = generate(pipe, PROMPTS, steps=3, seeds=[4, 5], **own)
    noise = noise_like(made.latents, [6, 7])
    losses = pretraining_loss(pipe, PROMPTS, made.latents, noise, made.levels, 1, **arguments)
    assert losses.shape == (2,)
    each = [
        pretraining_loss(pipe, [p], made.latents[i : i + 1], noise[i : i + 1], made.levels, 1, **arguments) for i, p in enumerate(PROMPTS)
    ]
    torch.testing.assert_close(losses, torch.cat(each), rtol=2e-3, atol=1e-4)
    losses.mean().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in tiny_pipelines.denoiser(pipe).parameters())
    assert type(pipe.scheduler).__name__ in repr(type(pipe.scheduler))
    assert "prepare_latents" not in vars(pipe)

    # Steps of the optimizer lower it.
    optimizer = torch.optim.AdamW(tiny_pipelines.denoiser(pipe).parameters(), lr=3e-3)
    before = losses.mean().item()
    for _ in range(8):
        optimizer.zero_grad()
        loss = pretraining_loss(pipe, PROMPTS, made.latents, noise, made.levels, 1, **arguments).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < before


def test_the_loss_of_stable_diffusion_is_that_of_a_plain_training_script() -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    made = generate(pipe, PROMPTS, steps=4, seeds=[4, 5], **own)
    noise = noise_like(made.latents, [6, 7])
    loss = pretraining_loss(pipe, PROMPTS, made.latents, noise, made.levels, 2, **unguided(pipe, own))
    pipe.scheduler.set_timesteps(4)
    timestep = pipe.scheduler.timesteps[2]
    noisy = pipe.scheduler.add_noise(made.latents, noise, timestep.repeat(2))
    text = pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    predicted = pipe.unet(noisy, timestep, encoder_hidden_states=text).sample
    torch.testing.assert_close(loss, (predicted - noise).square().flatten(1).mean(dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_is_added_as_the_scheduler_adds_it(name: str) -> None:
    """The denoiser's input is that of the scheduler's own ``add_noise``, scaled as the scheduler scales it."""
    pipe, own = tiny_pipelines.build("stable_diffusion")
    with_scheduler(pipe, name)
    made = generate(pipe, ["a cat"], steps=5, seeds=[4], **own)
    noise = noise_like(made.latents, [6])
    for step in (1, 3):
        inputs: list[Any] = []
        hook = pipe.unet.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append((args[0].detach(), args[1])))
        pretraining_loss(pipe, ["a cat"], made.latents, noise, made.levels, step, **unguided(pipe, own))
        hook.remove()
        ((noisy, timestep),) = inputs
        alpha, sigma = made.levels.alphas[step], made.levels.sigmas[step]
        torch.testing.assert_close(noisy, alpha * made.latents + sigma * noise, rtol=1e-3, atol=1e-4)
        squared = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[int(timestep)]
        assert alpha**2 == pytest.approx(float(squared), rel=2e-2, abs=2e-3)


def test_a_clean_sample_is_noised_again_and_denoised_with_gradients() -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    made = generate(pipe, PROMPTS, steps=3, seeds=[4, 5], **own)
    pixels = clean_from(pipe, PROMPTS, made.latents, noise_like(made.latents, [6, 7]), made.levels, 2, [4, 5], **own)
    assert pixels.shape == made.pixels.shape
    pixels.sum().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in pipe.unet.parameters())


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_images_are_encoded_to_the_form_of_clean_samples(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    made = generate(pipe, PROMPTS, steps=2, seeds=[4, 5], **own)
    latents = encode_images(pipe, made.pixels, made.latents[:1])
    assert latents.shape == made.latents.shape
    assert latents.isfinite().all()


def test_samples_of_another_size_are_refused() -> None:
    pipe, own = tiny_pipelines.build("stable_diffusion")
    with (
        pytest.raises(InputError, match=r"samples of StableDiffusionPipeline are \[1, 4, 8, 8\] here"),
        starting_from(pipe, torch.zeros(1, 4, 4, 4)),
    ):
        pipe(prompt=["a"], num_inference_steps=1, output_type="latent", **own)


def test_refl_rolls_out_with_ddpm_where_noise_is_predicted() -> None:
    pipe, _ = tiny_pipelines.build("stable_diffusion")
    published = published_scheduler(with_scheduler(pipe, "PNDM"))
    assert type(published).__name__ == "DDPMScheduler"
    torch.testing.assert_close(published.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    flow, _ = tiny_pipelines.build("flux")
    assert published_scheduler(flow) is flow.scheduler
