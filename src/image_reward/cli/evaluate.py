"""`image-reward evaluate DATA`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from image_reward.cli.options import ModelOptions, OutputOptions, UsageError, print_json


@dataclass
class Evaluate(ModelOptions, OutputOptions):
    """Measure how well a model agrees with people who ranked images.

    Accuracy is the share of the pairs that people put in an order in which the model agrees: pooled, every pair weighs the same; per
    prompt, every prompt does. recall@k says how often the image people put first is among the model's top k, and filter@k the same of
    the last; prompts with k images or fewer are left out of them. Kendall's tau-b and Spearman's rho are means over the prompts in which
    neither side ties everything. Log loss and calibration are those of the probability that `compare` gives, over the pairs people ordered.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="A file of comparisons; see `image-reward data`.")]
    images: Path | None = None
    """The folder that image paths are relative to; by default the file's own."""
    rewards: Path | None = None
    """Rewards saved earlier, as JSON, in place of a model: a list of lists aligned with DATA, or {id: [rewards]}."""
    limit: int | None = None
    """Use only the first so many comparisons."""
    k: tuple[int, ...] = (1, 2, 4)
    """The k of recall@k and filter@k."""
    predicted_ties: Literal["wrong", "half", "excluded"] = "wrong"
    """What a pair counts in accuracies that people put in an order and the model gives equal rewards."""
    human_ties: Literal["excluded", "half"] = "excluded"
    """What a pair counts in accuracies that people tied."""
    resamples: int = 10_000
    """How many times prompts are resampled for the intervals."""
    confidence: float = 0.95
    """What part of the resamples an interval covers."""
    seed: int = 0
    """Of the resampling."""
    per_prompt: Path | None = None
    """Write the results of each prompt to this Parquet file."""

    def run(self) -> int:
        if not self.k or min(self.k) < 1:
            raise UsageError("--k takes integers from 1")
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise UsageError("--resamples must be at least 1, and --confidence between 0 and 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        if self.per_prompt:
            _check_writable(self.per_prompt)

        from image_reward.cli.progress import progress
        from image_reward.comparisons import read
        from image_reward.evaluation import evaluate, read_rewards, write_per_prompt

        comparisons = read(self.data, self.images, self.limit)
        scorer = read_rewards(self.rewards) if self.rewards else self.load()
        with progress("images") as on_image:
            found = evaluate(
                scorer,
                comparisons,
                ks=self.k,
                predicted_ties=self.predicted_ties,
                human_ties=self.human_ties,
                confidence=self.confidence,
                num_resamples=self.resamples,
                seed=self.seed,
                name=str(self.rewards) if self.rewards else "",
                on_image=on_image,
            )
        if self.per_prompt:
            write_per_prompt(found, self.per_prompt)
        if self.json:
            print_json(found.as_dict(per_prompt=False))
        else:
            from image_reward.reports.tables import evaluation_table, show

            show(evaluation_table(found.as_dict(per_prompt=False)))
        return 0


def _check_writable(path: Path) -> None:
    """Before hours of scoring, not after them."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise UsageError("--per-prompt writes Parquet, which needs pyarrow: pip install 'image-reward[data]'")
    if not path.parent.is_dir():
        raise UsageError(f"--per-prompt {path}: there is no folder {path.parent}")
