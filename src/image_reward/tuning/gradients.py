"""The gradient of one step of the optimizer: which images it is computed on, and the losses of these."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from image_reward.errors import AnswerError, RewardError
from image_reward.scorers.base import Scorer
from image_reward.scorers.together import score_together
from image_reward.tuning import methods, objectives
from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import pretraining_loss
from image_reward.tuning.generator import TunedGenerator
from image_reward.tuning.methods import seed_of
from image_reward.tuning.processes import reduce_gradients
from image_reward.tuning.prompts import TuningPrompts, other_prompts
from image_reward.tuning.rewarding import rewards_of_prompts
from image_reward.tuning.sampling import DenoiserCall, recorded_calls, replaced
from image_reward.tuning.untuned import Untuned


@dataclass(frozen=True)
class Work:
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
    imitated_steps: list[int]
    """The denoising steps at which best-of learns each of the best images."""


class Gradients:
    """Computes them. ``scorer`` is the reward, ``trained`` the weights."""

    def __init__(
        self,
        config: Tuning,
        data: TuningPrompts,
        generator: TunedGenerator,
        scorer: Scorer[Any],
        untuned: Untuned,
        trained: Sequence[nn.Parameter],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.data, self.generator, self.scorer, self.untuned = config, data, generator, scorer, untuned
        self.trained, self.accelerator = trained, accelerator
        self.margin_weight = config.margin_weight if scorer.reads_prompt and config.margin_weight else 0.0

    def work(self, step: int) -> Work:
        """What a step does. It depends on seed and step alone."""
        config = self.config
        draws = random.Random(f"{config.seed} step {step}")
        prompts = self.data.step(config.seed, step, config.batch_images)
        places = range(step * config.batch_images, (step + 1) * config.batch_images)
        return Work(
            prompts=prompts,
            others=other_prompts(prompts, self.data.train, draws),
            seeds=[seed_of(config.seed, "image", place * config.candidates) for place in places],
            rollout=None if config.method == "best-of" else methods.rollout(config, draws),
            samples=[draws.randrange(len(self.untuned.samples)) for _ in places] if self.untuned.samples else [],
            noise_steps=[draws.randrange(self.generator.steps) for _ in places],
            noise_seeds=[seed_of(config.seed, "noise", place) for place in places],
            imitated_steps=methods.noise_levels(self.generator.steps, config.repeats, draws),
        )

    def accumulate(self, work: Work) -> dict[str, float]:
        """Accumulate the gradient of the mean over the images of the step, other processes' included. Returns measures of all processes."""
        config, accelerator = self.config, self.accelerator
        rewarded = work.rollout is None or bool(config.reward_weight)  # else images would be made for nothing
        names = ("loss", "reward", "margin", "pretraining", "kl", *(["refused"] if work.rollout is None else []), "images")
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
        reduce_gradients(accelerator, self.trained)
        totals = list(sums.values())
        if accelerator.num_processes > 1:
            totals = accelerator.reduce(
                torch.tensor(list(sums.values()), dtype=torch.float64, device="cpu").to(accelerator.device), "sum"
            ).tolist()
        *means, _ = (total / totals[-1] for total in totals)
        return dict(zip(sums, means, strict=False))

    # --- the reward ---

    def _reinforce(self, work: Work, rollout: methods.Rollout, rows: Sequence[int], share: float, sums: dict[str, float]) -> None:
        """The gradient of the reward, through some of the denoising steps."""
        config, generator = self.config, self.generator
        prompts, others = [work.prompts[row] for row in rows], [work.others[row] for row in rows]
        seeds = [work.seeds[row] for row in rows]
        each = iter(methods.images(generator.pipe, rollout, prompts, seeds, **generator.arguments))
        for _ in range(rollout.repeats):
            record: AbstractContextManager[list[DenoiserCall]] = recorded_calls(generator.pipe) if config.kl_weight else nullcontext([])
            with record as calls, generator.autocast(), replaced(generator.pipe, "scheduler", generator.scheduler):
                pixels = next(each)
            if not bool(pixels.isfinite().all()):  # no scorer takes them; the loop ends the run in all processes
                sums["loss"] = sums["reward"] = math.nan
                return
            loss = self._reward_loss(prompts, others, pixels.float(), sums, rollout.repeats)
            if config.kl_weight:
                divergence = torch.stack([self._divergence(call) for call in calls]).mean() * len(rows)
                sums["kl"] += divergence.item() / rollout.repeats
                loss = loss + config.kl_weight * divergence
            loss = (config.reward_weight or 0.0) * loss
            sums["loss"] += loss.item() / rollout.repeats
            self.accelerator.backward(loss * (share / rollout.repeats))

    def _reward_loss(self, prompts: Sequence[str], others: Sequence[str], pixels: Tensor, sums: dict[str, float], repeats: int) -> Tensor:
        """The sum over the images."""
        config = self.config
        if config.smoothing:
            pixels = objectives.worst_nearby(lambda at: self.scorer.rewards(list(prompts), at), pixels, config.smoothing)
        rewards = rewards_of_prompts(self.scorer, [prompts, others] if self.margin_weight else [prompts], pixels)
        sums["reward"] += rewards[:, 0].sum().item() / repeats
        loss = _objective(rewards[:, 0], self.untuned.target)
        if self.margin_weight:
            margins = objectives.prompt_margin(rewards[:, 0], rewards[:, 1:])
            sums["margin"] += margins.sum().item() / repeats
            loss = loss + self.margin_weight * _objective(margins, self.untuned.margin_target)
        return loss.sum()

    def _divergence(self, call: DenoiserCall) -> Tensor:
        return objectives.divergence_from_untuned(call.prediction, self.generator.untuned_prediction(call)).mean()

    # --- the denoising loss ---

    def _imitate(self, work: Work, rows: Sequence[int], share: float, sums: dict[str, float]) -> None:
        """The ordinary loss on the best of several images of each prompt, at several noise levels."""
        config, generator = self.config, self.generator
        prompts, latents = [work.prompts[row] for row in rows], []
        for row, prompt in zip(rows, prompts, strict=True):
            candidates: list[tuple[float, Tensor]] = []
            reasons: list[RewardError] = []
            for start in range(0, config.candidates, config.micro_images):
                seeds = [work.seeds[row] + i for i in range(start, min(start + config.micro_images, config.candidates))]
                made = generator.generate([prompt] * len(seeds), seeds, generator.arguments)
                refused: dict[int, RewardError] = {}
                (scored,) = score_together([self.scorer], [prompt] * len(seeds), list(made.pixels.float().cpu()), refused)
                candidates += [(scored[place], made.latents[place]) for place in range(len(seeds)) if place not in refused]
                reasons += refused.values()
            if broken := [reason for reason in reasons if not isinstance(reason, AnswerError)]:  # the network, and not its answer
                raise broken[0]
            if not candidates:
                raise AnswerError(f"{self.scorer.name} gives no image of {config.candidates} for {prompt!r:.200} a reward: {reasons[0]}")
            sums["refused"] += len(reasons)
            rewards = torch.tensor([[reward for reward, _ in candidates]])
            latents.append(candidates[int(methods.best_candidates(rewards))][1])
            sums["reward"] += float(rewards.mean())
        clean = torch.stack(latents)
        weight = (config.reward_weight or 0.0) / config.repeats
        for number, step in enumerate(work.imitated_steps):
            noise = methods.noise_like(clean, [seed_of(work.noise_seeds[row], number) for row in rows])
            with generator.autocast():
                loss = pretraining_loss(generator.pipe, prompts, clean, noise, self.untuned.levels, step, **generator.unguided).sum()
            sums["pretraining"] += loss.item() / config.repeats
            sums["loss"] += loss.item() * weight
            self.accelerator.backward(loss * (weight * share))

    def _denoise(
        self, work: Work, rows: Sequence[int], prompts: Sequence[str], latents: Tensor, weight: float, sums: dict[str, float]
    ) -> None:
        """The gradient of the ordinary loss, each image with a noise level of its own."""
        generator = self.generator
        for i, row in enumerate(rows):
            clean = latents[i : i + 1].to(self.accelerator.device)
            noise = methods.noise_like(clean, [work.noise_seeds[row]])
            with generator.autocast():
                loss = pretraining_loss(
                    generator.pipe, [prompts[i]], clean, noise, self.untuned.levels, work.noise_steps[row], **generator.unguided
                ).sum()
            sums["pretraining"] += loss.item()
            sums["loss"] += loss.item() * weight * len(work.prompts)
            self.accelerator.backward(loss * weight)


def _objective(values: Tensor, target: float | None) -> Tensor:
    return objectives.negative(values) if target is None else objectives.hinge(values, target)
