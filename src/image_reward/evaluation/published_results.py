"""Published results on published data sets, from `assets/published_results.json`, which names its sources."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from image_reward.types import Comparison

Measure = Literal["diff", "tau", "labels"]
"""Of GenAI-Bench: over the ordered pairs; over all with calibrated ties; as matches of a judge's four labels."""


@dataclass(frozen=True)
class PublishedAccuracy:
    """The pairwise accuracy of a scorer, in percent."""

    scorer: str
    accuracy: float
    source: str
    here: str | None
    """The measured scorer of that name; None if there is none."""
    measure: Measure | None = None
    """How ties count, where the source says."""


@dataclass(frozen=True)
class HumanAgreement:
    """How often two humans put a pair of images in the same order, in percent."""

    who: str
    agreement: float
    source: str


@dataclass(frozen=True)
class RecallAndFilter:
    """k -> recall@k and filter@k of a scorer, in percent."""

    scorer: str
    recall: dict[int, float]
    filter: dict[int, float]


@dataclass(frozen=True)
class BestAndWorst:
    """Recall and filter, which were published for other data than the accuracies."""

    source: str
    data: str
    rows: list[RecallAndFilter]


@dataclass(frozen=True)
class PublishedResults:
    """The published results of one data set."""

    name: str
    human: list[HumanAgreement]
    best_and_worst: BestAndWorst | None
    accuracies: list[PublishedAccuracy]
    sources: dict[str, str]
    """Name of a source, as in the rows -> its address."""
    note: str = ""
    """What to know before comparing with them, where the data could be another part of the same data set."""


def published_results(comparisons: Sequence[Comparison], counts: Mapping[str, int], scorers: Sequence[str]) -> PublishedResults | None:
    """The published results of the data set that ``comparisons`` are, or None.

    A data set is recognised by its ids and prompts (see ``fingerprint``), or by its ``counts`` and, where these are round numbers or not
    published, the form that it was read from, wherever its images are and whatever the name of its file. ``scorers``: the names of those
    that are measured, for the ``here`` of the accuracies.
    """
    table = json.loads(files("image_reward").joinpath("assets/published_results.json").read_text(encoding="utf-8"))
    digest = fingerprint(comparisons)
    for data in table["datasets"]:
        counted = all(counts.get(what) == num for what, num in data["counts"].items())
        form = data.get("form")  # whose rows say whose they are
        if digest == data["sha256"] or (counted and (form is None or all(c.source == form for c in comparisons))):
            return _results(data, table["sources"], scorers)
    return None


def _results(data: Mapping[str, Any], sources: Mapping[str, str], scorers: Sequence[str]) -> PublishedResults:
    """An entry of the file, whose accuracies carry other spellings of a scorer's name under ``also``."""
    names = {plain_name(spelling): row["scorer"] for row in data["accuracies"] for spelling in (row["scorer"], *row["also"])}
    here = {names[plain_name(scorer)]: scorer for scorer in scorers if plain_name(scorer) in names}
    accuracies = [
        PublishedAccuracy(row["scorer"], row["accuracy"], row["source"], here.get(row["scorer"]), row.get("measure"))
        for row in data["accuracies"]
    ]
    human = [HumanAgreement(**row) for row in data["human"]]
    citations = [row.source for row in accuracies] + [row.source for row in human]
    best = data["best_and_worst"]
    return PublishedResults(
        name=data["name"],
        human=human,
        best_and_worst=best and BestAndWorst(best["source"], best["data"], [_recall_and_filter(row) for row in best["rows"]]),
        accuracies=accuracies,
        note=data.get("note", ""),
        sources={name: address for name, address in sources.items() if any(cited.startswith(name) for cited in citations)},
    )


def _recall_and_filter(row: Mapping[str, Any]) -> RecallAndFilter:
    recall, filtered = ({int(k): value for k, value in row[what].items()} for what in ("recall", "filter"))
    return RecallAndFilter(row["scorer"], recall, filtered)


def fingerprint(comparisons: Sequence[Comparison]) -> str:
    """The sha256 of the ids and prompts, whatever their order."""
    return hashlib.sha256(json.dumps(sorted((c.id, c.prompt) for c in comparisons)).encode()).hexdigest()


def plain_name(name: str) -> str:
    """The name of a model without case, punctuation or the owner of a hub id, for recognising it however it is spelt.

    >>> plain_name("yuvalkirstain/PickScore_v1") == plain_name("pickscore v1")
    True
    """
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].casefold())


@dataclass(frozen=True)
class PublishedExample:
    """Rewards that a model's authors published for images that anybody can have."""

    prompt: str
    rewards: Mapping[str, float]
    """File name -> reward."""
    source: str
    """Where the images are."""
    tolerance: float
    """How far rewards computed on another processor, or with another version of a library, may be from them."""


EXAMPLES: Mapping[str, PublishedExample] = {
    "ImageReward-v1.0": PublishedExample(
        "a painting of an ocean with clouds and birds, day time, low depth field effect",
        {"1.webp": 0.5811622738838196, "2.webp": 0.2745276093482971, "3.webp": -1.4131819009780884, "4.webp": -2.029569625854492},
        "https://github.com/THUDM/ImageReward/tree/main/assets/images",
        0.01,
    )
}
"""Registered name -> the example in the documentation of its weights."""
