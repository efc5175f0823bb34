"""`image-reward export OUTPUT.onnx`"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.options import DEFAULT_MODEL, Config, OutputOptions, UsageError, check_output, print_json


@dataclass
class Export(OutputOptions):
    """Export a scorer to ONNX, for programs without PyTorch, and compare its rewards with PyTorch's at several shapes.

    The network maps pixels (uint8, [I, 3, S, S]), ids (int64, [I, L]) and mask (bool, [I, L]) to rewards [I]. The metadata of the file
    describe how images become pixels and prompts become ids. A file whose rewards differ is deleted.
    """

    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT", help="The ONNX file to write, such as scorer.onnx.")]
    model: str = DEFAULT_MODEL
    """A registered name (see `image-reward models list`), a checkpoint file, a folder, or a hub id OWNER/NAME."""
    config: Config = None

    def run(self) -> int:
        if self.output.suffix != ".onnx":
            raise UsageError(f"{self.output}: the name of an ONNX file ends in .onnx")
        check_output("OUTPUT", self.output)

        from image_reward.scorers import load
        from image_reward.scorers.onnx import export_onnx

        scorer = load(self.model, "cpu", config=self.config)
        with _without_notes():
            difference = export_onnx(scorer, self.output)
        size = self.output.stat().st_size
        if self.json:
            print_json({"file": str(self.output), "bytes": size, "largest_difference": difference})
        else:
            print(f"{self.output}: {size / 1e6:.1f} MB; largest difference from PyTorch's rewards {difference:.1e}")
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
