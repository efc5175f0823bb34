"""Tuning a generator with a reward: evaluate, save, accumulate, clip, step, log, in one loop.

The result depends on the configuration and the prompts, and not on where a run was killed (to the bit on a CPU), nor on how many processes
share the work (apart from rounding): each image has a seed of its own, the steps with gradients are drawn once for each step of the
optimizer, and the loss is a mean over the images of the whole step.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from torch import Tensor, nn

from image_reward.addresses import Address
from image_reward.errors import InputError, TrainingError
from image_reward.files import written_whole
from image_reward.images import open_image
from image_reward.reports.numbers import counted
from image_reward.reports.render import write
from image_reward.rows import read_rows
from image_reward.runs import STATE, MovingAverage, Progress, RunFolder, adamw, rate_factor, seed_step, weight_groups
from image_reward.scorers.base import Scorer
from image_reward.scorers.ensemble import Ensemble, Reference
from image_reward.scorers.loading import load_all
from image_reward.scorers.together import CompositeScorer, single_scorers
from image_reward.scorers.two_tower import TwoTowerScorer
from image_reward.tuning import lora, methods, monitors, objectives
from image_reward.tuning.card import tuning_card, write_card
from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import Generated, NoiseLevels, encode_images, generate, pretraining_loss, unguided
from image_reward.tuning.encoding import EncodedPrompts
from image_reward.tuning.monitors import Evaluation, Thresholds, Verdict
from image_reward.tuning.noise import check_gives_gradients
from image_reward.tuning.page import EVALUATIONS, PAGE, draw_curves, evaluation_grid, page
from image_reward.tuning.pipelines import call_arguments_of, load_pipeline
from image_reward.tuning.prompts import TuningPrompts, other_prompts
from image_reward.tuning.result import TuningResult
from image_reward.tuning.sampling import DenoiserCall, check_call_arguments, check_lengths, denoisers_of, recorded_calls, replaced
from image_reward.tuning.strengths import STRENGTHS, Strength

LORA, DENOISER = "lora", "denoiser"
UNTUNED = "untuned.pt"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_UNREACHABLE = 6.0  # standard deviations of the untuned rewards above their mean
T = TypeVar("T")


@dataclass
class RunState:
    """What changes from step to step, apart from weights and moments: saved as it is, so that a killed run continues with it."""

    step: int = 0
    """Steps completed."""
    kept_step: int | None = None
    """The step whose weights are kept; None before the first evaluation."""
    stopped: bool = False
    """Whether the monitors have ended the run."""


@dataclass(frozen=True)
class Untuned:
    """What is known of the generator before the first step, in a file of its own, since a continued run has tuned weights."""

    target: float | None
    margin_target: float | None
    references: tuple[tuple[float, float], ...]
    """Mean and standard deviation of the rewards by each scorer of the reward."""
    pixels: Tensor
    """Of the held-out prompts, uint8 [N, 3, H, W]."""
    samples: tuple[str, ...]
    """Prompts of the images for the pretraining loss."""
    latents: Tensor | None
    """The clean samples of these."""
    levels: NoiseLevels


def tune(
    config: Tuning,
    pipe: Any = None,
    *,
    prompts: Sequence[str] | None = None,
    held_out: Sequence[str] | None = None,
    scorers: Mapping[str, Scorer[Any]] | None = None,
    **call_arguments: Any,
) -> TuningResult:
    """Tune a generator into the folder ``config.output``, or continue the run that is there.

    Args:
        config: All settings; see ``Tuning``.
        pipe: A text-to-image pipeline of diffusers; ``config.model`` is loaded without one, and otherwise only recorded. It is left with
            the weights that were kept.
        prompts: Training prompts, in place of ``config.prompts``.
        held_out: Held-out prompts, in place of ``config.held_out``.
        scorers: Loaded scorers by their names in ``config.reward`` and ``config.watch``; others are loaded.
        call_arguments: Further arguments of the pipeline, such as ``negative_prompt``.

    Raises ``InputError``, ``PromptError`` and ``FileNotFoundError`` for what can be seen before the first step, ``TrainingError`` for what
    goes wrong after.
    """
    accelerator = _accelerator(config)
    with accelerator.main_process_first():
        folder = RunFolder(Address.parse(config.output).local, config)
    if result := folder.result():
        Progress(0, 0, accelerator.is_main_process).say(f"{config.output} holds a finished run")
        if pipe is not None:
            _load_kept(pipe, config, folder.path / (LORA if config.lora_rank else DENOISER))
        return TuningResult(**result | {"watched": {name: tuple(means) for name, means in result["watched"].items()}})
    with ExitStack() as stack:
        with folder.beginning(UNTUNED):
            data = TuningPrompts.of(config, prompts, held_out)
            run = _Run(config, pipe, data, scorers or {}, call_arguments, folder, accelerator, stack)
        state = run.state
        if state.kept_step is None:
            run.evaluate()
        while state.step < config.max_steps and not state.stopped:
            seed_step(config.seed, state.step, accelerator.process_index)
            lr = config.lr * rate_factor(state.step, config.max_steps, config.warmup_steps, config.schedule)
            for group in run.optimizer.param_groups:
                group["lr"] = lr

            measures = run.accumulate(run.work(state.step))
            norm = float(accelerator.clip_grad_norm_(run.trained, config.clip or math.inf))
            run.check_finite(measures, norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
            state.step += 1
            if run.average:
                run.average.update(state.step)

            last = state.step == config.max_steps
            due = state.step % config.log_every == 0 or last
            run.show(measures, lr, due)
            if due:
                run.log("train", {**measures, "lr": lr, "norm": norm})
            evaluated = state.step % config.evaluate_every == 0 or last
            if evaluated:
                run.evaluate()
            if evaluated or state.step % config.save_every == 0:
                run.save()
        return run.finish()


@dataclass(frozen=True)
class _Work:
    """The images of one step of the optimizer, over all processes."""

    prompts: list[str]
    others: list[str]
    """Another prompt for each image, for the margin."""
    seeds: list[int]
    rollout: methods.Rollout | None
    samples: list[int]
    """Places of the samples for the pretraining loss."""
    noise_steps: list[int]
    """The denoising step of each denoising loss."""
    noise_seeds: list[int]


class _Run:
    """A run in progress: its parts, and the parts of its loop. What changes from step to step is in ``state``."""

    def __init__(
        self,
        config: Tuning,
        pipe: Any,
        data: TuningPrompts,
        scorers: Mapping[str, Scorer[Any]],
        call_arguments: Mapping[str, Any],
        folder: RunFolder,
        accelerator: Accelerator,
        stack: ExitStack,
    ) -> None:
        config = config.resolved()
        self.config, self.data, self.folder, self.accelerator = config, data, folder, accelerator
        self.notes = list(data.notes)
        assert config.denoising_steps is not None
        self.steps = config.denoising_steps

        if config.lora_rank:
            lora.check_installed()

        # --- the generator ---
        self.pipe = self._load_pipeline() if pipe is None else pipe
        self.evaluation_arguments = self._arguments(call_arguments)
        self.unguided = unguided(self.pipe, self.evaluation_arguments)
        # Without guidance is how ReFL trains, and not how users will make the images that are evaluated.
        without = config.method == "refl" and config.guidance_scale is None
        self.arguments = self.unguided if without else self.evaluation_arguments
        self.scheduler = methods.published_scheduler(self.pipe) if config.method == "refl" else self.pipe.scheduler
        self._check_prompts()
        self._place(stack)

        # --- the scorers ---
        self.rewarding, self.watching = self._load_scorers(scorers)
        self.trusted = self._trusted()

        # --- what is trained ---
        self.frozen_sum = sum(float(p.detach().sum(dtype=torch.float64)) for d in denoisers_of(self.pipe) for p in d.parameters())
        self.untuned = self._untuned()
        self.scorer = self._reward(self.untuned.references)
        self.trained = self._attach(stack)
        self.optimizer = accelerator.prepare(
            adamw(weight_groups(self.trained, config.lr, config.weight_decay), config.betas, accelerator.device)
        )
        self.average = MovingAverage(self.trained, config.ema) if config.ema else None

        # --- where a killed run stopped ---
        self.state = self._restored() or RunState()
        continued = self.state.kept_step is not None
        if accelerator.is_main_process:
            folder.forget_after(self.state.step if continued else -1)
        accelerator.wait_for_everyone()
        self.history = [_evaluation(line["evaluation"]) for line in folder.history() if line["kind"] == "evaluation"] if continued else []
        self.progress = Progress(self.state.step, config.max_steps, accelerator.is_main_process)
        for note in self.notes:
            self.progress.say(note)
        weights = f"{sum(p.numel() for p in self.trained):,} weights are trained" + (
            f" (LoRA, rank {config.lora_rank})" if config.lora_rank else ""
        )
        self.progress.say(
            f"{config.method} on {counted(len(data.train), 'prompt')}, {config.batch_images} images a step, {config.max_steps:,} steps on "
            f"{accelerator.num_processes} x {accelerator.device.type}; watched on {counted(len(data.held_out), 'held-out prompt')} with "
            f"{counted(config.images_per_prompt, 'image')} each; {weights}"
            + (f"; continued after step {self.state.step}" if continued else "")
        )

    # --- the generator ---

    def _load_pipeline(self) -> Any:
        if not self.config.model:
            raise InputError("no generator: use --model FOLDER_OR_ID, or set model = FOLDER_OR_ID in the recipe")
        # Weights that are all trained are in float32, and must not have been rounded before.
        dtype: Any = str(_DTYPES[self.config.precision]).removeprefix("torch.") if self.config.lora_rank else "float32"
        return load_pipeline(self.config.model, dtype, str(self.accelerator.device))

    def _arguments(self, call_arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the pipeline's call."""
        arguments = call_arguments_of(self.pipe, {name: getattr(self.config, name) for name in ("guidance_scale", "height", "width")})
        check_call_arguments(self.pipe, "tune()", call_arguments, "num_inference_steps", "latents")
        return arguments | dict(call_arguments)

    def _check_prompts(self) -> None:
        check_lengths(self.pipe, [*self.data.train, *self.data.held_out], self.arguments.get("max_sequence_length"))

    def _place(self, stack: ExitStack) -> None:
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
        if not EncodedPrompts.possible(pipe):
            return
        encoded = EncodedPrompts(pipe)
        free = config.free_text_encoders and device.type != "cpu" and not offloaded
        if free:
            prompts = sorted({p for step in range(config.max_steps) for p in self.data.step(config.seed, step, config.batch_images)})
            for arguments in (self.arguments, self.evaluation_arguments, self.unguided):
                encoded.add([*prompts, *self.data.held_out], arguments)
            if config.micro_images > 1 and not encoded.can_be_batched([*prompts, *self.data.held_out]):
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

    def _attach(self, stack: ExitStack) -> list[nn.Parameter]:
        config = self.config
        self.untuned_weights: dict[int, dict[str, Tensor]] = {}
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

    # --- the reward ---

    def _load_scorers(self, scorers: Mapping[str, Scorer[Any]]) -> tuple[dict[str, Scorer[Any]], dict[str, Scorer[Any]]]:
        config = self.config
        names = [*config.reward, *config.watch]
        missing = [name for name in names if name not in scorers]
        loaded = dict(scorers) | dict(zip(missing, load_all(missing, self.accelerator.device), strict=True))
        for scorer in loaded.values():
            scorer.requires_grad_(False)
        if config.method != "best-of":
            for name in config.reward:
                check_gives_gradients(loaded[name])
        return {name: loaded[name] for name in config.reward}, {name: loaded[name] for name in config.watch}

    def _trusted(self) -> list[str]:
        """The watched scorers that see images through towers of their own."""
        towers = {_tower(single) for scorer in self.rewarding.values() for single in single_scorers([scorer])}
        trusted = []
        for name, scorer in self.watching.items():
            if any(_tower(single) in towers for single in single_scorers([scorer])):
                self.notes.append(
                    f"warning: {name} is watched but shares the image tower of the reward: what fools one fools the other, so it is shown "
                    "and does not decide when to stop"
                )
            else:
                trusted.append(name)
        return trusted

    def _reward(self, references: Sequence[tuple[float, float]]) -> Scorer[Any]:
        """One scorer of all, on the scale of the untuned generator's images where there are several."""
        members = list(self.rewarding.values())
        if len(members) == 1:
            return members[0]
        num = len(self._rows())
        scales = {
            name: Reference(center, spread, num, "images of the untuned generator")
            for name, (center, spread) in zip(self.rewarding, references, strict=True)
        }
        return Ensemble(self.rewarding, references=scales, reward=self.config.combine)

    @property
    def has_margin(self) -> bool:
        return any(scorer.reads_prompt for scorer in self.rewarding.values())

    # --- the untuned generator ---

    def _untuned(self) -> Untuned:
        path = self.folder.path / UNTUNED
        is_new = not path.exists()
        self.accelerator.wait_for_everyone()
        if is_new:
            made = self._over_processes(len(self._rows()), self._make_held_out)
            samples, latents = self._samples(made[0][1])
            if self.accelerator.is_main_process:
                untuned = self._measured(torch.stack([pixels for pixels, _, _ in made]), made[0][2], samples, latents)
                with self.folder.saving(), written_whole(path) as temporary:
                    torch.save({"data": self.data.fingerprint, "frozen_sum": self.frozen_sum, **asdict(untuned)}, temporary)
            self.accelerator.wait_for_everyone()
        values = self.folder.load(UNTUNED)
        if values.pop("data") != self.data.fingerprint:
            raise InputError(
                f"{self.config.output} holds a run on other prompts; use another output, or the same prompts to continue that run"
            )
        if not math.isclose(values.pop("frozen_sum"), self.frozen_sum, rel_tol=1e-6, abs_tol=1e-6):  # the last digits depend on the threads
            raise InputError(f"the generator is not what the run in {self.config.output} started from: its weights have changed")
        values["levels"] = NoiseLevels(**values["levels"])
        return Untuned(**values)

    def _measured(self, pixels: Tensor, levels: NoiseLevels, samples: Sequence[str], latents: Tensor | None) -> Untuned:
        """``pixels``: of the held-out prompts. Sets the target and the scale of each scorer of the reward."""
        config = self.config
        prompts, others = [prompt for prompt, _, _ in self._rows()], [other for _, other, _ in self._rows()]
        rewards = [torch.tensor(scorer.score(prompts, list(pixels))) for scorer in self.rewarding.values()]
        references = tuple((float(each.mean()), max(float(each.std(correction=0)), 1e-6)) for each in rewards)
        target = margin_target = None
        if config.objective == "hinge" and config.method != "best-of":
            scorer = self._reward(references)
            own, other = (torch.tensor(scorer.score(texts, list(pixels))) for texts in (prompts, others))
            target = config.target if config.target is not None else objectives.target_reward(own, config.target_quantile)
            margin_target = objectives.target_reward(own - other, config.target_quantile)
            self._check_target(target, own)
        return Untuned(target, margin_target, references, (pixels * 255).round().to(torch.uint8), tuple(samples), latents, levels)

    def _check_target(self, target: float, rewards: Tensor) -> None:
        if target <= float(rewards.min()):
            raise InputError(
                f"the target {target:g} is below the rewards of all images of the untuned generator (at least {float(rewards.min()):.3f}), "
                "so nothing would be learnt: set a higher target, or leave it out and use target_quantile"
            )
        distance = (target - float(rewards.mean())) / max(float(rewards.std()), 1e-6)
        if distance > _UNREACHABLE:
            self.notes.append(
                f"warning: the target {target:g} is {distance:.0f} standard deviations above the rewards of the untuned generator "
                f"({float(rewards.mean()):.3f} on average): it may be out of reach, so that the reward never stops pulling. Leave target "
                "out to use target_quantile"
            )

    def _samples(self, like: Tensor) -> tuple[list[str], Tensor | None]:
        """The clean samples of the pretraining loss and their prompts: of the user's images, or of the generator's own."""
        config = self.config
        if not config.pretraining_weight:
            return [], None
        if config.pretraining_images is None:
            prompts = [self.data.train[i % len(self.data.train)] for i in range(config.pretraining_samples)]
            seeds = [_seed(config.seed, "sample", i) for i in range(len(prompts))]

            def make(rows: Sequence[int]) -> list[Tensor]:
                return list(
                    self._generate([prompts[row] for row in rows], [seeds[row] for row in rows], self.evaluation_arguments).latents.cpu()
                )

            return prompts, torch.stack(self._over_processes(len(prompts), make))
        rows = list(read_rows(Address.parse(config.pretraining_images), ("prompt", "image")))
        if not rows:
            raise InputError(f"{config.pretraining_images} has no rows; give rows with prompt and image, or leave it out")
        place = Address.parse(config.pretraining_images).parent
        prompts, latents = [], []
        for number, row in enumerate(rows, start=1):
            prompt, image = row.values.get("prompt"), row.values.get("image")
            if not isinstance(prompt, str) or not isinstance(image, str):
                raise InputError(f"{config.pretraining_images}, row {number}: it needs prompt and image, both texts")
            prompts.append(prompt)
            latents.append(self._encoded(place.join(image).local, like))
        check_lengths(self.pipe, prompts, self.arguments.get("max_sequence_length"))
        return prompts, torch.cat(latents)

    def _encoded(self, image: Any, like: Tensor) -> Tensor:
        """An image, scaled and cropped in the middle to the size of the generator's, as a clean sample."""
        import numpy as np

        opened = open_image(str(image)).convert("RGB")
        height, width = self._size
        scale = max(height / opened.height, width / opened.width)
        resized = opened.resize(
            (max(width, round(opened.width * scale)), max(height, round(opened.height * scale))), Image.Resampling.BICUBIC
        )
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        array = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
        pixels = torch.from_numpy(array).permute(2, 0, 1)[None].to(self.accelerator.device)
        return encode_images(self.pipe, pixels, like[None]).cpu()

    # --- evaluation ---

    def _rows(self) -> list[tuple[str, str, int]]:
        """Prompt, another prompt, and seed of each image that is evaluated."""
        prompts = self.data.held_out
        return [
            (
                prompt,
                prompts[(place + 1) % len(prompts)],
                _seed(self.config.seed, "held out", place * self.config.images_per_prompt + image),
            )
            for place, prompt in enumerate(prompts)
            for image in range(self.config.images_per_prompt)
        ]

    def _generate(self, prompts: Sequence[str], seeds: Sequence[int], arguments: Mapping[str, Any]) -> Generated:
        with self.autocast():
            made = generate(self.pipe, prompts, steps=self.steps, seeds=seeds, **arguments)
        if not bool(made.pixels.isfinite().all()):
            raise TrainingError(_not_finite_pixels(self.config.precision, f"an image of the prompt {prompts[0]!r:.60}"))
        self._size = tuple(made.pixels.shape[-2:])
        return made

    def _make_held_out(self, places: Sequence[int]) -> list[tuple[Tensor, Tensor, NoiseLevels]]:
        rows = [self._rows()[place] for place in places]
        made = self._generate([prompt for prompt, _, _ in rows], [seed for _, _, seed in rows], self.evaluation_arguments)
        return [
            (pixels, latents, made.levels) for pixels, latents in zip(made.pixels.float().cpu(), made.latents.float().cpu(), strict=True)
        ]

    def _over_processes(self, num: int, compute: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
        """What ``compute`` makes of the places from 0 to ``num``, in micro-batches, which the processes share."""
        accelerator, size = self.accelerator, self.config.micro_images
        mine = list(range(accelerator.process_index, num, accelerator.num_processes))
        done = [
            (place, result)
            for start in range(0, len(mine), size)
            for place, result in zip(mine[start : start + size], compute(mine[start : start + size]), strict=True)
        ]
        return [result for _, result in sorted(gather_object(done), key=lambda pair: pair[0])]

    def evaluate(self) -> None:
        """Measure the held-out prompts, judge the history, and keep the weights if they show no signs of over-optimisation."""
        state = self.state
        with self.average.in_place() if self.average else nullcontext():
            evaluation, pixels = self._evaluation(state.step)
            self.history.append(evaluation)
            verdict = self.verdict()
            if verdict.last_good == state.step:
                state.kept_step = state.step
                self._keep_weights()
        state.stopped = verdict.stop
        self.log("evaluation", evaluation.summary() | {"evaluation": asdict(evaluation)})
        if self.accelerator.is_main_process:
            with self.folder.saving():
                evaluation_grid(self.folder.path / EVALUATIONS, state.step, pixels, self.config.images_per_prompt)
                self._write_page(verdict)
        self.progress.say(f"step {state.step}: {verdict.sentence}")
        self.accelerator.wait_for_everyone()

    def _evaluation(self, step: int) -> tuple[Evaluation, Tensor]:
        """The main process scores, so that all processes judge by the same numbers."""
        pixels = self.untuned.pixels.float() / 255
        if step:
            made = self._over_processes(len(self._rows()), self._make_held_out)
            pixels = torch.stack([image for image, _, _ in made]).mul(255).round().div(255)  # as saved images are
        (evaluation,) = broadcast_object_list([self._scored(step, pixels) if self.accelerator.is_main_process else None])
        return evaluation, pixels

    def _scored(self, step: int, pixels: Tensor) -> Evaluation:
        untuned = self.untuned.pixels.float() / 255
        prompts, others = [prompt for prompt, _, _ in self._rows()], [other for _, other, _ in self._rows()]

        def scored(scorer: Scorer[Any], texts: Sequence[str], images: Tensor) -> tuple[float, ...]:
            return tuple(scorer.score(list(texts), list(images)))

        rewards = scored(self.scorer, prompts, pixels)
        sides = [row for row, prompt in enumerate(prompts) if monitors.can_be_mirrored(prompt)]
        flipped = scored(self.scorer, [prompts[row] for row in sides], monitors.mirrored(pixels[sides])) if sides else ()
        above = [reward >= self.untuned.target for reward in rewards] if self.untuned.target is not None else []
        return Evaluation(
            step=step,
            rewards=rewards,
            watched={name: scored(scorer, prompts, pixels) for name, scorer in self.watching.items()},
            margins=_differences(rewards, scored(self.scorer, others, pixels)) if self.has_margin else (),
            mirrored=_differences(flipped, [rewards[row] for row in sides]),
            blurred=_differences(scored(self.scorer, prompts, monitors.blurred(pixels)), rewards),
            distances=monitors.distances(pixels, prompts),
            drifts=monitors.drifts(pixels, untuned),
            above_target=sum(above) / len(above) if above else 0.0,
        )

    def verdict(self) -> Verdict:
        config = self.config
        limits = Thresholds(
            config.least_rise,
            config.least_margin_share,
            config.least_robust_share,
            config.least_distance_share,
            config.patience if config.auto_stop else None,
        )
        return monitors.judge(self.history, limits, self.trusted, is_last=self.history[-1].step == config.max_steps)

    def _write_page(self, verdict: Verdict, strengths: Sequence[Strength] = ()) -> None:
        folder = self.folder.path
        log, target = self.folder.history(), self.untuned.target
        report = page(folder, self.config, self.history, verdict, self.data.held_out, log, target, strengths)
        write(report, folder / PAGE)

    def _keep_weights(self) -> None:
        if not self.accelerator.is_main_process:
            return
        with self.folder.saving(), _replaced_folder(self.model_folder) as new:
            self._write_weights(new)

    def _write_weights(self, folder: Path) -> None:
        if self.config.lora_rank:
            metadata = {"step": str(self.state.step), "base": self.config.model, "reward": ", ".join(self.config.reward)}
            lora.save(self.pipe, folder, kohya=self.config.kohya, metadata=metadata)
        else:
            for number, denoiser in enumerate(denoisers_of(self.pipe)):
                denoiser.save_pretrained(folder / str(number) if number else folder)  # type: ignore[operator]

    @property
    def model_folder(self) -> Path:
        return self.folder.path / (LORA if self.config.lora_rank else DENOISER)

    # --- saving and restoring ---

    def save(self) -> None:
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        if self.accelerator.is_main_process:
            self.folder.save_state(
                {
                    "run": asdict(self.state),
                    "weights": [weight.detach() for weight in self.trained],
                    "optimizer": self.optimizer.state_dict(),
                    "average": self.average.averages if self.average else None,
                    "scaler": scaler,
                }
            )
            if self.config.keep_checkpoints and self.state.step % self.config.save_every == 0:
                self._keep_checkpoint()
        self.accelerator.wait_for_everyone()

    def _keep_checkpoint(self) -> None:
        """Keep the state that was just saved, and its weights, and drop the oldest of too many."""
        path = self.folder.path
        with self.folder.saving(), _replaced_folder(path / f"checkpoint-{self.state.step}") as new:
            shutil.copyfile(path / STATE, new / STATE)
            with self.average.in_place() if self.average else nullcontext():
                self._write_weights(new)
        steps = sorted(int(kept.name.removeprefix("checkpoint-")) for kept in path.glob("checkpoint-*") if kept.name[11:].isdigit())
        for step in steps[: -self.config.keep_checkpoints]:
            shutil.rmtree(path / f"checkpoint-{step}")

    @torch.no_grad()
    def _restored(self) -> RunState | None:
        saved = self.folder.load_state()
        if saved is None:
            return None
        previous = self.model_folder.with_name(f"{self.model_folder.name}.previous")
        if self.accelerator.is_main_process and previous.exists() and not self.model_folder.exists():
            previous.rename(self.model_folder)  # the run was killed between two renames
        for weight, value in zip(self.trained, saved["weights"], strict=True):
            weight.copy_(value)
        if self.average:
            for average, value in zip(self.average.averages, saved["average"], strict=True):
                average.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        return RunState(**saved["run"])

    # --- the parts of the loop ---

    def work(self, step: int) -> _Work:
        """What a step does. It depends on seed and step alone."""
        config = self.config
        draws = random.Random(f"{config.seed} step {step}")
        prompts = self.data.step(config.seed, step, config.batch_images)
        places = range(step * config.batch_images, (step + 1) * config.batch_images)
        return _Work(
            prompts=prompts,
            others=other_prompts(prompts, self.data.train, draws),
            seeds=[_seed(config.seed, "image", place * config.candidates) for place in places],
            rollout=None if config.method == "best-of" else methods.rollout(config, draws),
            samples=[draws.randrange(len(self.untuned.samples)) for _ in places] if self.untuned.samples else [],
            noise_steps=[draws.randrange(self.steps) for _ in places],
            noise_seeds=[_seed(config.seed, "noise", place) for place in places],
        )

    def accumulate(self, work: _Work) -> dict[str, float]:
        """Accumulate the gradient of the mean over the images of the step, other processes' included. Returns measures of all processes."""
        config, accelerator = self.config, self.accelerator
        rewarded = work.rollout is None or bool(config.reward_weight or config.kl_weight)  # else images would be made for nothing
        names = ("loss", "reward", "margin", "pretraining", "kl", "images")
        sums: dict[str, float] = {name: 0.0 for name in names if rewarded or name not in ("reward", "margin", "kl")}
        mine = list(range(accelerator.process_index, len(work.prompts), accelerator.num_processes))
        share = 1 / len(work.prompts)
        for start in range(0, len(mine), config.micro_images):
            rows = mine[start : start + config.micro_images]
            if work.rollout is None:
                self._imitate(work, rows, share, sums)
            elif rewarded:
                self._reinforce(work, work.rollout, rows, share, sums)
            if config.pretraining_weight and self.untuned.latents is not None:
                places = [work.samples[row] for row in rows]
                prompts, latents = [self.untuned.samples[place] for place in places], self.untuned.latents[places]
                self._denoise(work, rows, prompts, latents, config.pretraining_weight * share, sums)
            sums["images"] += len(rows)
        _reduce_gradients(accelerator, self.trained)
        totals = list(sums.values())
        if accelerator.num_processes > 1:
            totals = accelerator.reduce(
                torch.tensor(list(sums.values()), dtype=torch.float64, device="cpu").to(accelerator.device), "sum"
            ).tolist()
        *means, _ = (total / totals[-1] for total in totals)
        return dict(zip(sums, means, strict=False))

    def _reinforce(self, work: _Work, rollout: methods.Rollout, rows: Sequence[int], share: float, sums: dict[str, float]) -> None:
        """The gradient of the reward, through some of the denoising steps."""
        config = self.config
        prompts, others = [work.prompts[row] for row in rows], [work.others[row] for row in rows]
        seeds = [work.seeds[row] for row in rows]
        each = iter(methods.images(self.pipe, rollout, prompts, seeds, **self.arguments))
        for _ in range(rollout.repeats):
            record: AbstractContextManager[list[DenoiserCall]] = recorded_calls(self.pipe) if config.kl_weight else nullcontext([])
            with record as calls, self.autocast(), replaced(self.pipe, "scheduler", self.scheduler):
                pixels = next(each)
            if not bool(pixels.isfinite().all()):  # no scorer takes them; ``check_finite`` ends the run in all processes
                sums["loss"] = sums["reward"] = math.nan
                return
            loss = self._reward_loss(prompts, others, pixels.float(), sums, rollout.repeats)
            if config.kl_weight:
                divergence = torch.stack([self._divergence(call) for call in calls]).mean() * len(rows)
                sums["kl"] += divergence.item() / rollout.repeats
                loss = loss + config.kl_weight * divergence
            sums["loss"] += loss.item() / rollout.repeats
            self.accelerator.backward(loss * (share / rollout.repeats))

    def _reward_loss(self, prompts: Sequence[str], others: Sequence[str], pixels: Tensor, sums: dict[str, float], repeats: int) -> Tensor:
        """The sum over the images, weighted."""
        config = self.config
        assert config.reward_weight is not None
        if config.smoothing:
            pixels = objectives.worst_nearby(lambda at: self.scorer.rewards(list(prompts), at), pixels, config.smoothing)
        margin_weight = config.margin_weight if self.has_margin and config.margin_weight else 0.0
        rewards = rewards_of_prompts(self.scorer, [prompts, others] if margin_weight else [prompts], pixels)
        sums["reward"] += rewards[:, 0].sum().item() / repeats
        loss = self._objective(rewards[:, 0], self.untuned.target)
        if margin_weight:
            margins = objectives.prompt_margin(rewards[:, 0], rewards[:, 1:])
            sums["margin"] += margins.sum().item() / repeats
            loss = loss + margin_weight * self._objective(margins, self.untuned.margin_target)
        return config.reward_weight * loss.sum()

    def _objective(self, values: Tensor, target: float | None) -> Tensor:
        return objectives.negative(values) if target is None else objectives.hinge(values, target)

    def _divergence(self, call: DenoiserCall) -> Tensor:
        with self.autocast(), torch.no_grad():
            if self.config.lora_rank:
                with lora.disabled(self.pipe):
                    untuned = call.repeated()
            else:
                untuned = call.repeated(self.untuned_weights[id(call.denoiser)])
        return objectives.divergence_from_untuned(call.prediction, untuned).mean()

    def _imitate(self, work: _Work, rows: Sequence[int], share: float, sums: dict[str, float]) -> None:
        """The ordinary loss on the best of several images of each prompt."""
        config = self.config
        for row in rows:
            prompt = work.prompts[row]
            best: list[tuple[float, Tensor]] = []
            for start in range(0, config.candidates, config.micro_images):
                seeds = [work.seeds[row] + i for i in range(start, min(start + config.micro_images, config.candidates))]
                made = self._generate([prompt] * len(seeds), seeds, self.arguments)
                best += zip(self.scorer.score(prompt, list(made.pixels.float().cpu())), made.latents, strict=True)
            rewards = torch.tensor([[reward for reward, _ in best]])
            place = int(methods.best_candidates(rewards))
            sums["reward"] += float(rewards.mean())
            self._denoise(work, [row], [prompt], best[place][1][None], (config.reward_weight or 0.0) * share, sums)

    def _denoise(
        self, work: _Work, rows: Sequence[int], prompts: Sequence[str], latents: Tensor, weight: float, sums: dict[str, float]
    ) -> None:
        """The gradient of the ordinary loss, each image with a noise level of its own."""
        for i, row in enumerate(rows):
            clean = latents[i : i + 1].to(self.accelerator.device)
            noise = methods.noise_like(clean, [work.noise_seeds[row]])
            with self.autocast():
                loss = pretraining_loss(
                    self.pipe, [prompts[i]], clean, noise, self.untuned.levels, work.noise_steps[row], **self.unguided
                ).sum()
            sums["pretraining"] += loss.item()
            sums["loss"] += loss.item() * weight * len(work.prompts)
            self.accelerator.backward(loss * weight)

    def check_finite(self, measures: Mapping[str, float], norm: float) -> None:
        if math.isfinite(measures["loss"]) and (math.isfinite(norm) or self.config.precision == "fp16"):
            return  # in float16 an infinite gradient is common: the scaler skips the step and lowers its factor
        self.optimizer.zero_grad()
        reward, kept = f", its reward {measures['reward']:.4g}" if "reward" in measures else "", ""
        if self.state.step:
            self.save()  # the state before this step, whose weights are good
            kept = f" The state before it is in {self.config.output}."
        overflow = " In float16 numbers above 65,504 overflow: bf16 does not." if self.config.precision == "fp16" else ""
        raise TrainingError(
            f"the loss of step {self.state.step + 1} is {measures['loss']}{reward}, and its gradient's norm {norm}.{kept}{overflow} Try "
            "in a new folder a lower lr, a warm-up, or precision "
            f"{'fp32' if self.config.precision == 'bf16' else 'bf16 or fp32'}"
        )

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log({"kind": kind, "step": self.state.step, **values})

    def show(self, measures: Mapping[str, float], lr: float, due: bool) -> None:
        reward = f"reward {measures['reward']:+.3f}  " if "reward" in measures else ""
        values = f"{reward}loss {measures['loss']:.4f}  lr {lr:.2e}"
        self.progress.step(self.state.step, self.config.batch_images, values, due)

    # --- the end ---

    def finish(self) -> TuningResult:
        """Put the kept weights in place, and write the result."""
        state, accelerator = self.state, self.accelerator
        assert state.kept_step is not None
        accelerator.wait_for_everyone()
        _load_kept(self.pipe, self.config, self.model_folder)
        verdict = self.verdict()
        kept = next(each for each in self.history if each.step == state.kept_step)
        strengths: list[Strength] = []
        if self.config.lora_rank and state.kept_step:
            strengths.append(Strength(0.0, self.history[0]))
            for strength in STRENGTHS[1:-1]:
                with lora.strength(self.pipe, strength):
                    strengths.append(Strength(strength, self._evaluation(state.step)[0]))
            strengths.append(Strength(1.0, kept))
        result = TuningResult(
            model=str(self.model_folder),
            steps=state.step,
            kept_step=state.kept_step,
            stopped=state.stopped,
            verdict=verdict.sentence,
            untuned_reward=self.history[0].reward,
            reward=kept.reward,
            target=self.untuned.target,
            watched={name: (monitors.mean(self.history[0].watched[name]), monitors.mean(kept.watched[name])) for name in self.watching},
            report=str(self.folder.path / PAGE),
        )
        if accelerator.is_main_process:
            with self.folder.saving():
                self._write_page(verdict, strengths)
                if self.config.lora_rank:
                    drawn = draw_curves(self.model_folder, self.history, self.folder.history())
                    write_card(self.model_folder, tuning_card(self.config, result, strengths, curves=drawn is not None))
            self.folder.save_result(asdict(result))
        accelerator.wait_for_everyone()
        return result


# --- helpers -------------------------------------------------------------------------------------------------------------------------


def rewards_of_prompts(scorer: Scorer[Any], prompts: Sequence[Sequence[str]], pixels: Tensor) -> Tensor:
    """Rewards [B, P] of images [B, 3, H, W] for P lists of B prompts, with gradients; a scorer of two towers encodes each image once."""
    if isinstance(scorer, CompositeScorer):
        members = torch.stack([rewards_of_prompts(member, prompts, pixels) for member in scorer.scorers])
        return scorer.combine(members.flatten(1)).view_as(members[0])
    if not isinstance(scorer, TwoTowerScorer) or len(prompts) == 1:
        return torch.stack([scorer.rewards(list(each), pixels) for each in prompts], dim=1)
    batch = scorer.prepare.of_tensors([text for each in prompts for text in each], pixels.to(scorer.device))
    features = scorer.encode(batch.pixels)
    ids, mask = (tensor.to(scorer.device).view(len(prompts), len(pixels), -1).transpose(0, 1) for tensor in (batch.ids, batch.mask))
    return scorer.score_pairs(features, ids, mask)


def _accelerator(config: Tuning) -> Accelerator:
    cpu = config.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and cpu:
        raise InputError("precision fp16 does not work on a CPU; use bf16 or fp32")
    return Accelerator(cpu=cpu, mixed_precision="fp16" if config.precision == "fp16" else "no", project_dir=config.output)


def _reduce_gradients(accelerator: Accelerator, weights: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all processes; a weight without one has zeros, so that every process has the same."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    flat = accelerator.reduce(flat, "sum")
    start = 0
    for weight in weights:
        weight.grad = flat[start : start + weight.numel()].view_as(weight).clone()
        start += weight.numel()


@torch.no_grad()
def _load_kept(pipe: Any, config: Tuning, folder: Path) -> None:
    """Give a pipeline the weights that a run has kept."""
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


@contextmanager
def _replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``path`` if the block succeeds, and vanishes if it fails."""
    new, old = path.with_name(f"{path.name}.unfinished"), path.with_name(f"{path.name}.previous")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _tower(scorer: Scorer[Any]) -> Any:
    return scorer.image_tower if isinstance(scorer, TwoTowerScorer) else scorer


def _seed(*key: object) -> int:
    # PyTorch's generator on a CPU reads the low 32 bits of a seed alone.
    return random.Random(" ".join(map(str, key))).getrandbits(32)


def _differences(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _evaluation(values: Mapping[str, Any]) -> Evaluation:
    """That of a line of the log."""
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Evaluation(**own | {"watched": {name: tuple(each) for name, each in values["watched"].items()}})


def _not_finite_pixels(precision: str, what: str) -> str:
    remedy = "use precision bf16" if precision == "fp16" else "check the weights of the generator"
    return f"{what} has pixels that are not finite{': an overflow in float16' if precision == 'fp16' else ''}; {remedy}"
