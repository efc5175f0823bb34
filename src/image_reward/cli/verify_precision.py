"""`image-reward verify-precision IMAGE... --prompt TEXT --dtype int8`"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import tyro

from image_reward.cli.options import (
    Images,
    ModelOptions,
    PromptOptions,
    PromptSet,
    ReportOptions,
    UsageError,
    check_images,
    find_images,
    print_notices,
)
from image_reward.terminal import note

_NUM_TIMED = 32


@dataclass
class VerifyPrecision(ModelOptions, ReportOptions, PromptOptions):
    """Measure the effect of `--dtype` and `--compile` on rewards and speed, with your own images.

    The model is loaded twice, in float32 and with these options, and scores every prompt with every image. A pair of images of one prompt
    flips if the two do not agree on its order. Speed is measured from image file to reward, alternating between the two, on at
    most 32 of the images.
    """

    images: Images
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The prompt that the images were made from. Repeat the option for several prompts, each scored with every image."""
    prompts: PromptSet = None
    max_flips: float | None = None
    """Exit with code 1 if more than this share of the pairs flips, or there are no pairs."""
    repeats: int = 3
    """Number of timings, of which the median is reported."""

    def run(self) -> int:
        self._check_usage()
        from image_reward.prompt_sets import prompts as prompts_of

        prompts = [*self.prompt, *(prompt.prompt for prompt in (prompts_of(self.prompts) if self.prompts else []))]
        images = find_images(self.images)
        check_images(images)

        from image_reward.evaluation.precision_report import precision_report
        from image_reward.scorers import load
        from image_reward.scorers.precision import agreement

        print_notices([self.model])
        plain = replace(self, inference=replace(self.inference, dtype="float32", compile=False))
        reference, reduced = load(self.model, **plain.loading), load(self.model, **self.loading)
        result = agreement(reference.matrix(prompts, images), reduced.matrix(prompts, images))
        timed = images[:_NUM_TIMED]
        speeds: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.repeats):
            for speed, scorer in zip(speeds, (reference, reduced), strict=True):
                start = time.perf_counter()
                scorer.matrix(prompts[:1], timed)
                speed.append(len(timed) / (time.perf_counter() - start))
        way = (self.inference.dtype or "float32") + (", compiled" if self.inference.compile else "")
        report = precision_report(reference.name, way, result, *map(statistics.median, speeds))
        self.write_report(lambda _: report)
        if self.max_flips is not None and not result.num_pairs:
            note("no prompt has two images of different rewards in float32, so no pair can flip; use more images")
            return 1
        if self.max_flips is not None and result.share_flipped > self.max_flips:
            note(f"{result.share_flipped:.4f} of the pairs flipped, more than {self.max_flips:g}")
            return 1
        return 0

    def _check_usage(self) -> None:
        self.check_used(bool(self.prompt), "--prompt")
        for prompt in self.prompt:
            self.check_prompt(prompt, "--prompts reads prompts from a file.")
        if not self.prompt and not self.prompts:
            raise UsageError("no prompts: use --prompt TEXT or --prompts FILE")
        if self.inference.dtype in (None, "float32") and not self.inference.compile:
            raise UsageError("there is nothing to compare: use --dtype bfloat16, float16 or int8, or --compile")
        if self.max_flips is not None and not 0 <= self.max_flips <= 1:
            raise UsageError(f"--max-flips is a share of the pairs from 0 to 1, not {self.max_flips:g}")
        if self.repeats < 1:
            raise UsageError(f"--repeats must be at least 1, not {self.repeats}")
        self.check_report()
