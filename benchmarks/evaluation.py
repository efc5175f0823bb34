"""How long measuring takes: `image-reward evaluate` on saved rewards, and scorers that share a tower against one after the other.

python benchmarks/evaluation.py                # as large as the test split of ImageRewardDB: 466 prompts, 2,720 images
python benchmarks/evaluation.py --scorers 8
python benchmarks/evaluation.py --together     # CLIP and Aesthetic over the same images, ViT-L/14 with random weights
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
from PIL import Image

from image_reward.images import ImageTransform
from image_reward.models.heads import LinearHead
from image_reward.prompts import ClipTokenizer
from image_reward.scorers import TwoTowerProcessor, score_together
from image_reward.scorers.clip import AestheticScorer, ClipScorer

IMAGES_PER_PROMPT = {4: 194, 5: 2, 6: 45, 7: 159, 8: 43, 9: 23}
"""How many prompts of the test split have so many images."""


@dataclass
class Benchmark:
    scorers: int = 2
    resamples: int = 10_000
    repeats: int = 5
    seed: int = 0
    together: bool = False
    """Time CLIP and Aesthetic together and one after the other, in place of the command."""
    images: int = 16
    """Of 512 px, for --together."""

    def run(self) -> None:
        if self.together:
            self.compare_together()
        else:
            self.time_command()

    def time_command(self) -> None:
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

    def compare_together(self) -> None:
        clip, aesthetic = _clip_and_aesthetic()
        random = np.random.default_rng(self.seed)
        with tempfile.TemporaryDirectory() as folder:
            paths = [f"{folder}/{i}.jpg" for i in range(self.images)]
            for path in paths:
                small = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC).save(path, quality=90)
            prompts = [f"picture {i}" for i in range(len(paths))]
            times: dict[str, list[float]] = {"together": [], "one by one": []}
            for _ in range(self.repeats + 1):  # interleaved; the first warms up
                start = time.perf_counter()
                together = score_together([clip, aesthetic], prompts, paths)
                half = time.perf_counter()
                apart = [clip.score(prompts, paths), aesthetic.score(prompts, paths)]
                times["together"].append(half - start)
                times["one by one"].append(time.perf_counter() - half)
            np.testing.assert_allclose(together, apart, atol=1e-5)
        middle = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
        for name, seconds in middle.items():
            print(f"{name:<10} {self.images / seconds:6.2f} images/s")
        print(f"CLIP and Aesthetic together: {middle['one by one'] / middle['together']:.2f}x, the same rewards")

    def seconds(self, command: list[str]) -> float:
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def _clip_and_aesthetic() -> tuple[ClipScorer, AestheticScorer]:
    """On one ViT-L/14 of random weights, with a tokenizer of single letters."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "eos_token_id": 49407}
    torch.manual_seed(0)
    network = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)).eval()
    letters = {chr(ord("a") + i): i for i in range(26)} | {"<unk>": 26, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    definition = Tokenizer(models.BPE(letters, [], unk_token="<unk>")).to_str()
    transform = ImageTransform(convention="openai")
    tokenizer = ClipTokenizer(definition=definition, convention="openai")
    clip = ClipScorer(network, TwoTowerProcessor(transform, tokenizer)).requires_grad_(False)
    head = LinearHead(768)
    return clip, AestheticScorer(network, head, transform).eval().requires_grad_(False)


def _ranks(random: np.random.Generator, num: int) -> list[int]:
    """Into five slots of at most two images."""
    return random.permutation(np.repeat(np.arange(1, 6), 2))[:num].tolist()


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
