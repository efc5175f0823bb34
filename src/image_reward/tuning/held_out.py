"""The held-out prompts of a run: their images, and what is measured of these at each evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from image_reward.scorers.base import Scorer
from image_reward.tuning import monitors
from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import NoiseLevels
from image_reward.tuning.generator import TunedGenerator
from image_reward.tuning.methods import seed_of
from image_reward.tuning.monitors import Evaluation, Thresholds, Verdict
from image_reward.tuning.processes import over_processes
from image_reward.tuning.prompts import TuningPrompts
from image_reward.tuning.rewarding import Rewarding, rewards_of_images


class HeldOut:
    """The images of all evaluations have the same noises, in the same order: several for each prompt."""

    def __init__(
        self, config: Tuning, data: TuningPrompts, generator: TunedGenerator, rewarding: Rewarding, accelerator: Accelerator
    ) -> None:
        self.config, self.generator, self.rewarding, self.accelerator = config, generator, rewarding, accelerator
        places = [place for place in range(len(data.held_out)) for _ in range(config.images_per_prompt)]
        self.prompts = [data.held_out[place] for place in places]
        self.others = [data.held_out[(place + 1) % len(data.held_out)] for place in places]
        """Another prompt for each image."""
        self.seeds = [seed_of(config.seed, "held out", number) for number in range(len(places))]

    def make(self) -> list[tuple[Tensor, Tensor, NoiseLevels]]:
        """Of each image the pixels [3, H, W], the clean sample and the schedule's noise levels; in all processes."""

        def made(places: Sequence[int]) -> list[tuple[Tensor, Tensor, NoiseLevels]]:
            prompts, seeds = [self.prompts[place] for place in places], [self.seeds[place] for place in places]
            images = self.generator.generate(prompts, seeds, self.generator.evaluation_arguments)
            pairs = zip(images.pixels.float().cpu(), images.latents.float().cpu(), strict=True)
            return [(pixels, latents, images.levels) for pixels, latents in pairs]

        return over_processes(self.accelerator, len(self.prompts), self.config.micro_images, made)

    def evaluation(self, step: int, scorer: Scorer[Any], untuned: Tensor, target: float | None) -> tuple[Evaluation, Tensor]:
        """What is measured of the generator as it is now, and its pixels. ``untuned``: the pixels of step 0, uint8 [N, 3, H, W].

        The main process scores, so that all processes judge by the same numbers.
        """
        pixels = untuned.float() / 255
        if step:
            pixels = torch.stack([image for image, _, _ in self.make()]).mul(255).round().div(255)  # as saved images are
        is_main = self.accelerator.is_main_process
        (evaluation,) = broadcast_object_list([self._scored(step, scorer, pixels, untuned.float() / 255, target) if is_main else None])
        return evaluation, pixels

    def _scored(self, step: int, scorer: Scorer[Any], pixels: Tensor, untuned: Tensor, target: float | None) -> Evaluation:
        prompts = self.prompts

        def scored(scorer: Scorer[Any], texts: Sequence[str], images: Tensor) -> tuple[float, ...]:
            return tuple(rewards_of_images(scorer, texts, list(images)))

        rewards = scored(scorer, prompts, pixels)
        sides = [row for row, prompt in enumerate(prompts) if monitors.can_be_mirrored(prompt)]
        flipped = scored(scorer, [prompts[row] for row in sides], monitors.mirrored(pixels[sides])) if sides else ()
        above = [reward >= target for reward in rewards] if target is not None else []
        return Evaluation(
            step=step,
            rewards=rewards,
            watched={name: scored(each, prompts, pixels) for name, each in self.rewarding.watched.items()},
            margins=_differences(rewards, scored(scorer, self.others, pixels)) if self.rewarding.has_margin else (),
            mirrored=_differences(flipped, [rewards[row] for row in sides]),
            blurred=_differences(scored(scorer, prompts, monitors.blurred(pixels)), rewards),
            distances=monitors.distances(pixels, prompts),
            drifts=monitors.drifts(pixels, untuned),
            above_target=sum(above) / len(above) if above else 0.0,
        )

    def verdict(self, history: Sequence[Evaluation]) -> Verdict:
        config = self.config
        limits = Thresholds(
            config.least_rise,
            config.least_margin_share,
            config.least_robust_share,
            config.least_distance_share,
            config.most_drift_share,
            config.patience if config.auto_stop else None,
        )
        return monitors.judge(history, limits, self.rewarding.trusted, is_last=history[-1].step == config.max_steps)


def _differences(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(a, b, strict=True))
