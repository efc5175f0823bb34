"""What others measured on a data set, where it is a published one: `assets/published_results.json`, which names its sources."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from image_reward.types import Comparison


def published_results(comparisons: Sequence[Comparison], counts: Mapping[str, int], scorers: Sequence[str]) -> dict[str, Any] | None:
    """The published results of the data set that ``comparisons`` are, or None.

    A data set is recognised by its ids and prompts (see ``fingerprint``), or by its ``counts``, wherever its images are and whatever its
    file is called. In the rows of ``accuracies`` and ``best_and_worst``, ``here`` is the one of ``scorers`` that bears the row's name.
    """
    told = json.loads(files("image_reward").joinpath("assets/published_results.json").read_text(encoding="utf-8"))
    mark = fingerprint(comparisons)
    for found in told["datasets"]:
        if mark == found["sha256"] or all(counts.get(what) == num for what, num in found["counts"].items()):
            break
    else:
        return None
    names = {_plain(also): row["scorer"] for row in found["accuracies"] for also in (row["scorer"], *row["also"])}
    here = {names[_plain(scorer)]: scorer for scorer in scorers if _plain(scorer) in names}
    accuracies = [{k: row[k] for k in ("scorer", "accuracy", "source")} | {"here": here.get(row["scorer"])} for row in found["accuracies"]]
    rows = [*found["accuracies"], *found["people"]]
    sources = {name: place for name, place in told["sources"].items() if any(row["source"].startswith(name) for row in rows)}
    return {key: found[key] for key in ("name", "people", "best_and_worst")} | {"accuracies": accuracies, "sources": sources}


def fingerprint(comparisons: Sequence[Comparison]) -> str:
    """The sha256 of the ids and prompts, in whatever order they come."""
    return hashlib.sha256(json.dumps(sorted((c.id, c.prompt) for c in comparisons)).encode()).hexdigest()


def _plain(name: str) -> str:
    """A scorer's name without case, punctuation or the owner of a hub id.

    >>> _plain("yuvalkirstain/PickScore_v1") == _plain("pickscore v1")
    True
    """
    return re.sub(r"[^a-z0-9]", "", name.rpartition("/")[2].casefold())
