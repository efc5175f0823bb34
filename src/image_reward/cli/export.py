"""`image-reward export OUT.onnx`"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal

import tyro

from image_reward.cli.options import OutputOptions, UsageError, print_json


@dataclass
class Export(OutputOptions):
    """Write a scorer for programs without PyTorch, checked against PyTorch at several shapes; a file that fails is not kept.

    The network takes pixels (uint8, [I, 3, S, S]), ids (int64, [I, L]) and mask (bool, [I, L]), and gives rewards [I]. The file's metadata
    say how images become pixels and prompts become ids.
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help="The file to write, such as scorer.onnx.")]
    model: str = "ImageReward-v1.0"
    """A registered name (see `image-reward models list`), a checkpoint file, a folder, or a hub id OWNER/NAME."""
    format: Literal["onnx"] = "onnx"
    """What to write."""
    config: Path | None = None
    """The config.json of weights that carry none and are not of the released sizes."""

    def run(self) -> int:
        if self.out.suffix != ".onnx":
            raise UsageError(f"{self.out}: an ONNX file's name ends in .onnx")
        if not self.out.parent.is_dir():
            raise UsageError(f"{self.out}: there is no folder {self.out.parent}")

        from image_reward.scorers import load
        from image_reward.scorers.onnx import export_onnx

        scorer = load(self.model, "cpu", config=self.config)
        with _without_notes():
            difference = export_onnx(scorer, self.out)
        size = self.out.stat().st_size
        if self.json:
            print_json({"file": str(self.out), "bytes": size, "largest_difference": difference})
        else:
            print(f"{self.out}: {size / 1e6:.1f} MB; largest difference from PyTorch's rewards {difference:.1e}")
        return 0


@contextmanager
def _without_notes() -> Iterator[None]:
    """Without what PyTorch's exporter writes about itself. This changes the whole process, which is the command's own."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
