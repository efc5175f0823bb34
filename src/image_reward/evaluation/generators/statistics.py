"""Statistics of generators' rewards: means, win rates, best of n, ranks and differences, with intervals from resampled prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from image_reward import metrics
from image_reward.evaluation.estimates import Means, PromptColumns
from image_reward.evaluation.generators.human import HumanRanking
from image_reward.evaluation.generators.images import Images, Selection
from image_reward.evaluation.generators.results import Rewards
from image_reward.metrics import Difference, Floats, Interval
from image_reward.prompt_sets import Prompt


@dataclass(frozen=True)
class GeneratorResult:
    """One generator, measured by one scorer."""

    name: str
    rank: int
    """By mean reward, 1 for the best."""
    rank_low: int
    """The interval of its rank when prompts are resampled."""
    rank_high: int
    mean: Interval
    """Over prompts, of the mean over a prompt's images: the mean over all images where every prompt has equally many."""
    median: float
    """Over all images."""
    win_rate: Interval | None
    """How often an image of it has a higher reward than an opponent's image of the same prompt, equal rewards counting half; the mean over
    prompts and opponents. None without opponents."""
    prompt_win_rate: Interval | None
    """The share of (prompt, opponent) contests that it wins by the mean reward of the prompt's images, draws counting half."""
    best_of: list[Interval]
    """The expected reward of the best of 1, 2, … images of a prompt, up to the number that every prompt has."""
    by_category: dict[str, float]
    """Mean reward by category of prompt."""


@dataclass(frozen=True)
class ScorerResult:
    """All generators, measured by one scorer."""

    name: str
    generators: list[GeneratorResult]
    """Best first."""
    win_matrix: list[list[float]]
    """[G, G] in the order of ``generators``: the win rate of the row's generator against the column's; 0.5 on the diagonal."""
    differences: list[Difference]
    """Of mean rewards, each generator with each after it in the ranking."""
    spearman: Interval | None
    """Between mean rewards and the human ranking; None without one, or where it is not defined."""
    kendall_tau_b: Interval | None


@dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt with the images made for it and their rewards."""

    id: str
    prompt: str
    category: str
    images: dict[str, list[str]]
    """Generator -> images; empty for rewards that were saved earlier."""
    rewards: dict[str, dict[str, list[float]]]
    """Scorer -> generator -> the reward of each image."""


@dataclass(frozen=True)
class Benchmark:
    """Generators compared with each other."""

    generators: list[str]
    scorers: list[ScorerResult]
    num_prompts: int
    images_per_prompt: tuple[int, int]
    """The smallest and the largest number of images of a prompt, of each generator."""
    num_images: int
    """Of each generator."""
    left_out_prompts: list[str]
    left_out_images: dict[str, int]
    human: HumanRanking | None
    confidence: float
    num_resamples: int
    seed: int
    per_prompt: list[BenchmarkPrompt]

    def as_dict(self, per_prompt: bool = True) -> dict[str, Any]:
        """For JSON."""
        row = asdict(self) | {"images_per_prompt": list(self.images_per_prompt)}
        if not per_prompt:
            del row["per_prompt"]
        return row


def benchmark(
    rewards: Rewards,
    selection: Selection,
    *,
    images: Images | None = None,
    human: HumanRanking | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Benchmark:
    """Compare generators by the rewards of the selected images, for each scorer.

    Intervals and p-values come from resampling prompts, the same for all generators. Raises ``ValueError`` for rewards that are not finite.
    """
    generators = list(next(iter(rewards.values())))
    prompts = list(zip(selection.prompts, selection.num_images, strict=True))
    selected = {
        scorer: {
            generator: [np.asarray(of_prompt[prompt.id][:num], dtype=np.float64) for prompt, num in prompts]
            for generator, of_prompt in by_generator.items()
        }
        for scorer, by_generator in rewards.items()
    }
    per_prompt = [
        BenchmarkPrompt(
            id=prompt.id,
            prompt=prompt.prompt,
            category=prompt.category,
            images={g: [str(path) for path in images.paths[g][prompt.id][:num]] for g in generators} if images else {},
            rewards={scorer: {g: values[p].tolist() for g, values in by_generator.items()} for scorer, by_generator in selected.items()},
        )
        for p, (prompt, num) in enumerate(prompts)
    ]
    return Benchmark(
        generators=generators,
        scorers=[
            _scorer_result(scorer, by_generator, selection.prompts, human, confidence, num_resamples, seed)
            for scorer, by_generator in selected.items()
        ],
        num_prompts=len(prompts),
        images_per_prompt=(min(selection.num_images), max(selection.num_images)),
        num_images=sum(selection.num_images),
        left_out_prompts=selection.left_out_prompts,
        left_out_images=selection.left_out_images,
        human=human,
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
        per_prompt=per_prompt,
    )


# --- one scorer ----------------------------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A number of each prompt: a statistic of a generator."""

    what: Literal["best_of", "win_rate", "prompt_win_rate"]
    generator: str
    n: int = 1
    """Of the best of n; the best of one is the mean."""


def _mean(generator: str) -> _Column:
    return _Column("best_of", generator)


