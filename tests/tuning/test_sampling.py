from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("diffusers")  # which needs Python 3.11

import diffusers
import tiny_pipelines
import torch
from torch import Tensor

from image_reward.errors import InputError, PromptError
from image_reward.tuning import differentiable, objectives, recorded_calls, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # schedulers of diffusers with NumPy 2

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM with Runge-Kutta steps": ("PNDMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "EulerAncestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPMSolverMultistep": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "TCD": ("TCDScheduler", {"clip_sample": False}),
    "DEIS": ("DEISMultistepScheduler", {}),
}


def with_scheduler(pipe: Any, name: str, **options: Any) -> Any:
    kind, own = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, kind)(**tiny_pipelines.BETAS, **own, **options)
    return pipe


def weighing(pixels: Tensor) -> Tensor:
    """A scalar to differentiate: a fixed random sum of the pixels."""
    return (pixels.double() * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).sum()


def gradients(pipe: Any, **arguments: Any) -> list[Tensor]:
    weights = list(tiny_pipelines.denoiser(pipe).parameters())
    return list(torch.autograd.grad(weighing(sample(pipe, **arguments)), weights, allow_unused=True, materialize_grads=True))


def norm(gradient: list[Tensor]) -> float:
    return torch.cat([part.flatten().double() for part in gradient]).norm().item()


def slope(pipe: Any, direction: list[Tensor], step: float, **arguments: Any) -> float:
    """The central difference of ``weighing`` along a direction in weight space."""
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, part in zip(tiny_pipelines.denoiser(pipe).parameters(), direction, strict=True):
                weight += sign * step * part
            values.append(weighing(sample(pipe, **arguments)).item())
    return (values[0] - values[1]) / (2 * step)


def check_by_finite_differences(pipe: Any, **arguments: Any) -> None:
    gradient = gradients(pipe, **arguments)
    length = norm(gradient)
    assert length > 1e-4
    step = min(1e-2, 1e-3 / length)  # schedulers compute parts in float32, which a difference must exceed
    assert slope(pipe, [part / length for part in gradient], step, **arguments) == pytest.approx(length, rel=1e-2)


@pytest.fixture
def diffusion() -> Any:
    return tiny_pipelines.build("stable_diffusion")[0]


ARGUMENTS = {"prompts": ["a cat"], "steps": 4, "seed": 3, "height": 16, "width": 16}


