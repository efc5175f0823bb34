"""Comparisons learnt from per second: each image encoded once per step, against both images of every pair, as the original does.

The same network takes a training step's work (forward, loss, backward, optimizer) on the same pairs in turns, in one process: grouped,
grouped plainly, that is with ``F.linear`` in every layer and a loop over the weights in the optimizer, and pair by pair. Prompts have 4 to
9 images in five slots of at most two, as in ImageRewardDB.
Prints the medians, their ratios and how far the gradients are apart.

    python benchmarks/training.py                 # a network of middle size
    python benchmarks/training.py --mini          # the sizes of ImageReward-mini
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from image_reward.config import RewardConfig, ScorerConfig, TransformConfig
from image_reward.models.blip_config import BlipConfig
from image_reward.models.initial import new_network
from image_reward.models.linear import VARIABLE
from image_reward.runs import adamw, weight_groups
from image_reward.scorers import ImageRewardScorer, TwoTowerBatch
from image_reward.training import MaskedLanguageTraining, read_toml
from image_reward.training.data import TrainingSteps
from image_reward.training.losses import pairwise_logistic
from image_reward.types import Comparison

NETWORK = BlipConfig(
    image_size=112,
    vision_width=192,
    vision_layers=6,
    vision_heads=6,
    text_width=192,
    text_layers=4,
    text_heads=6,
    text_hidden=768,
    projection_width=64,
)
SIZES = {4: 10, 5: 1, 6: 2, 7: 8, 8: 2, 9: 1}
"""Prompts by number of images, about as in the data set's test split (194, 2, 45, 159, 43 and 23 of 466 prompts)."""


def comparisons(size: int, seed: int = 0) -> list[Comparison]:
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    found = []
    for number in [k for k, times in SIZES.items() for _ in range(times)]:
        ranks = tuple(draw.sample([1, 1, 2, 2, 3, 3, 4, 4, 5, 5], number))
        images = tuple(torch.rand(3, size, size, generator=noise) for _ in ranks)
        found.append(Comparison(f"a painting of {number} ships on a stormy sea at night, highly detailed", images, ranks))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mini", action="store_true", help="the sizes of ImageReward-mini")
    arguments = parser.parse_args()
    network = NETWORK
    if arguments.mini:  # its own vocabulary, and the number of positions for it, are left out: prompts here are of BERT's
        recipe = read_toml(Path(__file__).parents[1] / "examples" / "pretrain_mini.toml", MaskedLanguageTraining())
        network = replace(recipe.network, max_positions=NETWORK.max_positions)
    image = TransformConfig(size=network.image_size)
    scorer = ImageRewardScorer(new_network(network, seed=0), ScorerConfig(network=network, image=image, reward=RewardConfig(0.0, 1.0)))
    scorer.eval()  # without dropout, so that both ways have one gradient
    weights = [p for name, p in scorer.named_parameters() if "_proj" not in name]

    steps = TrainingSteps(comparisons(network.image_size), scorer.prepare, "pairwise", micro_images=104)
    prompts, together = len(steps.comparisons), 12 if arguments.mini else 1
    micros = [steps.micro_batch(list(range(i, min(i + together, prompts)))) for i in range(0, prompts, together)]
    num_pairs = sum(micro.num_terms for micro in micros)
    num_images = sum(len(micro.batch.pixels) for micro in micros)

    def grouped() -> None:
        for micro in micros:
            rewards = scorer(micro.batch)
            (pairwise_logistic(rewards[micro.first], rewards[micro.second], micro.target).sum() / num_pairs).backward()

    def pair_by_pair() -> None:
        for micro in micros:
            rows = torch.stack([micro.first, micro.second], dim=1).flatten()
            for part in rows.split(32):  # 16 pairs at once
                batch = TwoTowerBatch(micro.batch.pixels[part], micro.batch.ids[part], micro.batch.mask[part], torch.arange(len(part)))
                first, second = scorer(batch).view(-1, 2).unbind(dim=1)
                (pairwise_logistic(first, second, torch.ones_like(first)).sum() / num_pairs).backward()

    groups = weight_groups(weights, lr=0.0, weight_decay=0.05)  # a rate of zero: the gradients stay comparable
    fused = adamw(groups, (0.9, 0.999), torch.device("cpu"))
    loop = torch.optim.AdamW(groups)
    ways = {"grouped": grouped, "grouped, plain": grouped, "pair by pair": pair_by_pair}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients: dict[str, list[Tensor]] = {}
    for _ in range(arguments.rounds + 1):  # the first round warms up
        for name, work in ways.items():
            os.environ[VARIABLE] = "plain" if name.endswith("plain") else "auto"
            for weight in weights:
                weight.grad = None
            start = time.perf_counter()
            work()
            (loop if name.endswith("plain") else fused).step()
            seconds[name].append(time.perf_counter() - start)
            gradients[name] = [weight.grad.clone() for weight in weights if weight.grad is not None]

    print(f"{prompts} prompts, {num_images} images, {num_pairs} untied pairs; {torch.get_num_threads()} threads")
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, time_taken in median.items():
        encoded = 2 * num_pairs if name == "pair by pair" else num_images
        print(f"{name:17}  {num_pairs / time_taken:8.1f} comparisons/s   {encoded:4d} images encoded   {time_taken:.2f} s")
    others = [gradients[name] for name in list(ways)[1:]]
    apart = max(float((a - b).abs().max()) for other in others for a, b in zip(gradients["grouped"], other, strict=True))
    largest = max(float(a.abs().max()) for a in gradients["grouped"])
    print(f"largest difference of a gradient {apart:.1e} (largest gradient {largest:.2g})")
    for name in list(ways)[1:]:
        print(f"{name} takes {median[name] / median['grouped']:.2f} times as long as grouped")


if __name__ == "__main__":
    main()
