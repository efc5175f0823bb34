"""Signs of over-optimisation on held-out prompts, and when a run should stop.

A reward that is optimised is exploited: it goes on rising after the images have stopped to improve. What betrays it needs no human: scorers
that were not tuned with; the margin of an image's own prompt over another; and the rewards of the image mirrored or slightly blurred, which
rise with it where the image is better and stay behind where a texture fools the scorer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Values = tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """What was measured on the held-out prompts after one step. The images of all evaluations have the same noises, in the same order."""

    step: int
    rewards: Values
    """Of each image for its prompt."""
    watched: Mapping[str, Values] = field(default_factory=dict)
    """The same by each scorer that is watched."""
    margins: Values = ()
    """The reward less that for another prompt; empty for a scorer that does not read the prompt."""
    mirrored: Values = ()
    """Of the mirrored image less that of the image, without the prompts that say left or right; empty where all do."""
    blurred: Values = ()
    """Of the blurred image less that of the image."""
    distances: Values = ()
    """Between images of one prompt: root mean squared differences of pixels, one for each pair."""
    drifts: Values = ()
    """From the image of the untuned generator, in the same measure."""
    above_target: float = 0.0
    """The share of images whose reward is above the target."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Evaluation:
        """That of a line of a log."""
        own = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**own | {"watched": {name: tuple(each) for name, each in values["watched"].items()}})

    @property
    def reward(self) -> float:
        return mean(self.rewards)

    def summary(self) -> dict[str, float | None]:
        """The means, for a log."""
        values: dict[str, Values] = {
            "reward": self.rewards,
            "margin": self.margins,
            "mirrored": self.mirrored,
            "blurred": self.blurred,
            "distance": self.distances,
            "drift": self.drifts,
        } | {f"watch {name}": each for name, each in self.watched.items()}
        return {name: mean(each) if each else None for name, each in values.items()} | {"above_target": self.above_target}


@dataclass(frozen=True)
class Thresholds:
    """What counts as a sign; the settings of ``Tuning`` with these names."""

    least_rise: float = 0.25
    least_margin_share: float = 0.3
    least_robust_share: float = 0.6
    least_distance_share: float = 0.5
    most_drift_share: float = 0.4
    patience: int | None = 2
    """None: the run is not stopped."""


