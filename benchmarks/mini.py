"""How well a model ranks drawn shapes it has never seen: held-out prompts, held-out seeds, a ranking without noise.

python benchmarks/mini.py                          # the embedded model
python benchmarks/mini.py runs/mini/model          # what `make mini` has just trained
python benchmarks/mini.py --curve runs/mini-pretrained  # accuracy against the number of prompts ranked in training (10 minutes)
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import image_reward as ir
from image_reward.comparisons.shapes import Candidate, comparisons, pair_kind
from image_reward.evaluation import score_comparisons
from image_reward.training import RewardTraining, read_toml, train


@dataclass
class Benchmark:
    model: Annotated[str, tyro.conf.Positional] = "ImageReward-mini"
    num_prompts: int = 1000
    seed: int = 77
    """Of the held-out comparisons; training uses 0 and 1."""
    curve: Path | None = None
    """A pretrained model: instead of one measurement, train from it on more and more ranked prompts."""
    curve_prompts: tuple[int, ...] = (50, 200, 800, 3200, 12800)
    curve_steps: int = 600

    def run(self) -> None:
        if self.curve is None:
            for kind, (right, total) in self.accuracies(ir.load(self.model, "cpu")).items():
                print(f"{kind:<22} {right / total:.4f}  ({total:,} pairs)")
            return
        recipe = read_toml(Path(__file__).parents[1] / "examples" / "train_mini.toml", RewardTraining())
        for num_prompts in self.curve_prompts:
            with tempfile.TemporaryDirectory() as folder:
                config = replace(
                    recipe, start=str(self.curve), output=folder, max_steps=self.curve_steps, validation=(), validation_share=0.0
                )
                result = train(config, comparisons(num_prompts, seed=0))
                right, total = self.accuracies(ir.load(result.model, "cpu"))["all"]
            print(f"{num_prompts:>6} prompts  {right / total:.4f}", flush=True)

    def accuracies(self, scorer: ir.Scorer) -> dict[str, tuple[int, int]]:
        """Pairs in the right order and pairs in all, by what the two images differ in; human ties are left out, equal rewards are wrong."""
        scorer.batch_size = 64
        held_out = comparisons(self.num_prompts, self.seed, split="test")
        counts = {"all": [0, 0], "alignment only": [0, 0], "fidelity only": [0, 0]}
        for comparison, rewards in zip(held_out, score_comparisons([scorer], held_out)[0], strict=True):
            ranks = np.array(comparison.ranks)
            for better, worse in np.argwhere(ranks[:, None] < ranks[None]):
                a, b = comparison.images[better], comparison.images[worse]
                assert isinstance(a, Candidate)
                assert isinstance(b, Candidate)
                for kind in ("all", f"{pair_kind(a, b)} only"):
                    if kind in counts:
                        counts[kind][0] += int(rewards[better] > rewards[worse])
                        counts[kind][1] += 1
        return {kind: (right, total) for kind, (right, total) in counts.items()}


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