@pytest.mark.parametrize("name", tiny_pipelines.PIPELINES)
def test_every_pipeline_makes_its_ordinary_image_with_true_gradients(name: str) -> None:
    pipe, own = tiny_pipelines.build(name, dtype=torch.float64)
    arguments = {"prompts": ["a cat", "two dogs"], "steps": 4, "seed": 3, **own}
    pixels = sample(pipe, **arguments)
    assert pixels.shape == (2, 3, own["height"], own["width"])
    assert 0 <= pixels.min() < pixels.max() <= 1
    pipe.set_progress_bar_config(disable=True)
    for row, prompt in enumerate(arguments["prompts"]):
        generator = torch.Generator().manual_seed(3 + row)
        ordinary = pipe(prompt, num_inference_steps=4, generator=generator, output_type="pt", return_dict=False, **own)[0]
        torch.testing.assert_close(pixels[row].detach(), ordinary.reshape(pixels.shape[1:]), atol=1e-5, rtol=0)
    check_by_finite_differences(pipe, **arguments | {"prompts": ["a cat"], "grad_steps": 4})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_gradients_by_every_scheduler(name: str) -> None:
    pipe = with_scheduler(tiny_pipelines.build("stable_diffusion", dtype=torch.float64)[0], name)
    check_by_finite_differences(pipe, **ARGUMENTS, grad_steps=4, guidance_scale=3.0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stopping_early_decodes_the_clean_image_that_is_predicted(name: str) -> None:
    """A denoiser that knows the noise predicts the same clean image at every step."""
    pipe = with_scheduler(tiny_pipelines.build("stable_diffusion")[0], name)
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = pipe.vae.decode(clean / pipe.vae.config.scaling_factor).sample.mul(0.5).add(0.5).clamp(0, 1)

    def knows_the_noise(noisy: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        squared = pipe.scheduler.alphas_cumprod[int(timestep)]
        return ((noisy - squared**0.5 * clean) / (1 - squared) ** 0.5,)

    pipe.unet.forward = knows_the_noise
    for stop_at in (1, 3):
        pixels = sample(pipe, **ARGUMENTS, grad_steps=(), guidance_scale=1.0, stop_at=stop_at)
        torch.testing.assert_close(pixels, expected, atol=2e-2 if name == "LCM" else 2e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPC", "DEIS"])
def test_predicted_clean_images_without_the_scheduler_s_own_are_those_of_ddim(name: str, prediction: str, diffusion: Any) -> None:
    arguments = ARGUMENTS | {"grad_steps": {0}, "stop_at": 0, "guidance_scale": 1.0}  # before the solvers' steps differ
    pipe = with_scheduler(diffusion, name, prediction_type=prediction, timestep_spacing="trailing")
    pixels = sample(pipe, **arguments)
    with_scheduler(pipe, "DDIM", prediction_type=prediction, timestep_spacing="trailing")
    torch.testing.assert_close(pixels, sample(pipe, **arguments), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux", "sana", "wan", "z_image"])
def test_stopping_a_flow_early_goes_to_its_end_in_one_step(name: str) -> None:
    """With all noise gone after the last step, what the last step predicts is what it makes."""
    pipe, own = tiny_pipelines.build(name)
    arguments = {"prompts": "a cat", "steps": 3, "seed": 1, "grad_steps": {2}, **own}
    torch.testing.assert_close(sample(pipe, **arguments, stop_at=2), sample(pipe, **arguments), atol=1e-3, rtol=0)
    one_step = sample(pipe, **arguments | {"steps": 1, "grad_steps": {0}})  # from the same noise level: sigma 1
    torch.testing.assert_close(sample(pipe, **arguments | {"grad_steps": {0}}, stop_at=0), one_step, atol=1e-3, rtol=0)


def test_gradients_with_a_cut_input_add_up_over_steps(diffusion: Any) -> None:
    arguments = ARGUMENTS | {"detach_input": True, "guidance_scale": 2.0}
    single = [gradients(diffusion, **arguments, grad_steps={step}) for step in range(4)]
    together = gradients(diffusion, **arguments, grad_steps=4)
    for whole, *each in zip(together, *single, strict=True):
        torch.testing.assert_close(whole, sum(each), atol=1e-5, rtol=1e-3)
    uncut = gradients(diffusion, **arguments | {"detach_input": False}, grad_steps=4)
    assert norm([a - b for a, b in zip(together, uncut, strict=True)]) > 0.01 * norm(uncut)


@pytest.mark.parametrize("name", ["z_image", "flux"])
def test_the_cut_input_where_pipelines_pass_lists_or_names(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    arguments = {"prompts": "a cat", "steps": 3, "seed": 1, "detach_input": True, **own}
    single = [gradients(pipe, **arguments, grad_steps={step}) for step in range(3)]
    for whole, *each in zip(gradients(pipe, **arguments, grad_steps=3), *single, strict=True):
        torch.testing.assert_close(whole, sum(each), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("name", "calls"), [("DDIM", [0, 1, 2, 3]), ("PNDM", [0, 0, 1, 2, 3]), ("Heun", [0, 0, 1, 1, 2, 2, 3])])
def test_calls_with_gradients(name: str, calls: list[int], diffusion: Any) -> None:
    with_scheduler(diffusion, name)
    seen: list[bool] = []
    hook = diffusion.unet.register_forward_hook(lambda _module, _args, output: seen.append(output[0].requires_grad))
    for active in ({0}, {1, 3}, {2}):
        seen.clear()
        sample(diffusion, **ARGUMENTS, grad_steps=active)
        assert seen == [step in active for step in calls]
    seen.clear()
    sample(diffusion, **ARGUMENTS, grad_steps={1}, stop_at=1)
    assert seen == [step == 1 for step in calls if step <= 1]
    seen.clear()
    with torch.no_grad():
        assert not sample(diffusion, **ARGUMENTS).requires_grad
    assert not any(seen)
    hook.remove()


def test_stopping_early_leaves_the_steps_before_as_they_are(diffusion: Any) -> None:
    """DPM-Solver lowers its order near the end of the schedule, which must not be the end of the shortened one."""
    with_scheduler(diffusion, "DPMSolverMultistep", solver_order=3)
    inputs: list[Tensor] = []
    hook = diffusion.unet.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].detach()))
    sample(diffusion, **ARGUMENTS | {"steps": 8}, grad_steps={4}, stop_at=4)
    stopped = [*inputs]
    inputs.clear()
    sample(diffusion, **ARGUMENTS | {"steps": 8}, grad_steps={4})
    hook.remove()
    assert len(stopped) == 5
    assert all(map(torch.equal, stopped, inputs))


@pytest.mark.parametrize("name", ["stable_diffusion", "flux"])
def test_gradient_checkpointing_changes_no_bit(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    arguments = {"prompts": "a cat", "steps": 3, "seed": 1, **own}
    plain = gradients(pipe, **arguments)
    tiny_pipelines.denoiser(pipe).enable_gradient_checkpointing()
    pipe.vae.enable_gradient_checkpointing()
    assert all(map(torch.equal, plain, gradients(pipe, **arguments)))


def test_lora_gets_gradients_and_nothing_else_does(diffusion: Any) -> None:
    peft = pytest.importorskip("peft")
    diffusion.unet.requires_grad_(False)
    diffusion.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    weighing(sample(diffusion, **ARGUMENTS)).backward()
    with_gradient = {name for name, weight in diffusion.unet.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert with_gradient == {name for name, _ in diffusion.unet.named_parameters() if "lora_" in name}
    assert with_gradient


@pytest.mark.parametrize("name", ["stable_diffusion", "z_image", "wan", "pixart"])
def test_the_divergence_from_the_untuned_model_on_the_states_of_the_rollout(name: str) -> None:
    pipe, own = tiny_pipelines.build(name)
    denoiser = tiny_pipelines.denoiser(pipe)
    with recorded_calls(pipe) as calls:
        sample(pipe, "a cat", steps=3, seed=1, grad_steps={0, 2}, **own)
    guided_apart = 2 if name == "wan" else 1
    assert len(calls) == 2 * guided_apart
    for call in calls:
        torch.testing.assert_close(objectives.divergence_from_untuned(call.prediction, call.repeated()), torch.zeros(len(call.prediction)))
        assert not call.repeated().requires_grad
    untuned = {weight: value.clone() for weight, value in denoiser.state_dict().items()}
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight += 0.01
    with recorded_calls(pipe) as calls:
        sample(pipe, "a cat", steps=3, seed=1, grad_steps=1, **own)
    sample(pipe, "a cat", steps=3, seed=1, grad_steps=1, **own)
    assert len(calls) == guided_apart
    denoiser.load_state_dict(untuned)
    assert all((objectives.divergence_from_untuned(call.prediction, call.repeated()) > 1e-6).all() for call in calls)


def test_gradients_reach_the_initial_noise(diffusion: Any) -> None:
    diffusion.unet.requires_grad_(False)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weighing(sample(diffusion, **ARGUMENTS, grad_steps=4, latents=noise)).backward()
    assert noise.grad is not None
    assert noise.grad.abs().min() > 0


def test_an_image_depends_on_its_own_seed_alone(diffusion: Any) -> None:
    with_scheduler(diffusion, "EulerAncestral")  # which draws noise at every step
    together = sample(diffusion, ["a cat", "a dog", "a cat"], steps=4, seed=[8, 2, 9], height=16, width=16)
    alone = sample(diffusion, "a dog", steps=4, seed=2, height=16, width=16)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
    assert (together[0] - together[2]).abs().max() > 1e-2


def state(pipe: Any) -> dict[str, Any]:
    unchanged = {name: vars(pipe).get(name, "unset") for name in ("scheduler", "safety_checker", "_progress_bar_config", "unet")}
    scheduler = {f"scheduler.{name}": copy.copy(value) for name, value in vars(pipe.scheduler).items()}
    return unchanged | scheduler | {"forward": vars(pipe.unet).get("forward", "unset"), "config": dict(pipe.config)}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return bool(torch.equal(a, b)) if isinstance(a, Tensor) else a is b or bool(a == b)

    return before.keys() == after.keys() and all(equal(before[name], after[name]) for name in before)


@pytest.fixture
def checked(diffusion: Any) -> Iterator[Any]:
    """A pipeline with a safety checker, which would fail on pixels that carry gradients, and with a ``forward`` of its own."""
    vars(diffusion)["safety_checker"] = lambda **_: pytest.fail("the safety checker was called")
    diffusion.unet.forward = diffusion.unet.forward
    before = state(diffusion)
    yield diffusion
    assert same(before, state(diffusion))


def test_the_pipeline_is_restored(checked: Any) -> None:
    sample(checked, **ARGUMENTS)


def test_the_pipeline_is_restored_after_an_exception(checked: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no memory")

    hook = checked.vae.decoder.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="no memory"):
        sample(checked, **ARGUMENTS)
    hook.remove()
    with pytest.raises(KeyError), differentiable(checked, steps=2, active={1}):
        raise KeyError


def test_the_scheduler_that_holds_the_graph_ends_with_the_call(diffusion: Any) -> None:
    with_scheduler(diffusion, "DPMSolverMultistep")  # which keeps predictions of earlier steps
    used: list[weakref.ref[Any]] = []
    hook = diffusion.unet.register_forward_hook(lambda *_: used.append(weakref.ref(diffusion.scheduler)))
    gc.collect()
    gc.disable()
    try:
        sample(diffusion, **ARGUMENTS)
        assert [reference() for reference in used] == [None] * 4
    finally:
        gc.enable()
        hook.remove()


def test_differentiable_takes_the_pipeline_s_own_arguments(diffusion: Any) -> None:
    with differentiable(diffusion, steps=3, active={2}) as call:
        output = call("a cat", 16, 16, num_inference_steps=3, generator=torch.Generator().manual_seed(7), output_type="pt")
    pixels = sample(diffusion, "a cat", steps=3, seed=7, grad_steps=1, height=16, width=16)
    torch.testing.assert_close(output.images, pixels)
    assert output.images.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"grad_steps": -1}, "grad_steps must be the number of last steps or a set of steps, not -1"),
        ({"grad_steps": {3, 4}}, "steps with gradients must be from 0 to 3 for 4 steps, not 4"),
        ({"grad_steps": {2}, "stop_at": 1}, "stop_at must be a step from 2, the last with gradients, to 3, not 1"),
        ({"stop_at": 4}, "to 3, not 4"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"prompts": []}, "at least one prompt"),
        ({"num_images_per_prompt": 2}, "sample.. sets num_images_per_prompt of the pipeline itself"),
        ({"output_type": "pil"}, "sample.. sets output_type of the pipeline itself"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str, diffusion: Any) -> None:
    with pytest.raises(InputError, match=message):
        sample(diffusion, **{**ARGUMENTS, **arguments})


def test_an_argument_that_the_pipeline_does_not_take(diffusion: Any) -> None:
    with pytest.raises(InputError, match="StableDiffusionPipeline takes no guidance, strength"):
        sample(diffusion, **ARGUMENTS, guidance=2.0, strength=0.5)


def test_a_prompt_that_is_longer_than_the_text_encoder_reads(diffusion: Any) -> None:
    long = "a cat and a dog and a bird and a cow"
    with pytest.raises(PromptError, match=r"has \d+ tokens, and the text encoders of StableDiffusionPipeline read 24: shorten it"):
        sample(diffusion, ["a cat", long], steps=2, seed=0)
    with pytest.raises(PromptError, match="a prompt is a string, not int"):
        sample(diffusion, ["a cat", 3], steps=2, seed=0)  # type: ignore[list-item]


def test_a_prompt_that_one_of_the_text_encoders_reads() -> None:
    pipe, own = tiny_pipelines.build("flux")
    long = "a cat and a dog and a bird and a cow"
    assert sample(pipe, long, steps=1, seed=0, **own | {"max_sequence_length": 64}).requires_grad
    with pytest.raises(PromptError, match="FluxPipeline read 24"):
        sample(pipe, long, steps=1, seed=0, **own)


def test_pipelines_that_cannot_be_sampled(diffusion: Any) -> None:
    diffusion.unet.requires_grad_(False)
    with pytest.raises(InputError, match="no gradient reaches the images of StableDiffusionPipeline"):
        sample(diffusion, **ARGUMENTS)
    assert not sample(diffusion, **ARGUMENTS, grad_steps=0).requires_grad
    unknown = diffusers.DiffusionPipeline()
    with (
        pytest.raises(InputError, match="DiffusionPipeline has no denoiser that is known: none of unet, transformer"),
        ExitStack() as stack,
    ):
        stack.enter_context(differentiable(unknown, steps=2, active=()))
    diffusion.scheduler = None
    with pytest.raises(InputError, match="has no scheduler"):
        sample(diffusion, **ARGUMENTS)


def test_schedulers_that_do_not_tell_the_clean_image(diffusion: Any) -> None:
    diffusion.scheduler = diffusers.EDMDPMSolverMultistepScheduler()
    with pytest.raises(
        InputError, match="EDMDPMSolverMultistepScheduler with prediction_type 'epsilon'; use another scheduler, or no stop_at"
    ):
        sample(diffusion, **ARGUMENTS, stop_at=3)


def test_videos_of_one_frame_are_images() -> None:
    pipe, own = tiny_pipelines.build("wan")
    with pytest.raises(InputError, match="WanPipeline made videos of 2 frames; ask for an image by num_frames=1"):
        sample(pipe, "a cat", steps=1, seed=0, **own | {"num_frames": 5})
