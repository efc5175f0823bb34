"""Human rankings of generators: published with the ImageReward paper, or from a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from image_reward.errors import InputError
from image_reward.evaluation.published_results import plain_name
from image_reward.files import read_json
from image_reward.prompt_sets import Prompt, first_few, prompt_set


@dataclass(frozen=True)
class HumanRanking:
    """A human ranking of generators."""

    source: str
    values: dict[str, float]
    """Generator -> its number, such as wins, ratings or ranks."""
    ranks: dict[str, int]
    """Generator -> its rank among these, 1 for the best; equal numbers share a rank."""

    @classmethod
    def of(cls, source: str, values: Mapping[str, float], higher_is_better: bool = True) -> HumanRanking:
        """From a value for each generator, such as wins; equal values share a rank."""
        sign = 1 if higher_is_better else -1
        ranks = {name: 1 + sum(sign * other > sign * value for other in values.values()) for name, value in values.items()}
        return cls(source, dict(values), ranks)


def published_ranking(generators: Sequence[str], prompts: Sequence[Prompt]) -> HumanRanking | None:
    """The human wins of ImageReward's Table 1, for generators named as there or as the folders of the published images.

    None where fewer than three are recognised, or the prompts are others than those of the table.
    """
    table = json.loads(files("image_reward").joinpath("assets/human_wins.json").read_text(encoding="utf-8"))
    wins = {plain_name(name): row["wins"] for row in table["generators"] for name in (row["name"], *row["folders"])}
    known = {generator: float(wins[plain_name(generator)]) for generator in generators if plain_name(generator) in wins}
    compared = {(prompt.id, prompt.prompt) for prompt in prompt_set(table["prompts"])}
    if len(known) < 3 or len(set(map(plain_name, known))) < len(known) or not {(p.id, p.prompt) for p in prompts} <= compared:
        return None
    return HumanRanking.of(table["source"], known)


def read_ranking(path: str | os.PathLike[str], generators: Sequence[str], higher_is_better: bool) -> HumanRanking:
    """A JSON object {generator: number}, such as wins (higher is better) or ranks (lower is).

    Raises ``FileNotFoundError``, or ``ValueError`` that names the generators it lacks.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file of human rankings: {path}")
    values = read_json(path, error=InputError)
    if not isinstance(values, dict) or not all(type(value) in (int, float) and math.isfinite(value) for value in values.values()):
        raise InputError(f"{path} should be a JSON object {{generator: number}}")
    if missing := [generator for generator in generators if generator not in values]:
        raise InputError(f"{path} lacks {first_few(missing)}; it has {first_few(list(values))}")
    return HumanRanking.of(str(path), {generator: float(values[generator]) for generator in generators}, higher_is_better)
