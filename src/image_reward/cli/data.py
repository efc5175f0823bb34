"""`image-reward data check|split`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Union

import tyro

from image_reward.cli.options import ImageRoot, OutputOptions, UsageError, print_json
from image_reward.errors import InputError
from image_reward.terminal import note

_SPLITS = ("train", "validation", "test")


@dataclass
class Check(OutputOptions):
    """Look for problems in human rankings that would mislead training; the exit code is 1 if there are any.

    Several files are splits of one data set. Reads ImageRewardDB, HPDv2, Pick-a-Pic, and JSONL, CSV or Parquet files of your own.
    """

    paths: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="DATA...", help="Files of human rankings.", help_behavior_hint="(at least one)"),
    ]
    image_root: ImageRoot = None
    fast: bool = False
    """Only check that images exist, without opening them or looking for copies."""
    max_tokens: int = 35
    """Number of tokens of a prompt that the model reads, including [CLS] and [SEP]."""

    def run(self) -> int:
        if not self.paths:
            raise UsageError("there is no file of human rankings to check: name at least one")
        if self.max_tokens < 3:
            raise UsageError(f"--max-tokens includes [CLS] and [SEP] and must be at least 3, not {self.max_tokens}")

        from image_reward.cli.progress import progress
        from image_reward.comparisons import audit

        with progress("images") as on_image:
            result = audit(self.paths, self.image_root, fast=self.fast, max_tokens=self.max_tokens, on_image=on_image)
        if self.json:
            print_json(result.as_dict())
        else:
            from image_reward.cli.tables import audit_tables
            from image_reward.reports.tables import show

            for table in audit_tables(result):
                show(table)
        return 0 if result.sound else 1


@dataclass
class Split:
    """Split human rankings into files that share no prompt: train.jsonl, validation.jsonl and test.jsonl.

    The same data and seed give the same files.
    """

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="A file of human rankings.")]
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT", help="The folder to write to.")]
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1)
    """Shares of the comparisons for training, for validation and, with a third number, for testing."""
    seed: int = 0
    """Seed of the split."""
    image_root: ImageRoot = None

    def run(self) -> int:
        if len(self.fractions) not in (2, 3):
            raise UsageError(f"--fractions takes two or three numbers, not {len(self.fractions)}")
        targets = [self.output / f"{name}.jsonl" for name in _SPLITS[: len(self.fractions)]]
        if there := [str(target) for target in targets if target.exists()]:
            raise UsageError(f"{there[0]} already exists; use another folder")

        from image_reward.comparisons import read, split, write

        comparisons = read(self.path, self.image_root)
        try:
            parts = split(comparisons, self.fractions, self.seed)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.output} cannot be a folder: a file with that name exists") from None
        for part, target in zip(parts, targets, strict=True):
            write(part, target)
            note(f"{len(part):,} comparisons")
            print(target)
        return 0


@dataclass
class Data:
    """Check and split files of human rankings."""

    command: tyro.conf.OmitArgPrefixes[
        Union[
            Annotated[Check, tyro.conf.subcommand("check")],
            Annotated[Split, tyro.conf.subcommand("split")],
        ]
    ]

    def run(self) -> int:
        return self.command.run()