def _scorer_result(
    scorer: str,
    rewards: Mapping[str, Sequence[Floats]],
    prompts: Sequence[Prompt],
    human: HumanRanking | None,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> ScorerResult:
    """``rewards``: generator -> for each prompt, the rewards [n] of its images."""
    names = list(rewards)
    contests = _contests(rewards)
    means = _columns(names, contests).means([prompt.prompt for prompt in prompts], num_resamples, confidence, seed)
    ordered = sorted(names, key=lambda name: -means.values[_mean(name)])
    index = {name: g for g, name in enumerate(names)}
    ranks = _ranks(np.stack([means.samples[_mean(name)] for name in names], axis=1))
    tail = (1 - confidence) / 2
    # A rank is a whole number, so the ends of its interval are ranks that occur, not interpolated.
    low, high = (np.quantile(ranks, share, axis=0, method="inverted_cdf") for share in (tail, 1 - tail))
    categories = {
        category: [p.category == category for p in prompts] for category in dict.fromkeys(p.category for p in prompts) if category
    }

    def result(name: str) -> GeneratorResult:
        g = index[name]
        return GeneratorResult(
            name=name,
            rank=1 + sum(means.values[_mean(other)] > means.values[_mean(name)] for other in names),
            rank_low=int(low[g]),
            rank_high=int(high[g]),
            mean=means.interval(_mean(name)),
            median=float(np.median(np.concatenate(rewards[name]))),
            win_rate=means.interval(_Column("win_rate", name)) if len(names) > 1 else None,
            prompt_win_rate=means.interval(_Column("prompt_win_rate", name)) if len(names) > 1 else None,
            best_of=[means.interval(_Column("best_of", name, n)) for n in range(1, contests.best_of.shape[2] + 1)],
            by_category={category: float(contests.best_of[inside, g, 0].mean()) for category, inside in categories.items()},
        )

    order = [index[name] for name in ordered]
    return ScorerResult(
        name=scorer,
        generators=[result(name) for name in ordered],
        win_matrix=contests.image_wins.mean(axis=0)[np.ix_(order, order)].tolist(),
        differences=means.differences("mean", {name: _mean(name) for name in ordered}),
        spearman=_agreement(metrics.spearman, names, means, ranks, human),
        kendall_tau_b=_agreement(metrics.kendall_tau_b, names, means, ranks, human),
    )


@dataclass(frozen=True)
class _Contests:
    """Comparisons of G generators on P prompts."""

    best_of: Floats
    """[P, G, N]: the expected reward of the best of 1 to N images, N being the number that every prompt has; the first is the mean."""
    image_wins: Floats
    """[P, G, G]: the share of the pairs of an image of the row's generator and one of the column's that the row's wins, ties half."""
    prompt_wins: Floats
    """[P, G, G]: 1 where the row's mean is higher, 0 where the column's is, 0.5 where they are equal."""


def _contests(rewards: Mapping[str, Sequence[Floats]]) -> _Contests:
    generators = list(rewards.values())
    sizes = np.array([len(values) for values in generators[0]])
    num_prompts, num_generators, min_images = len(sizes), len(generators), int(sizes.min())
    best_of = np.empty((num_prompts, num_generators, min_images))
    image_wins = np.full((num_prompts, num_generators, num_generators), 0.5)
    # Prompts with the same number of images make one array and are computed at once: there are few such numbers, and many prompts.
    for size in np.unique(sizes):
        same_size = np.flatnonzero(sizes == size)
        stack = np.array([[values[p] for values in generators] for p in same_size.tolist()])  # [P of this size, G, size]
        best_of[same_size] = metrics.expected_maximum(stack)[:, :, :min_images]
        for a, b in combinations(range(num_generators), 2):
            image_wins[same_size, a, b] = metrics.win_rate(stack[:, a], stack[:, b])
            image_wins[same_size, b, a] = 1 - image_wins[same_size, a, b]
    means = best_of[:, :, 0]
    return _Contests(best_of, image_wins, (np.sign(means[:, :, None] - means[:, None, :]) + 1) / 2)


def _columns(names: Sequence[str], contests: _Contests) -> PromptColumns[_Column]:
    """Everything that is averaged over prompts, by name.

    One table holds it all, so that one set of resamples serves it: ranks and differences compare generators on the same draws.
    """
    columns = PromptColumns[_Column]()
    opponents = len(names) - 1
    for g, name in enumerate(names):
        for n in range(contests.best_of.shape[2]):
            columns.add(_Column("best_of", name, n + 1), contests.best_of[:, g, n])
        if opponents:
            # Over all opponents: the row's sum without the 0.5 of its own diagonal.
            columns.add(_Column("win_rate", name), (contests.image_wins[:, g].sum(axis=1) - 0.5) / opponents)
            columns.add(_Column("prompt_win_rate", name), (contests.prompt_wins[:, g].sum(axis=1) - 0.5) / opponents)
    return columns


def _ranks(means: Floats) -> NDArray[np.int64]:
    """The rank of each generator in each resample [R, G], 1 for the highest mean; equal means share the better rank."""
    ranks: NDArray[np.int64] = 1 + (means[:, None, :] > means[:, :, None]).sum(axis=2)
    return ranks


def _agreement(
    correlation: Callable[[Any, Any], float],
    names: Sequence[str],
    means: Means[_Column],
    ranks: NDArray[np.int64],
    human: HumanRanking | None,
) -> Interval | None:
    """A rank correlation of mean rewards with the human ranking, and its interval from the resampled ranks [R, G]."""
    if human is None or len(human.ranks) < 2:
        return None
    compared = [g for g, name in enumerate(names) if name in human.ranks]
    human_ranks = [human.ranks[names[g]] for g in compared]
    value = correlation([means.values[_mean(names[g])] for g in compared], human_ranks)
    if math.isnan(value):
        return None
    orders, times = np.unique(ranks[:, compared], axis=0, return_counts=True)  # resamples have few distinct orders
    samples = np.repeat([correlation(-order, human_ranks) for order in orders], times)
    return Interval(value, *metrics.interval(samples, means.confidence), means.num_prompts[_mean(names[0])])
