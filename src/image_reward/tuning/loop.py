"""Tuning a generator with a reward: evaluate, save, accumulate, clip, step, log, in one loop.

The result depends on the configuration and the prompts, and not on where a run was killed (to the bit on a CPU), nor on how many processes
share the work (apart from rounding): each image has a seed of its own, the steps with gradients are drawn once for each step of the
optimizer, and the loss is a mean over the images of the whole step.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from image_reward.errors import TrainingError
from image_reward.reports.numbers import counted
from image_reward.reports.render import write
from image_reward.runs import STATE, MovingAverage, RunFolder, adamw, begin, open_run, rate_factor, seed_step, weight_groups
from image_reward.scorers.base import Scorer
from image_reward.tuning import lora, monitors
from image_reward.tuning.card import tuning_card, write_card
from image_reward.tuning.config import Tuning
from image_reward.tuning.generator import TunedGenerator, kept_folder, load_kept
from image_reward.tuning.gradients import Gradients
from image_reward.tuning.held_out import HeldOut
from image_reward.tuning.monitors import Evaluation, Verdict
from image_reward.tuning.page import EVALUATIONS, PAGE, draw_curves, evaluation_grid, page
from image_reward.tuning.processes import accelerator_of
from image_reward.tuning.prompts import TuningPrompts
from image_reward.tuning.result import TuningResult
from image_reward.tuning.rewarding import Rewarding, check_reward
from image_reward.tuning.strengths import STRENGTHS, Strength
from image_reward.tuning.untuned import UNTUNED, UntunedGenerator


@dataclass
class RunState:
    """What changes from step to step, apart from weights and moments: saved as it is, so that a killed run continues with it."""

    step: int = 0
    """Steps completed."""
    kept_step: int | None = None
    """The step whose weights are kept; None before the first evaluation."""
    stopped: bool = False
    """Whether the monitors have ended the run."""


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
    accelerator = accelerator_of(config)
    folder, result = open_run(config, accelerator)
    if result:
        if pipe is not None:
            load_kept(pipe, config, folder.path)
        return TuningResult(**result | {"watched": {name: tuple(means) for name, means in result["watched"].items()}})
    with ExitStack() as stack:
        with folder.beginning(UNTUNED):
            check_reward(config, scorers or {})  # before anything is loaded
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

            measures = run.gradients.accumulate(run.gradients.work(state.step))
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
        self.generator = TunedGenerator(config, pipe, data, call_arguments, accelerator, stack)
        self.rewarding = Rewarding(config, scorers, accelerator.device)
        self.held_out = HeldOut(config, data, self.generator, self.rewarding, accelerator)
        untuned = UntunedGenerator(config, data, self.generator, self.rewarding, self.held_out, accelerator)
        self.untuned = untuned.measured(folder)
        self.scorer = self.rewarding.on_scale(self.untuned.references, len(self.held_out.prompts))

        # --- what is trained ---
        self.trained = self.generator.attach(stack)
        self.optimizer = accelerator.prepare(
            adamw(weight_groups(self.trained, config.lr, config.weight_decay), config.betas, accelerator.device)
        )
        self.average = MovingAverage(self.trained, config.ema) if config.ema else None
        self.gradients = Gradients(config, data, self.generator, self.scorer, self.untuned, self.trained, accelerator)

        # --- where a killed run stopped ---
        restored = self._restored()
        self.state = restored or RunState()
        weights = f"{sum(p.numel() for p in self.trained):,} weights are trained" + (
            f" (LoRA, rank {config.lora_rank})" if config.lora_rank else ""
        )
        self.progress = begin(
            folder,
            accelerator,
            self.state.step if restored else None,
            config.max_steps,
            [*data.notes, *self.generator.notes, *self.rewarding.notes, *untuned.notes],
            f"{config.method} on {counted(len(data.train), 'prompt')}, {config.batch_images} images a step, {config.max_steps:,} steps on "
            f"{accelerator.num_processes} x {accelerator.device.type}; watched on {counted(len(data.held_out), 'held-out prompt')} with "
            f"{counted(config.images_per_prompt, 'image')} each; {weights}",
        )
        self.history = [Evaluation.of(line["evaluation"]) for line in folder.history() if line["kind"] == "evaluation"]

    # --- evaluation ---

    def evaluate(self) -> None:
        """Measure the held-out prompts, judge the history, and keep the weights if they show no signs of over-optimisation."""
        state = self.state
        with self.average.in_place() if self.average else nullcontext():
            evaluation, pixels = self.evaluation()
            self.history.append(evaluation)
            verdict = self.held_out.verdict(self.history)
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

    def evaluation(self) -> tuple[Evaluation, torch.Tensor]:
        return self.held_out.evaluation(self.state.step, self.scorer, self.untuned.pixels, self.untuned.target)

    def _write_page(self, verdict: Verdict, strengths: Sequence[Strength] = ()) -> None:
        folder = self.folder.path
        log, target = self.folder.history(), self.untuned.target
        report = page(folder, self.config, self.history, verdict, self.data.held_out, log, target, strengths)
        write(report, folder / PAGE)

    # --- saving and restoring ---

    @property
    def model_folder(self) -> Path:
        return kept_folder(self.config, self.folder.path)

    def _keep_weights(self) -> None:
        if not self.accelerator.is_main_process:
            return
        with self.folder.saving(), _replaced_folder(self.model_folder) as new:
            self.generator.write_weights(new, self.state.step)

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
                self.generator.write_weights(new, self.state.step)
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
        state, accelerator, pipe = self.state, self.accelerator, self.generator.pipe
        assert state.kept_step is not None
        accelerator.wait_for_everyone()
        load_kept(pipe, self.config, self.folder.path)
        verdict = self.held_out.verdict(self.history)
        kept = next(each for each in self.history if each.step == state.kept_step)
        strengths: list[Strength] = []
        if self.config.lora_rank and state.kept_step:
            strengths.append(Strength(0.0, self.history[0]))
            for strength in STRENGTHS[1:-1]:
                with lora.strength(pipe, strength):
                    strengths.append(Strength(strength, self.evaluation()[0]))
            strengths.append(Strength(1.0, kept))
        untuned = self.history[0]
        result = TuningResult(
            model=str(self.model_folder),
            steps=state.step,
            kept_step=state.kept_step,
            stopped=state.stopped,
            verdict=verdict.sentence,
            untuned_reward=untuned.reward,
            reward=kept.reward,
            target=self.untuned.target,
            watched={name: (monitors.mean(untuned.watched[name]), monitors.mean(kept.watched[name])) for name in self.rewarding.watched},
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
