"""What is measured of the generator before the first step: the target, the scales of the scorers, samples for the pretraining loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from image_reward.addresses import Address
from image_reward.errors import InputError
from image_reward.files import written_whole
from image_reward.images import open_image
from image_reward.rows import read_rows
from image_reward.runs import RunFolder
from image_reward.tuning import objectives
from image_reward.tuning.config import Tuning
from image_reward.tuning.denoising import NoiseLevels, encode_images
from image_reward.tuning.generator import TunedGenerator
from image_reward.tuning.held_out import HeldOut
from image_reward.tuning.methods import seed_of
from image_reward.tuning.processes import over_processes
from image_reward.tuning.prompts import TuningPrompts
from image_reward.tuning.rewarding import Rewarding, rewards_of_images
from image_reward.tuning.sampling import check_lengths

UNTUNED = "untuned.pt"
_UNREACHABLE = 6.0  # standard deviations of the untuned rewards above their mean


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


class UntunedGenerator:
    """Measures it, once for each run."""

    def __init__(
        self,
        config: Tuning,
        data: TuningPrompts,
        generator: TunedGenerator,
        rewarding: Rewarding,
        held_out: HeldOut,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.data, self.generator, self.rewarding, self.held_out = config, data, generator, rewarding, held_out
        self.accelerator = accelerator
        self.notes: list[str] = []

    def measured(self, folder: RunFolder) -> Untuned:
        """What the folder has, or what is measured and kept there now.

        Raises ``InputError`` for a run on other prompts or another generator, and for a target that makes no sense.
        """
        path = folder.path / UNTUNED
        is_new = not path.exists()
        self.accelerator.wait_for_everyone()
        if is_new:
            made = self.held_out.make()
            pixels = torch.stack([pixels for pixels, _, _ in made])
            samples, latents = self._samples(made[0][1], pixels.shape[-2:])
            if self.accelerator.is_main_process:
                untuned = self._measure(pixels, made[0][2], samples, latents)
                own = {"data": self.data.fingerprint, "frozen_sum": self.generator.frozen_sum, **asdict(untuned)}
                with folder.saving(), written_whole(path) as temporary:
                    torch.save(own, temporary)
            self.accelerator.wait_for_everyone()
        values = folder.load(UNTUNED)
        output = self.config.output
        if values.pop("data") != self.data.fingerprint:
            raise InputError(f"{output} holds a run on other prompts; use another output, or the same prompts to continue that run")
        # The last digits depend on the threads.
        if not math.isclose(values.pop("frozen_sum"), self.generator.frozen_sum, rel_tol=1e-6, abs_tol=1e-6):
            raise InputError(f"the generator is not what the run in {output} started from: its weights have changed")
        values["levels"] = NoiseLevels(**values["levels"])
        return Untuned(**values)

    def _measure(self, pixels: Tensor, levels: NoiseLevels, samples: Sequence[str], latents: Tensor | None) -> Untuned:
        """``pixels``: of the held-out prompts. Sets the target and the scale of each scorer of the reward."""
        config, prompts, others = self.config, self.held_out.prompts, self.held_out.others
        rewards = [torch.tensor(rewards_of_images(scorer, prompts, list(pixels))) for scorer in self.rewarding.members.values()]
        references = tuple((float(each.mean()), max(float(each.std(correction=0)), 1e-6)) for each in rewards)
        target = margin_target = None
        if config.objective == "hinge" and config.method != "best-of":
            scorer = self.rewarding.on_scale(references, len(prompts))
            own, other = (torch.tensor(rewards_of_images(scorer, texts, list(pixels))) for texts in (prompts, others))
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

    # --- the images of the pretraining loss ---

    def _samples(self, like: Tensor, size: Sequence[int]) -> tuple[list[str], Tensor | None]:
        """The clean samples of the pretraining loss and their prompts: of the user's images, or of the generator's own.

        ``like``: such a sample; ``size``: height and width of its image in pixels.
        """
        config, generator = self.config, self.generator
        if not config.pretraining_weight:
            return [], None
        if config.pretraining_images is None:
            prompts = [self.data.train[i % len(self.data.train)] for i in range(config.pretraining_samples)]
            seeds = [seed_of(config.seed, "sample", i) for i in range(len(prompts))]

            def make(rows: Sequence[int]) -> list[Tensor]:
                own_prompts, own_seeds = [prompts[row] for row in rows], [seeds[row] for row in rows]
                return list(generator.generate(own_prompts, own_seeds, generator.evaluation_arguments).latents.cpu())

            return prompts, torch.stack(over_processes(self.accelerator, len(prompts), config.micro_images, make))
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
            latents.append(self._encoded(place.join(image).local, like, size))
        check_lengths(generator.pipe, prompts, generator.arguments.get("max_sequence_length"))
        return prompts, torch.cat(latents)

    def _encoded(self, image: Any, like: Tensor, size: Sequence[int]) -> Tensor:
        """An image, scaled and cropped in the middle to the size of the generator's, as a clean sample."""
        opened = open_image(str(image)).convert("RGB")
        height, width = size
        scale = max(height / opened.height, width / opened.width)
        resized = opened.resize(
            (max(width, round(opened.width * scale)), max(height, round(opened.height * scale))), Image.Resampling.BICUBIC
        )
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        array = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32) / 255
        pixels = torch.from_numpy(array).permute(2, 0, 1)[None].to(self.accelerator.device)
        return encode_images(self.generator.pipe, pixels, like[None]).cpu()
