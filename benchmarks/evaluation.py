"""How long `image-reward evaluate` takes where rewards are there already: counting, resampling and writing, without a network.

python benchmarks/evaluation.py                # as large as the test split of ImageRewardDB: 466 prompts, 2,720 images
python benchmarks/evaluation.py --scorers 8
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

IMAGES_PER_PROMPT = {4: 194, 5: 2, 6: 45, 7: 159, 8: 43, 9: 23}
"""How many prompts of the test split have so many images."""


@dataclass
class Benchmark:
    scorers: int = 2
    resamples: int = 10_000
    repeats: int = 5
    seed: int = 0

    def run(self) -> None:
        random = np.random.default_rng(self.seed)
        sizes = [images for images, prompts in IMAGES_PER_PROMPT.items() for _ in range(prompts)]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data.json"
            rows = [
                {"id": str(i), "prompt": f"prompt {i}", "generations": [f"{i}-{j}.png" for j in range(n)], "ranking": _ranks(random, n)}
                for i, n in enumerate(sizes)
            ]
            data.write_text(json.dumps(rows))
            command = [sys.executable, "-m", "image_reward.cli", "evaluate", str(data), "--resamples", str(self.resamples)]
            for number in range(self.scorers):
                rewards = Path(folder) / f"random-{number}.json"
                rewards.write_text(json.dumps({str(i): random.normal(size=n).tolist() for i, n in enumerate(sizes)}))
                command += ["--rewards", str(rewards)]
            for what, more in (
                ("tables", []),
                ("tables, page and Parquet", ["--report", f"{folder}/r.html", "--per-prompt", f"{folder}/p.parquet"]),
            ):
                print(f"{what:<26} {self.seconds([*command, *more]):.2f} s  (the whole command, median of {self.repeats})")
        print(f"{len(sizes)} prompts, {sum(sizes):,} images, {self.scorers} scorers, {self.resamples:,} resamples")

    def seconds(self, command: list[str]) -> float:
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def _ranks(random: np.random.Generator, num: int) -> list[int]:
    """Into five slots of at most two images."""
    return random.permutation(np.repeat(np.arange(1, 6), 2))[:num].tolist()


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