class Change(NamedTuple):
    """The mean of paired differences, and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Verdict:
    """What a history of evaluations says."""

    stop: bool
    """Whether the last ``patience`` evaluations all had signs of over-optimisation."""
    last_good: int
    """The step of the last evaluation without such signs, whose reward has not fallen."""
    signs: tuple[str, ...]
    """Of the last evaluation, each in words."""
    sentence: str


def judge(
    history: Sequence[Evaluation], thresholds: Thresholds = Thresholds(), trusted: Sequence[str] | None = None, *, is_last: bool = False
) -> Verdict:
    """Judge a run by its evaluations, the first of which is that of the untuned generator.

    An evaluation is a bad one where the reward itself has fallen, which no tuning wants: the generator is being damaged. It is also bad
    where the reward has risen and half or more of the watched scorers have fallen, by more than two standard errors of the paired
    differences. Without scorers to watch, it is bad where two of the other signs agree: the prompt margin has not risen by its share of
    the reward's rise; the rewards of mirrored images have not; those of blurred images have not; the images of a prompt have become
    alike. Where the reward has not clearly risen, it is bad if the images have moved far from those of the untuned generator all the same:
    by ``most_drift_share`` of the distance between two images of a prompt. The run stops after ``patience`` bad evaluations in a row.

    ``trusted``: the watched scorers that count, all by default. One that sees images through the reward's own tower may be fooled with it.
    ``is_last``: whether no evaluation follows.
    """
    bad = [_signs(history[0], each, thresholds, trusted) for each in history]
    in_a_row = sum(1 for _ in takewhile(bool, reversed(bad)))
    fallen = [(rise := change(history[0].rewards, each.rewards)).mean < -2 * rise.error for each in history]
    last_good = [each.step for each, signs, worse in zip(history, bad, fallen, strict=True) if not (signs or worse)][-1]
    left = math.inf if thresholds.patience is None else max(0, thresholds.patience - in_a_row)
    outcome = ""
    if left == 0:
        outcome = "The run was stopped; "
    elif left < math.inf and not is_last:
        outcome = f"The run stops if the next {'evaluation agrees' if left == 1 else f'{left} evaluations agree'}; "
    return Verdict(left == 0, last_good, bad[-1], _sentence(history, bad[-1], outcome, last_good))


def _signs(untuned: Evaluation, now: Evaluation, thresholds: Thresholds, trusted: Sequence[str] | None) -> tuple[str, ...]:
    """The signs of over-optimisation, in words; none where they are too few to be sure."""
    rise = change(untuned.rewards, now.rewards)
    least = thresholds.least_rise * deviation(untuned.rewards)
    if rise.mean < -max(least, 2 * rise.error):
        return (f"the reward has fallen by {-rise.mean:.3g}",)
    if rise.mean <= max(least, _ONE_SIDED * rise.error):
        if untuned.distances and now.drifts:
            moved = mean(now.drifts) / max(mean(untuned.distances), 1e-9)
            if moved > thresholds.most_drift_share:
                return (f"{_MOVED} by {100 * moved:.0f} % of the distance between two images of a prompt",)
        return ()
    watched = [name for name in now.watched if trusted is None or name in trusted]
    if watched:
        changes = {name: change(untuned.watched[name], now.watched[name]) for name in watched}
        fallen = [f"{name} has fallen by {-each.mean:.3g}" for name, each in changes.items() if each.mean < -2 * each.error]
        return tuple(fallen) if 2 * len(fallen) >= len(watched) else ()
    signs, num_checks = [], 0
    checks = (
        ("the prompt margin has", untuned.margins, now.margins, 0.0, thresholds.least_margin_share),
        ("the rewards of mirrored images have", untuned.mirrored, now.mirrored, 1.0, thresholds.least_robust_share),
        ("the rewards of blurred images have", untuned.blurred, now.blurred, 1.0, thresholds.least_robust_share),
    )
    for name, before, after, added, share in checks:
        if not before or not after:
            continue
        num_checks += 1
        own = change(before, after)
        risen = own.mean + added * rise.mean  # mirrored and blurred are held as differences from the reward
        if risen < share * rise.mean:
            signs.append(f"{name} risen by only {risen:.3g}" if risen > 0 else f"{name} fallen by {-risen:.3g}")
    if untuned.distances and now.distances:
        num_checks += 1
        left = mean(now.distances) / max(mean(untuned.distances), 1e-9)
        if left < thresholds.least_distance_share:
            signs.append(f"the distance between images of one prompt has fallen to {100 * left:.0f} %")
    return tuple(signs) if len(signs) >= min(2, num_checks) else ()


def _sentence(history: Sequence[Evaluation], signs: Sequence[str], outcome: str, last_good: int) -> str:
    untuned, now = history[0], history[-1]
    if len(history) == 1:
        return f"The untuned generator has a reward of {untuned.reward:.3f} on held-out prompts."
    rise = change(untuned.rewards, now.rewards)
    moved = f"from {untuned.reward:.3f} to {now.reward:.3f} (± {2 * rise.error:.3f}) on held-out prompts"
    if signs:
        what = f"The reward rose {moved}, but {' and '.join(signs)}: the reward is being exploited"
        if signs[0].startswith(_MOVED):
            what = f"The reward has not clearly risen, {moved}, but {signs[0]}: they change without getting better"
        elif rise.mean < 0:
            what = f"The reward fell {moved}: the generator is being damaged"
        kept = "the untuned generator" if last_good == untuned.step else f"step {last_good}"
        sentence = f"{outcome}{kept} is the last good one."
        return f"{what}. {sentence[0].upper()}{sentence[1:]}"
    if rise.mean > 2 * rise.error:
        return f"The reward rose {moved}, without signs of over-optimisation."
    if rise.mean < -2 * rise.error:
        return f"The reward fell {moved}."
    return f"The reward has not changed beyond chance: {moved}."


# --- measures ------------------------------------------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of the values themselves."""
    middle = mean(values)
    return math.sqrt(mean([(value - middle) ** 2 for value in values]))


def change(before: Sequence[float], after: Sequence[float]) -> Change:
    """The mean change of paired values, and its standard error.

    >>> change([0.0, 0.0], [1.0, 3.0])
    Change(mean=2.0, error=1.0)
    """
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if len(differences) < 2:
        return Change(mean(differences), 0.0)
    return Change(mean(differences), deviation(differences) / math.sqrt(len(differences) - 1))


_MOVED = "the images have moved"
_ONE_SIDED = 1.645  # standard errors: a rise by chance is as large once in twenty times
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def can_be_mirrored(prompt: str) -> bool:
    """Whether the mirrored image suits the prompt as well.

    >>> can_be_mirrored("a cat left of a dog"), can_be_mirrored("a bright cat")
    (False, True)
    """
    return not _SIDES.search(prompt)


def mirrored(pixels: Tensor) -> Tensor:
    return pixels.flip(-1)


def blurred(pixels: Tensor) -> Tensor:
    """Means over squares of pixels [B, 3, H, W], 3 x 3 for images of 64 pixels and in proportion for larger ones."""
    import torch.nn.functional as F

    reach = max(1, round(min(pixels.shape[-2:]) / 64))
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, stride=1)


def distances(pixels: Tensor, groups: Sequence[Any]) -> Values:
    """Root mean squared differences between the images [B, 3, H, W] of each group, such as their prompts, one for each pair."""
    pairs = [(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups)) if groups[a] == groups[b]]
    return tuple(_difference(pixels[a], pixels[b]) for a, b in pairs)


def drifts(pixels: Tensor, untuned: Tensor) -> Values:
    """Root mean squared differences between images and those of the untuned generator with the same noise, both [B, 3, H, W]."""
    return tuple(map(_difference, pixels, untuned))


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt())
