"""`image-reward filter SCORED`"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from image_reward.addresses import Address
from image_reward.cli.options import UsageError
from image_reward.terminal import note


@dataclass
class Filter:
    """Select the best rows that `image-reward score-files` scored, in their order. Rows with an error are left out.

    Give one of --min-reward, --top-fraction and --best-per-prompt.
    """

    scored: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCORED", help="The output folder of `image-reward score-files`.")]
    min_reward: float | None = None
    """Keep rows with at least this reward."""
    top_fraction: float | None = None
    """Keep this share of the rows, those with the highest rewards."""
    best_per_prompt: int | None = None
    """Keep at most this number of rows per prompt, those with the highest rewards."""
    by: str | None = None
    """The scorer to select by, if there are several."""
    output: str | None = None
    """A .parquet, .csv or .jsonl file; image paths in it are relative to it, and absolute in an object store. By default JSONL on standard
    output, with absolute paths."""

    def run(self) -> int:
        choices = [self.min_reward, self.top_fraction, self.best_per_prompt]
        if sum(value is not None for value in choices) != 1:
            raise UsageError("give one of --min-reward, --top-fraction and --best-per-prompt")
        if self.top_fraction is not None and not 0 < self.top_fraction <= 1:
            raise UsageError(f"--top-fraction is a share of the rows, more than 0 and at most 1, not {self.top_fraction:g}")
        if self.best_per_prompt is not None and self.best_per_prompt < 1:
            raise UsageError(f"--best-per-prompt must be at least 1, not {self.best_per_prompt}")
        if self.min_reward is not None and math.isnan(self.min_reward):
            raise UsageError("--min-reward is not a number")
        if self.output and Address.parse(self.output).suffix.lower() not in (".parquet", ".csv", ".jsonl"):
            raise UsageError(f"--output {self.output}: rows are written as .parquet, .csv or .jsonl; give it a name that ends so")

        from image_reward.jobs.results import filter_rows
        from image_reward.reports.numbers import counted

        count = filter_rows(
            self.scored,
            self.output or sys.stdout,
            min_reward=self.min_reward,
            top_fraction=self.top_fraction,
            best_per_prompt=self.best_per_prompt,
            by=self.by,
        )
        note(f"{counted(count, 'row')} kept{f': {self.output}' if self.output else ''}")
        return 0
