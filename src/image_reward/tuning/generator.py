"""The generator of a run: on its device, in its precision, its prompts encoded; and the weights of it that are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from image_reward.errors import InputError, TrainingError
from image_reward.tuning import lora, methods
from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import Generated, generate, unguided
from image_reward.tuning.encoding import EncodedPrompts
from image_reward.tuning.pipelines import call_arguments_of, load_pipeline
from image_reward.tuning.prompts import TuningPrompts
from image_reward.tuning.sampling import DenoiserCall, check_call_arguments, check_lengths, denoisers_of, replaced

LORA, DENOISER = "lora", "denoiser"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TunedGenerator:
    """A pipeline of diffusers for the length of a run, which ``stack`` ends: then the pipeline is as it was, apart from its weights."""

    def __init__(
        self,
        config: Tuning,
        pipe: Any,
        data: TuningPrompts,
        call_arguments: Mapping[str, Any],
        accelerator: Accelerator,
        stack: ExitStack,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.notes: list[str] = []
        assert config.denoising_steps is not None
        self.steps = config.denoising_steps
        if config.lora_rank:
            lora.check_installed()
        self.pipe = self._load() if pipe is None else pipe
        self.evaluation_arguments = self._arguments(call_arguments)
        """Of the pipeline's call, for the images that are evaluated."""
        self.unguided = unguided(self.pipe, self.evaluation_arguments)
        # Without guidance is how ReFL trains, and not how users will make the images that are evaluated.
        without = config.method == "refl" and config.guidance_scale is None
        self.arguments = self.unguided if without else self.evaluation_arguments
        """Of the pipeline's call, for the images that are learnt from."""
        self.scheduler = methods.published_scheduler(self.pipe) if config.method == "refl" else self.pipe.scheduler
        check_lengths(self.pipe, [*data.train, *data.held_out], self.arguments.get("max_sequence_length"))
        self._place(data, stack)
        self.frozen_sum = sum(float(p.detach().sum(dtype=torch.float64)) for d in denoisers_of(self.pipe) for p in d.parameters())
        self.untuned_weights: dict[int, dict[str, Tensor]] = {}
        """Of each denoiser, where all weights are trained and the divergence from them is needed."""

    def _load(self) -> Any:
        if not self.config.model:
            raise InputError("no generator: use --model FOLDER_OR_ID, or set model = FOLDER_OR_ID in the recipe")
        # Weights that are all trained are in float32, and must not have been rounded before.
        dtype: Any = str(_DTYPES[self.config.precision]).removeprefix("torch.") if self.config.lora_rank else "float32"
        return load_pipeline(self.config.model, dtype, str(self.accelerator.device))

    def _arguments(self, call_arguments: Mapping[str, Any]) -> dict[str, Any]:
        arguments = call_arguments_of(self.pipe, {name: getattr(self.config, name) for name in ("guidance_scale", "height", "width")})
        check_call_arguments(self.pipe, "tune()", call_arguments, "num_inference_steps", "latents")
        return arguments | dict(call_arguments)

    # --- its place ---

    def _place(self, data: TuningPrompts, stack: ExitStack) -> None:
        """The generator on its device and in its precision, all of it frozen, and its prompts encoded."""
        config, device = self.config, self.accelerator.device
        pipe = self.pipe
        pipe.set_progress_bar_config(disable=True)
        dtype = _DTYPES[config.precision]
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        if config.precision != "fp32":
            untouched = [] if config.lora_rank else denoisers_of(pipe)
            for part in pipe.components.values():
                if isinstance(part, nn.Module) and not any(part is each for each in untouched):
                    part.to(dtype)
        offloaded = any(hasattr(part, "_hf_hook") for part in pipe.components.values())
        if not offloaded:  # by enable_model_cpu_offload(), which moves parts as they are needed
            pipe.to(device)
        if config.precision == "fp16":
            # SDXL's decoder overflows in float16. Its pipeline would upcast it, but within an autocast that has no effect.
            pipe.vae.float()
            stack.enter_context(replaced(pipe.vae, "decode", _in_float32(pipe.vae.decode, device.type)))
        for part in [*denoisers_of(pipe), pipe.vae] if config.gradient_checkpointing else ():
            if getattr(part, "_supports_gradient_checkpointing", False):
                part.enable_gradient_checkpointing()
                stack.callback(part.disable_gradient_checkpointing)
        if EncodedPrompts.possible(pipe):
            self._encode_prompts(data, stack, can_free=device.type != "cpu" and not offloaded)

    def _encode_prompts(self, data: TuningPrompts, stack: ExitStack, can_free: bool) -> None:
        config, pipe = self.config, self.pipe
        encoded = EncodedPrompts(pipe)
        free = config.free_text_encoders and can_free
        if free:
            prompts = sorted({p for step in range(config.max_steps) for p in data.step(config.seed, step, config.batch_images)})
            for arguments in (self.arguments, self.evaluation_arguments, self.unguided):
                encoded.add([*prompts, *data.held_out], arguments)
            if config.micro_images > 1 and not encoded.can_be_batched([*prompts, *data.held_out]):
                self.notes.append(
                    f"the text encoders stay on the accelerator: {type(pipe).__name__} encodes prompts of different lengths differently in "
                    "a batch; micro_images = 1 frees them"
                )
                free = False
        stack.enter_context(encoded.instead_of_encoders(free))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        if self.config.precision == "fp32":
            yield
            return
        # Without its cache, which would keep copies of weights that were made without gradients in the steps before.
        with torch.autocast(self.accelerator.device.type, _DTYPES[self.config.precision], cache_enabled=False):
            yield

    # --- images ---

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], arguments: Mapping[str, Any]) -> Generated:
        """Images without gradients. Raises ``TrainingError`` for pixels that are not finite."""
        with self.autocast():
            made = generate(self.pipe, prompts, steps=self.steps, seeds=seeds, **arguments)
        if not bool(made.pixels.isfinite().all()):
            raise TrainingError(_not_finite_pixels(self.config.precision, f"an image of the prompt {prompts[0]!r:.60}"))
        return made

    # --- its weights ---

    def attach(self, stack: ExitStack) -> list[nn.Parameter]:
        """The weights to train: those of a LoRA, or all of the denoisers."""
        config = self.config
        if config.lora_rank:
            alpha = config.lora_alpha if config.lora_alpha is not None else float(config.lora_rank)
            weights = lora.attach(self.pipe, config.lora_rank, alpha, config.lora_targets or None, config.seed)
            stack.push(lambda kind, *_: lora.detach(self.pipe) if kind else None)  # after an error the pipeline is as it was
            return weights
        for denoiser in denoisers_of(self.pipe):
            denoiser.float().requires_grad_(True)
            stack.callback(denoiser.requires_grad_, False)
            if config.kl_weight:
                self.untuned_weights[id(denoiser)] = {name: w.detach().clone() for name, w in denoiser.named_parameters()}
        return [weight for denoiser in denoisers_of(self.pipe) for weight in denoiser.parameters()]

    def untuned_prediction(self, call: DenoiserCall) -> Tensor:
        """That of the untuned denoiser for the inputs of a call, without gradients."""
        with self.autocast(), torch.no_grad():
            if self.config.lora_rank:
                with lora.disabled(self.pipe):
                    return call.repeated()
            return call.repeated(self.untuned_weights[id(call.denoiser)])

    def write_weights(self, folder: Path, step: int) -> None:
        if self.config.lora_rank:
            metadata = {"step": str(step), "base": self.config.model, "reward": ", ".join(self.config.reward)}
            lora.save(self.pipe, folder, kohya=self.config.kohya, metadata=metadata)
        else:
            for number, denoiser in enumerate(denoisers_of(self.pipe)):
                denoiser.save_pretrained(folder / str(number) if number else folder)  # type: ignore[operator]


def kept_folder(config: Tuning, run: Path) -> Path:
    """Where a run keeps weights."""
    return run / (LORA if config.lora_rank else DENOISER)


@torch.no_grad()
def load_kept(pipe: Any, config: Tuning, run: Path) -> None:
    """Give a pipeline the weights that a run has kept."""
    folder = kept_folder(config, run)
    if config.lora_rank:
        lora.load(pipe, folder)
        return
    for number, denoiser in enumerate(denoisers_of(pipe)):
        kept = type(denoiser).from_pretrained(folder / str(number) if number else folder)  # type: ignore[attr-defined]
        denoiser.load_state_dict(kept.state_dict())


def _in_float32(decode: Callable[..., Any], device: str) -> Callable[..., Any]:
    def decoded(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return decode(latents.float(), *args, **kwargs)

    return decoded


def _not_finite_pixels(precision: str, what: str) -> str:
    remedy = "use precision bf16" if precision == "fp16" else "check the weights of the generator"
    return f"{what} has pixels that are not finite{': an overflow in float16' if precision == 'fp16' else ''}; {remedy}"
