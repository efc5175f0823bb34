"""`image-reward verify-precision IMAGE... --prompt TEXT --dtype int8`"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from image_reward.cli.options import (
    Images,
    ModelOptions,
    PromptOptions,
    ReportOptions,
    UsageError,
    find_images,
)
from image_reward.terminal import note

_NUM_TIMED = 32


@dataclass
class VerifyPrecision(ModelOptions, ReportOptions, PromptOptions):
    """Measure, on your own images, what `--dtype` and `--compile` change in rewards and in speed.

    The model is loaded twice, in float32 and as asked, and scores every prompt with every image. A pair of images of one prompt flips where
    the two ways do not put it in the same order. Speeds are from image file to reward, of up to 32 of the images in turns.
    """

    images: Images
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What the images were made for; give it several times for several prompts, each of which meets every image."""
    prompts: Path | None = None
    """A file of prompts: text with one a line, or JSON, JSONL, CSV, TSV or Parquet with a column `prompt`."""
    max_flips: float | None = None
    """Exit with 1 if more than this share of the pairs flips, or there are no pairs."""
    repeats: int = 3
    """How many times each way is timed; medians are reported."""

    def run(self) -> int:
        self._check_usage()
        from image_reward.evaluation.prompt_sets import read_prompts

        prompts = [*self.prompt, *(prompt.prompt for prompt in (read_prompts(self.prompts) if self.prompts else []))]
        if not prompts:
            raise UsageError("give --prompt TEXT or --prompts FILE")
        images = find_images(self.images)

        from image_reward.evaluation.precision_report import precision_report
        from image_reward.scorers.precision import agreement

        reference, reduced = replace(self, dtype="float32", compile=False).load(), self.load()
        result = agreement(reference.matrix(prompts, images), reduced.matrix(prompts, images))
        timed = images[:_NUM_TIMED]
        speeds: tuple[list[float], list[float]] = ([], [])
        for _ in range(self.repeats):
            for speed, scorer in zip(speeds, (reference, reduced), strict=True):
                start = time.perf_counter()
                scorer.matrix(prompts[:1], timed)
                speed.append(len(timed) / (time.perf_counter() - start))
        way = self.dtype + (", compiled" if self.compile else "")
        report = precision_report(reference.name, way, result, *map(statistics.median, speeds))
        self.write_report(lambda _: report)
        if self.max_flips is not None and not result.num_pairs:
            note("no prompt has two images that float32 puts in an order, so no pair can flip; give more images")
            return 1
        if self.max_flips is not None and result.share_flipped > self.max_flips:
            note(f"{result.share_flipped:.4f} of the pairs flipped, more than {self.max_flips:g}")
            return 1
        return 0

    def _check_usage(self) -> None:
        for prompt in self.prompt:
            self.check_prompt(prompt, "--prompts reads prompts from a file.")
        if self.dtype == "float32" and not self.compile:
            raise UsageError("there is nothing to compare: give --dtype bfloat16, float16 or int8, or --compile")
        if self.max_flips is not None and not 0 <= self.max_flips <= 1:
            raise UsageError(f"--max-flips is a share of the pairs from 0 to 1, not {self.max_flips:g}")
        if self.repeats < 1:
            raise UsageError(f"--repeats must be at least 1, not {self.repeats}")
        self.check_report()
