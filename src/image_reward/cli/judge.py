"""`image-reward judge DATA OUTPUT`"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.options import MODEL_HELP, ImageRoot, ModelOptions, OutputOptions, UsageError, check_output, print_json
from image_reward.terminal import note, printable


@dataclass
class Judge(ModelOptions, OutputOptions):
    """Ask a judge, a model that writes text, which image of each pair is better, and save its verdicts for `image-reward evaluate`.

    Each pair is asked in both orders, which shows how far the verdict depends on the order. The same command again goes on where an
    interrupted one ended: answers are kept beside OUTPUT as they come. A pair whose answer cannot be read, or whose image cannot, has no
    verdict.
    """

    data: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="A file of human rankings of pairs; see `image-reward data check`.")
    ]
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT", help="The file of verdicts to write, .json.")]
    model: Annotated[str, tyro.conf.arg(help=MODEL_HELP)] = field(default="UnifiedReward-2.0-Qwen3-VL-8B", kw_only=True)
    image_root: ImageRoot = None
    limit: int | None = None
    """Use only the first N comparisons."""

    def run(self) -> int:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        if self.output.suffix.lower() != ".json":
            raise UsageError(f"{self.output} is written as JSON; give it a name that ends in .json")
        check_output("OUTPUT", self.output)

        from image_reward.cli.progress import progress
        from image_reward.comparisons import read
        from image_reward.evaluation import judge_pairs
        from image_reward.scorers.judge import Judge as JudgingScorer

        comparisons = read(self.data, self.image_root, self.limit, both_bad=True)
        judge = self.load()
        if not isinstance(judge, JudgingScorer):
            raise UsageError(
                f"{judge.name} gives rewards, and does not judge pairs: evaluate it as it is, with "
                f"image-reward evaluate {shlex.quote(self.data)} --model {shlex.quote(self.model)}"
            )
        with progress("pairs") as on_pair:
            judged = judge_pairs(judge, comparisons, self.output, on_pair)
        if self.json:
            print_json(judged.as_dict() | {"model": judge.name})
        else:
            num_judged = judged.num_pairs - len(judged.errors)
            print(printable(f"{judged.output}: {num_judged:,} of {judged.num_pairs:,} pairs have a verdict"))
            if judged.bias is not None:
                bias = judged.bias
                print(f"position bias: {bias.flipped:.1%} of the verdicts are others in the other order")
                print(f"  {bias.first:.1%} prefer the image shown first, {bias.second:.1%} the one shown second")
            note(f"evaluate: image-reward evaluate {shlex.quote(self.data)} --verdicts {shlex.quote(judged.output)}")
        for id, reason in list(judged.errors.items())[:5]:
            note(f"no verdict on {id}: {reason}")
        if len(judged.errors) > 5:
            note(f"… and on {len(judged.errors) - 5:,} others")
        return 0 if judged.bias is not None else 1
