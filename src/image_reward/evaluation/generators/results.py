"""Rewards in files, SCORER/GENERATOR.json: as the paper's were published, and as scoring saves them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from image_reward.addresses import Address
from image_reward.errors import InputError
from image_reward.files import read_json, written_whole
from image_reward.prompt_sets import Prompt, first_few, repeated

_LARGEST_FILE = 1 << 28  # bytes; the rewards of a million images take a tenth of it
Rewards = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Scorer -> generator -> prompt id -> the reward of each image."""


@dataclass(frozen=True)
class ResultRow:
    """The rewards of a generator's images for a prompt, in the published form plus a fingerprint."""

    id: str
    prompt: str
    mean_score: float
    rewards: list[float]
    fingerprint: str | None
    """Changes when the images or the scorer do; None in published results."""


class SavedResults:
    """The file of a generator's rewards by one scorer: read if it exists, and written as scoring proceeds.

    Raises ``ValueError`` for a file of other prompts, or without the fingerprints that identify its images.
    """

    def __init__(self, folder: Path, scorer: str, generator: str, prompts: Sequence[Prompt]) -> None:
        if generator in ("", ".", "..") or re.search(r"[/\\]", generator):
            raise InputError(
                f"results of the generator {generator!r} cannot be saved: its name cannot be a file's; rename it in the manifest"
            )
        self.path = folder / re.sub(r"[/\\]", "--", scorer) / f"{generator}.json"
        self.rows = {row.id: row for row in _read_rows(self.path)} if self.path.exists() else {}
        self.order = [prompt.id for prompt in prompts]
        _check_same_prompts(self.rows.values(), prompts, self.path)
        if any(row.fingerprint is None for row in self.rows.values()):
            raise InputError(
                f"{self.path} does not identify its images, so it can be neither used nor overwritten; "
                "save to another folder, or read it with --results"
            )

    def get(self, prompt: Prompt, fingerprint: str) -> list[float] | None:
        row = self.rows.get(prompt.id)
        return row.rewards if row and row.fingerprint == fingerprint else None

    def add(self, prompt: Prompt, rewards: list[float], fingerprint: str) -> None:
        self.rows[prompt.id] = ResultRow(prompt.id, prompt.prompt, math.fsum(rewards) / len(rewards), rewards, fingerprint)

    def write(self) -> None:
        ordered = {name: self.rows[name] for name in self.order if name in self.rows} | self.rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as temporary:
            text = json.dumps([asdict(row) for row in ordered.values()], indent=1, ensure_ascii=False)
            temporary.write_text(f"{text}\n", encoding="utf-8")


def has_results(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has results, SCORER/GENERATOR.json, rather than images."""
    inside = [path for path in Path(folder).glob("*/*") if path.is_file() and not path.name.startswith(".")]
    return bool(inside) and all(path.suffix == ".json" for path in inside)


def read_results(folder: str | os.PathLike[str], prompts: Sequence[Prompt] | None = None) -> tuple[list[Prompt], Rewards]:
    """Rewards from SCORER/GENERATOR.json files, as the paper's were published and as ``score_images`` saves them.

    Such a file is a list of {id, prompt, rewards: [..], mean_score}. Without ``prompts`` they are those of the files.

    Raises ``FileNotFoundError``, or ``ValueError`` that names the file where prompts differ, ids come twice or rewards are not finite
    numbers, or the scorer that lacks generators.
    """
    folder = Address.parse(folder).local
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of results: {folder}")
    rewards: dict[str, dict[str, dict[str, list[float]]]] = {}
    known = {prompt.id: prompt for prompt in prompts or ()}
    for path in sorted(folder.glob("*/*.json")):
        results = _read_rows(path)
        _check_same_prompts(results, list(known.values()), path)
        if prompts is None:
            known |= {row.id: Prompt(row.id, row.prompt) for row in results if row.id not in known}
        elif unknown := [row.id for row in results if row.id not in known]:
            raise InputError(f"{path} has {len(unknown)} ids that the prompts lack: {first_few(unknown)}")
        # The original's own program calls them SCORER/SCORER-benchmark-GENERATOR-result.json.
        generator = path.stem.removeprefix(f"{path.parent.name}-benchmark-").removesuffix("-result")
        rewards.setdefault(path.parent.name, {})[generator] = {row.id: row.rewards for row in results}
    if not rewards:
        raise InputError(f"{folder} has no results; they are SCORER/GENERATOR.json files")
    generators = set().union(*rewards.values())
    for scorer, by_generator in rewards.items():
        if missing := sorted(generators - set(by_generator)):
            raise InputError(f"{folder / scorer} lacks results of {first_few(missing)}, which others have; add or remove them")
    return list(known.values()), rewards


def _read_rows(path: Path) -> list[ResultRow]:
    content = read_json(path, _LARGEST_FILE, InputError)
    if not (isinstance(content, list) and content and all(map(_is_result, content))):
        raise InputError(f"{path} has no results: it should be a list of objects with id, prompt and rewards")
    if twice := repeated([str(row["id"]) for row in content]):
        raise InputError(f"{path} has {len(twice)} ids more than once: {first_few(twice)}")
    return [_row(row, f"{path}, prompt {row['id']}") for row in content]


def _is_result(row: object) -> bool:
    if not (isinstance(row, dict) and {"id", "prompt", "rewards"} <= set(row)):
        return False
    return isinstance(row["id"], str | int) and isinstance(row["prompt"], str)


def _row(row: Mapping[str, Any], where: str) -> ResultRow:
    rewards = row["rewards"]
    if not (isinstance(rewards, list) and rewards):
        raise InputError(f"{where}: the rewards are {rewards!r:.40}, not a list of numbers")
    for number, value in enumerate(rewards):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{where}: reward {number} is {value!r:.40}; rewards must be finite numbers")
    mean = math.fsum(rewards) / len(rewards)
    stated = row.get("mean_score", mean)
    if not isinstance(stated, int | float) or not math.isclose(stated, mean, rel_tol=1e-4, abs_tol=1e-4):
        raise InputError(f"{where}: mean_score is {stated!r:.40}, but the mean of its rewards is {mean:.6g}")
    return ResultRow(str(row["id"]), row["prompt"], stated, rewards, row.get("fingerprint"))


def _check_same_prompts(rows: Iterable[ResultRow], prompts: Sequence[Prompt], path: Path) -> None:
    known = {prompt.id: prompt.prompt for prompt in prompts}
    differing = [row for row in rows if known.get(row.id, row.prompt) != row.prompt]
    if differing:
        first = differing[0]
        raise InputError(
            f"{path} has other prompts for {len(differing)} ids: {first_few([row.id for row in differing])}; "
            f"{first.id} is {first.prompt!r:.80} there, and {known[first.id]!r:.80} elsewhere"
        )
