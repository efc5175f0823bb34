"""`image-reward data check|convert|split`"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Union

import tyro

from image_reward.addresses import Address
from image_reward.cli.options import ImageRoot, OutputOptions, UsageError, print_json
from image_reward.errors import InputError
from image_reward.terminal import note

_SPLITS = ("train", "validation", "test")


@dataclass
class Check(OutputOptions):
    """Look for problems in human rankings that would mislead training; the exit code is 1 if there are any.

    Several files are treated as splits of one data set. Reads ImageRewardDB, HPDv2, HPDv3, Pick-a-Pic, GenAI-Bench, MMRB2, chosen and
    rejected images, ratings, folders written by `save_to_disk`, and JSONL, CSV or Parquet files of your own.
    """

    paths: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="DATA...", help="Files of human rankings, here or in an object store (s3://…).", help_behavior_hint="(at least one)"
        ),
    ]
    image_root: ImageRoot = None
    fast: bool = False
    """Only check that images exist, without opening them or looking for copies."""
    max_tokens: int = 35
    """Number of tokens of a prompt that the model reads, including [CLS] and [SEP]."""

    def run(self) -> int:
        if not self.paths:
            raise UsageError("name at least one file of human rankings to check")
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
class Convert(OutputOptions):
    """Convert human rankings in any supported format to JSONL, and write images inside tables to a folder beside it.

    The images of mine.jsonl are in mine-images. Image files stay where they are. Nothing is overwritten, and the file appears whole or not
    at all.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="A file of human rankings, or a folder of a data set.")]
    output: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="OUTPUT", help="The file to write; for a saved data set of several splits, a folder for SPLIT.jsonl."),
    ]
    image_root: ImageRoot = None
    skip_wrong: bool = False
    """Leave out and count invalid rows and images, instead of stopping."""

    def run(self) -> int:
        from image_reward.cli.progress import progress
        from image_reward.comparisons import convert, images_folder, splits
        from image_reward.reports.numbers import counted

        parts = splits(self.source)
        Address.parse(self.output)  # refuses what a Path makes of an address
        sources: dict[Path, str | Address] = {self.output: self.source}
        if len(parts) > 1:
            sources = {self.output / f"{name}.jsonl": part for name, part in parts.items()}
        for target in sources:
            if there := [str(path) for path in (target, images_folder(target)) if path.exists()]:
                raise UsageError(f"{there[0]} already exists; name another file, or remove it")
        if len(parts) > 1:
            _make_folder(self.output)
        results = []
        with progress("comparisons") as bar:
            for target, source in sources.items():
                results.append(convert(source, target, self.image_root, skip_wrong=self.skip_wrong, on_comparison=bar))
        if self.json:
            print_json({"files": [asdict(result) for result in results]})
            return 0
        for result in results:
            note(f"{counted(result.num_comparisons, 'comparison')} of {counted(result.num_images, 'image')}")
            if result.images:
                was_or_were = "was" if result.num_extracted == 1 else "were"
                note(f"{counted(result.num_extracted, 'image')} {was_or_were} written to {result.images}")
            for num, what, places in (
                (result.num_left_out, "do not say which image is better", result.left_out),
                (result.num_wrong, "make no sense", result.wrong),
            ):
                if num:
                    note(f"rows that {what}: {num:,} left out, the first is {places[0]}")
            print(result.path)
        return 0


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
        Address.parse(self.output)
        targets = [self.output / f"{name}.jsonl" for name in _SPLITS[: len(self.fractions)]]
        if there := [str(target) for target in targets if target.exists()]:
            raise UsageError(f"{there[0]} already exists; use another folder")

        from image_reward.comparisons import read, split, write
        from image_reward.reports.numbers import counted

        comparisons = read(self.path, self.image_root)
        try:
            parts = split(comparisons, self.fractions, self.seed)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None
        _make_folder(self.output)
        for part, target in zip(parts, targets, strict=True):
            write(part, target)
            note(f"{target.name}: {counted(len(part), 'comparison')}")
            print(target)
        return 0


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{path} cannot be a folder: a file with that name exists") from None


@dataclass
class Data:
    """Check, convert and split files of human rankings."""

    command: tyro.conf.OmitArgPrefixes[
        Union[
            Annotated[Check, tyro.conf.subcommand("check")],
            Annotated[Convert, tyro.conf.subcommand("convert")],
            Annotated[Split, tyro.conf.subcommand("split")],
        ]
    ]

    def run(self) -> int:
        return self.command.run()
