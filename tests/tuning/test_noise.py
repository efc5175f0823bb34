from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import diffusers
import scipy.stats
import tiny_pipelines
import torch
from torch import Tensor

from image_reward.errors import InputError, PromptError, TrainingError
from image_reward.scorers import Ensemble, ImageRewardScorer, Reference, Scorer
from image_reward.tuning import optimize_noise, sample
from image_reward.tuning.noise import initial_latents, norm_penalty

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2


class Redness(Scorer[Any]):
    """How much redder than blue an image is: smooth in the pixels. It has a weight, which nothing may change."""

    name, reads_prompt = "redness", False

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(scale))
        self.num_calls = 0

    def forward(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
        assert list(prompts) == ["a cat"]
        assert not self.weight.requires_grad
        self.num_calls += 1
        return (self.weight * (pixels[:, 0] - pixels[:, 2])).float().mean(dim=(1, 2))


class Blind(Scorer[Any]):
    """A scorer without ``rewards``."""

    name, reads_prompt = "blind", False

    def forward(self, batch: Any) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def pipe() -> Any:
    return tiny_pipelines.build("stable_diffusion")[0]


SMALL = {"height": 16, "width": 16}


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_every_pipeline_starts_from_its_own_image_and_improves_it(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    best = optimize_noise(pipe, "a cat", Redness(), steps=5, seed=3, **own)
    pixels = sample(pipe, "a cat", steps=1, grad_steps=0, seed=3, **own)
    with torch.no_grad():
        assert best.starting_reward == pytest.approx(10 * (pixels[:, 0] - pixels[:, 2]).mean().item(), abs=1e-5)
    assert len(best.rewards) == 5
    assert best.reward > best.starting_reward
    # Passed to the pipeline itself, the noise makes the image again.
    pipe.set_progress_bar_config(disable=True)
    again = pipe("a cat", num_inference_steps=1, latents=best.latents, output_type="np", return_dict=False, **own)[0]
    difference = np.abs(np.asarray(best.image) / 255 - np.asarray(again).reshape(own["height"], own["width"], 3))
    assert difference.max() < 1 / 255


def test_the_latents_are_packed_or_not_and_before_scaling_as_the_pipeline_takes_them() -> None:
    normal = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    pipe, own = tiny_pipelines.build("stable_diffusion_xl")  # whose scheduler's first noise level is not 1
    assert pipe.scheduler.init_noise_sigma > 2
    assert torch.equal(initial_latents(pipe, "a cat", 1, 2, own), normal)
    pipe, own = tiny_pipelines.build("flux")
    packed = initial_latents(pipe, "a cat", 1, 2, own)
    assert packed.shape == (1, 16, 16)
    assert torch.equal(packed.flatten().sort().values, normal.flatten().sort().values)


def test_the_best_iteration_is_kept(pipe: Any) -> None:
    class Peak(Redness):
        """Highest at the redness -0.2, past which steps of this size overshoot."""

        def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
            return -(super().rewards(prompts, pixels) + 0.2).square()

    best = optimize_noise(pipe, "a cat", Peak(), steps=12, seed=1, lr=60.0, num_inference_steps=2, **SMALL)
    assert best.starting_reward == best.rewards[0] < best.reward
    assert 0 < best.iteration < 11
    assert best.reward == max(best.rewards) == best.rewards[best.iteration]
    pixels = sample(pipe, "a cat", steps=2, grad_steps=0, seed=0, latents=best.latents, **SMALL)
    assert -((10 * (pixels[:, 0] - pixels[:, 2]).mean().item() + 0.2) ** 2) == pytest.approx(best.reward, abs=1e-5)
    assert np.array_equal(np.asarray(best.image), pixels[0].detach().permute(1, 2, 0).mul(255).round().byte().numpy())
    assert not best.latents.requires_grad
    further = optimize_noise(pipe, "a cat", Peak(), steps=1, latents=best.latents, num_inference_steps=2, **SMALL)
    assert further.rewards == pytest.approx([best.reward], abs=1e-5)
    assert torch.equal(further.latents, best.latents)
    assert "rewards=" in repr(best)
    assert "latents" not in repr(best)


def test_one_step_of_sgd_by_hand(pipe: Any) -> None:
    """Nesterov's first step is lr * (1 + momentum) * gradient; the gradient is clipped to the norm."""
    options = {"steps": 3, "seed": 4, **SMALL}
    start = initial_latents(pipe, "a cat", 1, 4, SMALL)
    noise = start.clone().requires_grad_()
    pixels = sample(pipe, "a cat", steps=1, seed=0, latents=noise, **SMALL)
    loss = -10 * (pixels[:, 0] - pixels[:, 2]).mean() + 0.01 * norm_penalty(noise).sum()
    (gradient,) = torch.autograd.grad(loss, noise)
    assert gradient.norm() > 1e-3
    moved = start - 2.0 * 1.9 * gradient * 1e-3 / gradient.norm()
    second = sample(pipe, "a cat", steps=1, grad_steps=0, seed=0, latents=moved, **SMALL)
    best = optimize_noise(pipe, "a cat", Redness(), lr=2.0, max_grad_norm=1e-3, **options)
    assert best.rewards[1] == pytest.approx(10 * (second[:, 0] - second[:, 2]).mean().item(), abs=1e-5)
    assert best.rewards[1] != best.rewards[0]


def test_the_penalty_is_the_negative_log_density_of_the_chi_distribution() -> None:
    noise = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.arange(1, 6).reshape(
        5, 1, 1, 1
    )
    norms = noise.flatten(1).norm(dim=1).numpy()
    constant = (24 / 2 - 1) * math.log(2) + math.lgamma(24 / 2)
    np.testing.assert_allclose(norm_penalty(noise).numpy() + constant, -scipy.stats.chi(df=24).logpdf(norms), rtol=1e-12)
    noise = (noise[:1] / norms[0] * 23**0.5).requires_grad_()
    norm_penalty(noise).sum().backward()
    assert noise.grad is not None
    assert noise.grad.abs().max() < 1e-12  # the lowest point: norm sqrt(d - 1)


def test_the_penalty_keeps_the_norm_of_the_noise(pipe: Any) -> None:
    start = initial_latents(pipe, "a cat", 1, 0, SMALL)
    long = optimize_noise(pipe, "a cat", Redness(0.0), steps=2, latents=3 * start, **SMALL)
    assert long.iteration == 0  # rewards are equal: the first
    strong = optimize_noise(pipe, "a cat", Redness(), steps=20, regularization=10.0, **SMALL)
    free = optimize_noise(pipe, "a cat", Redness(), steps=20, regularization=0.0, **SMALL)
    expected = (start.numel() - 1) ** 0.5
    assert abs(strong.latents.norm() - expected) < abs(free.latents.norm() - expected)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_the_same_seed_gives_the_same_result(scheduler: str, pipe: Any) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(**tiny_pipelines.BETAS)
    options = {"steps": 3, "num_inference_steps": 2, "grad_steps": 1, **SMALL}
    first, again, other = (optimize_noise(pipe, "a cat", Redness(), seed=seed, **options) for seed in (5, 5, 6))
    assert first.rewards == again.rewards
    assert torch.equal(first.latents, again.latents)
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert first.rewards != other.rewards
    pixels = sample(pipe, "a cat", steps=2, grad_steps=0, seed=6, latents=first.latents, **SMALL)  # whose later noise has seed + 1
    assert 10 * (pixels[:, 0] - pixels[:, 2]).mean().item() == pytest.approx(first.reward, abs=1e-5)


def test_half_precision(pipe: Any) -> None:
    pipe.to(torch.bfloat16)
    best = optimize_noise(pipe, "a cat", Redness(), steps=10, lr=1.0, **SMALL)
    assert best.latents.dtype == torch.bfloat16
    assert best.reward > best.starting_reward


@pytest.mark.parametrize("fails", [False, True])
def test_pipeline_and_scorer_are_restored(fails: bool, pipe: Any) -> None:
    scorer = Redness(math.nan if fails else 10.0)
    weights = {**dict(pipe.unet.named_parameters()), **dict(pipe.vae.named_parameters()), "scorer": scorer.weight}
    before = {name: (weight.requires_grad, weight.detach().clone()) for name, weight in weights.items()}
    assert {required for required, _ in before.values()} == {True, False}
    attributes = dict(vars(pipe)), dict(vars(pipe.scheduler)), dict(vars(pipe.unet))
    if fails:
        with pytest.raises(TrainingError):
            optimize_noise(pipe, "a cat", scorer, steps=2, **SMALL)
    else:
        with torch.no_grad():
            optimize_noise(pipe, "a cat", scorer, steps=2, **SMALL)
    for name, weight in weights.items():
        assert weight.requires_grad is before[name][0]
        assert weight.grad is None
        assert torch.equal(weight.detach(), before[name][1]) or fails
    after = vars(pipe), vars(pipe.scheduler), vars(pipe.unet)
    own = {"_guidance_scale", "_guidance_rescale", "_clip_skip", "_cross_attention_kwargs", "_interrupt", "_num_timesteps"}  # of any call
    for was, now in zip(attributes, after, strict=True):
        assert now.keys() - own == was.keys() - own
        assert all(now[key] is was[key] for key in was.keys() - own)


def test_scorers_of_the_package_and_ensembles(pipe: Any, scorer: ImageRewardScorer) -> None:
    references = {"one": Reference(0.5, 2.0, 10, ""), "two": Reference(0.0, 1.0, 10, "")}
    both = Ensemble({"one": scorer, "two": Redness()}, references=references).eval()
    alone = [optimize_noise(pipe, "a cat", model, steps=4, **SMALL) for model in (scorer, Redness())]
    together = optimize_noise(pipe, "a cat", both, steps=4, **SMALL)
    for best in (*alone, together):
        assert best.reward > best.starting_reward
    expected = ((alone[0].starting_reward - 0.5) / 2 + alone[1].starting_reward) / 2
    assert together.starting_reward == pytest.approx(expected, abs=1e-5)


def test_scorers_without_gradients(pipe: Any) -> None:
    references = {"one": Reference(0.0, 1.0, 10, ""), "two": Reference(0.0, 1.0, 10, "")}
    for scorer in (Blind(), Ensemble({"one": Redness(), "two": Blind()}, references=references)):
        with pytest.raises(InputError, match="blind gives no gradients to pixels; choose a scorer that does, or best-of"):
            optimize_noise(pipe, "a cat", scorer, **SMALL)

    class Constant(Redness):
        def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
            return super().rewards(prompts, pixels).detach()

    with pytest.raises(InputError, match="redness gives no gradients to pixels"):
        optimize_noise(pipe, "a cat", Constant(), **SMALL)


def test_a_loss_that_is_not_finite_names_the_iteration(pipe: Any) -> None:
    class Breaks(Redness):
        def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
            return super().rewards(prompts, pixels) / (0.0 if self.num_calls > 2 else 1.0)

    class Steep(Redness):
        def rewards(self, prompts: str | Sequence[str], pixels: Tensor) -> Tensor:
            return super().rewards(prompts, pixels) + (pixels - pixels.detach()).abs().sum(dim=(1, 2, 3)).sqrt()

    with pytest.raises(TrainingError, match=r"the reward of iteration 2 is -?inf; try a lower lr"):
        optimize_noise(pipe, "a cat", Breaks(), steps=5, **SMALL)
    with pytest.raises(TrainingError, match=r"the gradient's norm of iteration 0 is nan; try a lower lr"):
        optimize_noise(pipe, "a cat", Steep(), steps=5, **SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"num_inference_steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"lr": 0.0}, "lr must be above 0 and finite, not 0.0"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must be above 0 and finite, not nan"),
        ({"regularization": -1.0}, "regularization must be 0 or more and finite, not -1.0"),
        ({"output_type": "pt"}, r"optimize_noise\(\) sets output_type of the pipeline itself"),
        ({"guidance": 2.0}, "StableDiffusionPipeline takes no guidance"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents must be the noise of one image"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str, pipe: Any) -> None:
    with pytest.raises(InputError, match=message):
        optimize_noise(pipe, **{"prompt": "a cat", "model": Redness(), **SMALL, **arguments})


def test_prompts_that_are_not_text(pipe: Any) -> None:
    with pytest.raises(PromptError, match="a prompt is a string, not list"):
        optimize_noise(pipe, ["a cat"], Redness(), **SMALL)  # type: ignore[arg-type]


def test_a_pipeline_whose_noise_is_not_known(pipe: Any) -> None:
    start = initial_latents(pipe, "a cat", 1, 0, SMALL)
    scales = pipe.prepare_latents

    def differently(*args: Any) -> Tensor:
        return scales(*args) + 1

    def without_argument(batch_size: int, *args: Any) -> Tensor:
        return scales(batch_size, *args)

    for other in (differently, without_argument, None):
        pipe.prepare_latents = other
        with pytest.raises(
            InputError, match=r"initial noise of StableDiffusionPipeline is not known: .* pass the noise to start from as latents="
        ):
            optimize_noise(pipe, "a cat", Redness(), **SMALL)
    pipe.prepare_latents = differently
    assert optimize_noise(pipe, "a cat", Redness(), steps=3, latents=start, **SMALL).rewards[2] != 0
