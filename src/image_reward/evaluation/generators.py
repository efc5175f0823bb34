"""Image generators against each other: the rewards of the images that they made for the same prompts.

Images are of a generator and a prompt; several images of one prompt are told apart by a number. What is compared is like with like: the
same prompts, and of each prompt as many images of every generator.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from image_reward import metrics
from image_reward.evaluation.prompt_sets import Prompt, prompt_set, repeated, rows, some
from image_reward.files import written_whole
from image_reward.images import IMAGE_SUFFIXES
from image_reward.metrics import Difference, Interval
from image_reward.scorers import Scorer
from image_reward.scorers.identity import identity_of
from image_reward.scorers.together import long_prompts_reported_once, score_together

Rewards = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Scorer -> generator -> prompt id -> the reward of each image."""


# --- images ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Who made which images for which prompt."""

    paths: dict[str, dict[str, list[Path]]]
    """Generator -> prompt id -> images, in the order of their numbers."""
    extra: list[Path] = field(default_factory=list)
    """Files that belong to no prompt."""


def find_images(root: str | os.PathLike[str], prompts: Sequence[Prompt]) -> Images:
    """The images of a folder that has a folder for each generator, with files PROMPT_ID_NUMBER.png, or PROMPT_ID.png for a single one.

    Any image suffix will do; hidden files are passed over. Raises ``FileNotFoundError``, or ``ValueError`` where there are no generators,
    or two files are the same image of a prompt.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder of images: {root}")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    extra = sorted(path for path in root.iterdir() if not path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} holds no folders; it should have one for each generator, with images PROMPT_ID_NUMBER.png")
    ids = {prompt.id for prompt in prompts}
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in folders:
        numbered: dict[tuple[str, int], Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            places = _places(path.stem, ids) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else []
            if len(places) > 1:
                raise ValueError(
                    f"{path} is of prompt {places[0][0]!r}, or of {places[1][0]!r}; use a manifest, or ids that cannot be mixed up"
                )
            if not places:
                extra.append(path)
            elif (other := numbered.setdefault(places[0], path)) != path:
                raise ValueError(f"{path} and {other.name} are the same image of prompt {places[0][0]!r}; remove one")
        found[folder.name] = {}
        for (name, _), path in sorted(numbered.items()):
            found[folder.name].setdefault(name, []).append(path)
    return Images(found, extra)


def _places(stem: str, ids: set[str]) -> list[tuple[str, int]]:
    """The prompt and number that a file's name can mean."""
    name, _, number = stem.rpartition("_")
    places = [(stem, 0)] if stem in ids else []
    return [*places, (name, int(number))] if name in ids and number.isdecimal() else places


def read_manifest(path: str | os.PathLike[str], prompts: Sequence[Prompt] | None = None) -> tuple[list[Prompt], Images]:
    """Images as rows of a CSV, JSONL or Parquet file: ``generator``, ``prompt_id`` or ``prompt``, and ``image``, relative to the file.

    Rows may have both; without ``prompts`` these are the rows' own. Rows of prompts that are not among ``prompts`` are extra.

    Raises ``FileNotFoundError`` for the file or an image that is not there, or ``ValueError`` that names the row.
    """
    path = Path(path)
    by_id = {prompt.id: prompt for prompt in prompts or ()}
    by_text: dict[str, list[str]] = {}
    for prompt in prompts or ():
        by_text.setdefault(prompt.prompt, []).append(prompt.id)
    own: dict[str, Prompt] = {}
    found: dict[str, dict[str, list[Path]]] = {}
    extra = []
    seen: dict[tuple[str, Path], int] = {}
    for number, row in enumerate(rows(path), start=1):
        where = f"{path}, row {number}"
        generator, name, text, image = (row.get(key) for key in ("generator", "prompt_id", "prompt", "image"))
        if not (generator and image and (name is not None or text)):
            held = ", ".join(str(key) for key, value in row.items() if value not in (None, "")) or "nothing"
            raise ValueError(f"{where} has {held}; a row needs generator, image, and prompt_id or prompt")
        image = path.parent / str(image)
        if (other := seen.setdefault((str(generator), image), number)) != number:
            raise ValueError(f"{where} names {image}, which row {other} names for {generator} too")
        if prompts is None:
            name = str(text if name is None else name)
            known = own.setdefault(name, Prompt(name, str(text or "")))
            if not text or known.prompt != text:
                what = (
                    "has no prompt; add them, or give the prompts" if not text else f"has another prompt for {name!r} than a row before it"
                )
                raise ValueError(f"{where} {what}")
        elif name is None:
            ids = by_text.get(str(text), [])
            if len(ids) > 1:
                raise ValueError(f"{where}: several prompts read {text!r:.60} ({some(ids)}); give the prompt_id")
            name = ids[0] if ids else None
        elif text and str(name) in by_id and by_id[str(name)].prompt != text:
            raise ValueError(f"{where}: the prompt of {name!r} is {text!r:.60} there, but {by_id[str(name)].prompt!r:.60} in the prompts")
        images = found.setdefault(str(generator), {})
        if name is None or (prompts is not None and str(name) not in by_id):
            extra.append(image)
        elif not image.is_file():  # before a model is loaded, or hours of scoring are lost
            raise FileNotFoundError(f"{where}: no such image: {image}")
        else:
            images.setdefault(str(name), []).append(image)
    if not found:
        raise ValueError(f"{path} holds no rows")
    return list(prompts if prompts is not None else own.values()), Images(found, extra)


@dataclass(frozen=True)
class Selection:
    """The prompts that are compared, and how many images of each."""

    prompts: list[Prompt]
    num_images: list[int]
    """Of each generator, for each prompt: the first so many."""
    left_out_prompts: list[str]
    """The ids of those that some generator has no image of."""
    left_out_images: dict[str, int]
    """Generator -> how many of its images of known prompts are not compared, because another has fewer."""


def select(prompts: Sequence[Prompt], held: Mapping[str, Mapping[str, int]], allow_missing: bool = False) -> Selection:
    """Like with like. ``held``: generator -> prompt id -> how many images there are.

    All generators must have images of all prompts, and of each prompt equally many; with ``allow_missing`` the prompts that all have are
    taken, and of each the number of images that all have.

    Raises ``ValueError`` that says whose images of which prompts are missing.
    """
    full = {prompt.id: max((images.get(prompt.id, 0) for images in held.values()), default=0) for prompt in prompts}
    lacking = {
        generator: [f"{name} ({images.get(name, 0)} of {num or 1})" for name, num in full.items() if images.get(name, 0) < (num or 1)]
        for generator, images in held.items()
    }
    if any(lacking.values()) and not allow_missing:
        lines = [f"{generator}: {len(names)} of {len(prompts)} prompts: {some(names)}" for generator, names in lacking.items() if names]
        raise ValueError(
            "images are missing, and means over different images do not compare:\n  "
            + "\n  ".join(lines)
            + "\nMake them, or go on with those that all generators have (--allow-missing)"
        )
    least = {name: min(images.get(name, 0) for images in held.values()) for name in full}
    kept = [prompt for prompt in prompts if least[prompt.id]]
    if not kept:
        raise ValueError("there is no prompt that all generators have an image of; are these the prompts the images were made for?")
    left_out = {generator: sum(num - least[name] for name, num in images.items() if name in least) for generator, images in held.items()}
    return Selection(
        prompts=kept,
        num_images=[least[prompt.id] for prompt in kept],
        left_out_prompts=[prompt.id for prompt in prompts if not least[prompt.id]],
        left_out_images={generator: num for generator, num in left_out.items() if num},
    )


# --- rewards -----------------------------------------------------------------------------------------------------------------------


def score_images(
    scorers: Sequence[Scorer[Any]],
    images: Images,
    selection: Selection,
    save_to: Path | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Rewards, int]:
    """The rewards of the selected images, and how many of them had been saved by an earlier run. An image is opened once for all scorers.

    ``save_to``: a folder of results, SCORER/GENERATOR.json, that is written to as scoring goes on. What is there already is used if its
    prompt, its images' content and the scorer are the same.

    Raises ``ValueError`` for saved results of other prompts, or without the fingerprints that tell; and what scoring raises.
    """
    if twice := repeated([scorer.name for scorer in scorers]):
        raise ValueError(f"several scorers are called {some(twice)}; give each once")
    saved = {
        (scorer.name, generator): _Saved(_result_file(save_to, scorer.name, generator), selection.prompts)
        for scorer in scorers
        for generator in images.paths
        if save_to
    }
    marks = [scorer_fingerprint(scorer) if save_to else "" for scorer in scorers]
    found: dict[str, dict[str, dict[str, list[float]]]] = {s.name: {g: {} for g in images.paths} for s in scorers}
    total, done, reused = len(images.paths) * sum(selection.num_images), 0, 0
    step = 4 * min((scorer.batch_size for scorer in scorers), default=1)
    with long_prompts_reported_once(scorers, [prompt.prompt for prompt in selection.prompts]):
        for generator, paths in images.paths.items():
            for part in _parts(selection, step):
                jobs: dict[tuple[int, ...], list[tuple[Prompt, list[Path]]]] = {}  # by the scorers that have yet to score
                prints: dict[tuple[int, str], str] = {}
                for prompt, num in part:
                    chosen = paths[prompt.id][:num]
                    content = [hashlib.sha256(path.read_bytes()).hexdigest() for path in chosen] if save_to else []
                    missing = []
                    for number, scorer in enumerate(scorers):
                        prints[number, prompt.id] = hashlib.sha256("\n".join([marks[number], *content]).encode()).hexdigest()
                        known = saved[scorer.name, generator].get(prompt.id, prints[number, prompt.id]) if save_to else None
                        if known is None:
                            missing.append(number)
                        else:
                            found[scorer.name][generator][prompt.id] = known
                            reused += num
                    if missing:
                        jobs.setdefault(tuple(missing), []).append((prompt, chosen))
                for numbers, group in jobs.items():
                    rewards = score_together(
                        [scorers[n] for n in numbers], [p.prompt for p, c in group for _ in c], [str(path) for _, c in group for path in c]
                    )
                    for number, values in zip(numbers, rewards, strict=True):
                        name, rest = scorers[number].name, iter(values)
                        for prompt, chosen in group:
                            row = found[name][generator][prompt.id] = [next(rest) for _ in chosen]
                            if save_to:
                                saved[name, generator].add(prompt, row, prints[number, prompt.id])
                        if save_to:
                            saved[name, generator].write()
                done += sum(num for _, num in part)
                if on_image:
                    on_image(done, total)
    return found, reused


def _parts(selection: Selection, step: int) -> list[list[tuple[Prompt, int]]]:
    """The prompts in parts of about ``step`` images."""
    parts: list[list[tuple[Prompt, int]]] = [[]]
    for prompt, num in zip(selection.prompts, selection.num_images, strict=True):
        if sum(n for _, n in parts[-1]) >= step:
            parts.append([])
        parts[-1].append((prompt, num))
    return parts


def scorer_fingerprint(scorer: Scorer[Any]) -> str:
    """What changes when the scorer's rewards do: its identity, and, as its code may have changed, its rewards of a drawn image."""
    y, x = np.mgrid[:96, :128]
    image = np.stack([2 * x, 2 * y, (x * y) % 256], axis=-1).astype(np.uint8)
    rewards = scorer.score(["", "a cat", "three red circles on a blue square"], [image] * 3)
    return f"{identity_of(scorer)} {[f'{reward:.3e}' for reward in rewards]}"


def _result_file(folder: Path, scorer: str, generator: str) -> Path:
    if generator in ("", ".", "..") or re.search(r"[/\\]", generator):
        raise ValueError(f"results of the generator {generator!r} cannot be saved: its name cannot be a file's; rename it in the manifest")
    return folder / re.sub(r"[/\\]", "--", scorer) / f"{generator}.json"


class _Saved:
    """A generator's results by one scorer in a file, in the form of the published ones, with a fingerprint more."""

    def __init__(self, path: Path, prompts: Sequence[Prompt]) -> None:
        self.path = path
        self.rows = {row["id"]: row for row in _result_rows(path)} if path.exists() else {}
        self.order = [prompt.id for prompt in prompts]
        _check_same_prompts([Prompt(row["id"], row["prompt"]) for row in self.rows.values()], prompts, path)
        if any("fingerprint" not in row for row in self.rows.values()):
            raise ValueError(
                f"{path} does not say which images it is of, so it can be neither used nor written over; "
                "save to another folder, or read it with --results"
            )

    def get(self, name: str, fingerprint: str) -> list[float] | None:
        row = self.rows.get(name)
        return row["rewards"] if row and row["fingerprint"] == fingerprint else None

    def add(self, prompt: Prompt, rewards: list[float], fingerprint: str) -> None:
        row = {"id": prompt.id, "prompt": prompt.prompt, "mean_score": math.fsum(rewards) / len(rewards), "rewards": rewards}
        self.rows[prompt.id] = row | {"fingerprint": fingerprint}

    def write(self) -> None:
        ordered = {name: self.rows[name] for name in self.order if name in self.rows} | self.rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as temporary:
            temporary.write_text(json.dumps(list(ordered.values()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def holds_results(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is one of results, SCORER/GENERATOR.json, rather than of images."""
    inside = [path for path in Path(folder).glob("*/*") if path.is_file() and not path.name.startswith(".")]
    return bool(inside) and all(path.suffix == ".json" for path in inside)


def read_results(folder: str | os.PathLike[str], prompts: Sequence[Prompt] | None = None) -> tuple[list[Prompt], Rewards]:
    """Rewards from SCORER/GENERATOR.json files, as the paper's were published and as ``score_images`` saves them.

    Such a file is a list of {id, prompt, rewards: [..], mean_score}. Without ``prompts`` they are those of the files.

    Raises ``FileNotFoundError``, or ``ValueError`` that names the file where prompts differ, ids come twice or rewards are not finite
    numbers, or the scorer that lacks generators.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of results: {folder}")
    rewards: dict[str, dict[str, dict[str, list[float]]]] = {}
    known = {prompt.id: prompt for prompt in prompts or ()}
    for path in sorted(folder.glob("*/*.json")):
        table = _result_rows(path)
        found = [Prompt(row["id"], row["prompt"]) for row in table]
        if prompts is None:
            _check_same_prompts(found, list(known.values()), path)
            known |= {prompt.id: prompt for prompt in found if prompt.id not in known}
        else:
            _check_same_prompts(found, prompts, path)
            if unknown := [prompt.id for prompt in found if prompt.id not in known]:
                raise ValueError(f"{path} has {len(unknown)} prompts that are not among those given: {some(unknown)}")
        # the original's own program calls them SCORER/SCORER-benchmark-GENERATOR-result.json
        generator = path.stem.removeprefix(f"{path.parent.name}-benchmark-").removesuffix("-result")
        rewards.setdefault(path.parent.name, {})[generator] = {row["id"]: row["rewards"] for row in table}
    if not rewards:
        raise ValueError(f"{folder} holds no results; they are SCORER/GENERATOR.json files")
    generators = set().union(*rewards.values())
    for scorer, by_generator in rewards.items():
        if missing := sorted(generators - set(by_generator)):
            raise ValueError(f"{folder / scorer} lacks results of {some(missing)}, which others have; add or remove them")
    return list(known.values()), rewards


def _result_rows(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from None
    if not (isinstance(found, list) and found and all(isinstance(row, dict) and {"id", "prompt", "rewards"} <= set(row) for row in found)):
        raise ValueError(f"{path} holds no results: it should be a list of objects with id, prompt and rewards")
    if twice := repeated([str(row["id"]) for row in found]):
        raise ValueError(f"{path} has {len(twice)} ids more than once: {some(twice)}")
    for row in found:
        values = row["rewards"]
        if not (isinstance(values, list) and values):
            raise ValueError(f"{path}, prompt {row['id']}: the rewards are {values!r:.40}, not a list of numbers")
        for number, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{path}, prompt {row['id']}: reward {number} is {value!r:.40}; rewards must be finite numbers")
        mean = math.fsum(values) / len(values)
        told = row.get("mean_score", mean)
        if not isinstance(told, int | float) or not math.isclose(told, mean, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(f"{path}, prompt {row['id']}: mean_score is {told!r:.40}, but the mean of its rewards is {mean:.6g}")
        row["id"] = str(row["id"])
    return found


def _check_same_prompts(found: Sequence[Prompt], prompts: Sequence[Prompt], path: Path) -> None:
    known = {prompt.id: prompt.prompt for prompt in prompts}
    differing = [prompt for prompt in found if known.get(prompt.id, prompt.prompt) != prompt.prompt]
    if differing:
        first = differing[0]
        raise ValueError(
            f"{path} has other prompts for {len(differing)} ids: {some([prompt.id for prompt in differing])}; "
            f"{first.id} is {first.prompt!r:.80} there, and {known[first.id]!r:.80} elsewhere"
        )


# --- what people said --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HumanRanking:
    """The order that people put generators in."""

    source: str
    values: dict[str, float]
    """Generator -> the number that people gave it."""
    ranks: dict[str, int]
    """Generator -> its rank among those here, 1 for the best; equal numbers share one."""

    @classmethod
    def of(cls, source: str, values: Mapping[str, float], higher_is_better: bool = True) -> HumanRanking:
        sign = 1 if higher_is_better else -1
        ranks = {name: 1 + sum(sign * other > sign * value for other in values.values()) for name, value in values.items()}
        return cls(source, dict(values), ranks)


def published_ranking(generators: Sequence[str], prompts: Sequence[Prompt]) -> HumanRanking | None:
    """How often people preferred the generators of ImageReward's Table 1, by the names of their folders or their names there.

    None where fewer than three are recognised, or the prompts are not those that people compared them on.
    """
    table = json.loads(files("image_reward").joinpath("assets/human_wins.json").read_text(encoding="utf-8"))
    wins = {_plain(name): row["wins"] for row in table["generators"] for name in (row["name"], *row["folders"])}
    known = {generator: float(wins[_plain(generator)]) for generator in generators if _plain(generator) in wins}
    compared = {(prompt.id, prompt.prompt) for prompt in prompt_set(table["prompts"])}
    if len(known) < 3 or len(set(map(_plain, known))) < len(known) or not {(prompt.id, prompt.prompt) for prompt in prompts} <= compared:
        return None
    return HumanRanking.of(table["source"], known)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_ranking(path: str | os.PathLike[str], generators: Sequence[str], higher_is_better: bool) -> HumanRanking:
    """What people said, from a JSON object {generator: number}, such as wins (higher is better) or ranks (lower is).

    Raises ``FileNotFoundError``, or ``ValueError`` that names the generators it lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file of human rankings: {path}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict) or not all(type(value) in (int, float) and math.isfinite(value) for value in found.values()):
        raise ValueError(f"{path} should be a JSON object {{generator: number}}")
    if missing := [generator for generator in generators if generator not in found]:
        raise ValueError(f"{path} lacks {some(missing)}; it has {some(list(found))}")
    return HumanRanking.of(str(path), {generator: float(found[generator]) for generator in generators}, higher_is_better)


# --- statistics --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorResult:
    """A generator by one scorer."""

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
    """What one scorer says."""

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
    """A prompt with all that was found for it."""

    id: str
    prompt: str
    category: str
    images: dict[str, list[str]]
    """Generator -> images; empty for rewards that were saved earlier."""
    rewards: dict[str, dict[str, list[float]]]
    """Scorer -> generator -> the reward of each image."""


@dataclass(frozen=True)
class Benchmark:
    """Generators against each other."""

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
        found = asdict(self) | {"images_per_prompt": list(self.images_per_prompt)}
        if not per_prompt:
            del found["per_prompt"]
        return found


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
    chosen = {
        scorer: {
            generator: [
                np.asarray(of_prompt[prompt.id][:num], dtype=np.float64)
                for prompt, num in zip(selection.prompts, selection.num_images, strict=True)
            ]
            for generator, of_prompt in by_generator.items()
        }
        for scorer, by_generator in rewards.items()
    }
    results = [
        _scorer_result(scorer, by_generator, selection.prompts, human, confidence, num_resamples, seed)
        for scorer, by_generator in chosen.items()
    ]
    per_prompt = [
        BenchmarkPrompt(
            id=prompt.id,
            prompt=prompt.prompt,
            category=prompt.category,
            images={g: [str(path) for path in images.paths[g][prompt.id][:num]] for g in generators} if images else {},
            rewards={scorer: {g: values[p].tolist() for g, values in by_generator.items()} for scorer, by_generator in chosen.items()},
        )
        for p, (prompt, num) in enumerate(zip(selection.prompts, selection.num_images, strict=True))
    ]
    return Benchmark(
        generators=generators,
        scorers=results,
        num_prompts=len(selection.prompts),
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


def _scorer_result(
    scorer: str,
    rewards: Mapping[str, Sequence[metrics.Floats]],
    prompts: Sequence[Prompt],
    human: HumanRanking | None,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> ScorerResult:
    names = list(rewards)
    num = len(names)
    sizes = np.array([len(values) for values in rewards[names[0]]])
    most = int(sizes.min())
    best_of = np.empty((len(prompts), num, most))
    matrix = np.full((len(prompts), num, num), 0.5)
    for size in np.unique(sizes):  # prompts of equally many images at once
        alike = np.flatnonzero(sizes == size)
        stack = np.array([[rewards[name][p] for name in names] for p in alike.tolist()])  # [P, G, n]
        best_of[alike] = metrics.expected_maximum(stack)[:, :, :most]
        for a, b in combinations(range(num), 2):
            matrix[alike, a, b] = metrics.win_rate(stack[:, a], stack[:, b])
            matrix[alike, b, a] = 1 - matrix[alike, a, b]
    means = best_of[:, :, 0]
    contests = (np.sign(means[:, :, None] - means[:, None, :]) + 1) / 2
    wins, prompt_wins = ((table.sum(axis=2) - 0.5) / max(num - 1, 1) for table in (matrix, contests))  # [P, G], without itself

    columns = np.concatenate([best_of.reshape(len(prompts), -1), wins, prompt_wins], axis=1)
    samples = metrics.bootstrap(columns, groups=[prompt.prompt for prompt in prompts], num_resamples=num_resamples, seed=seed)
    values = columns.mean(axis=0)

    def estimate(column: int) -> Interval:
        return Interval(float(values[column]), *metrics.interval(samples[:, column], confidence), len(prompts))

    mean_columns = [g * most for g in range(num)]
    value, sampled = values[mean_columns], samples[:, mean_columns]
    ranks = 1 + (sampled[:, None, :] > sampled[:, :, None]).sum(axis=2)  # [R, G]
    tail = (1 - confidence) / 2
    low = np.quantile(ranks, tail, axis=0, method="inverted_cdf")
    high = np.quantile(ranks, 1 - tail, axis=0, method="inverted_cdf")
    order = sorted(range(num), key=lambda g: -value[g])
    categories = Counter(prompt.category for prompt in prompts if prompt.category)
    found = [
        GeneratorResult(
            name=names[g],
            rank=1 + int((value > value[g]).sum()),
            rank_low=int(low[g]),
            rank_high=int(high[g]),
            mean=estimate(g * most),
            median=float(np.median(np.concatenate(rewards[names[g]]))),
            win_rate=estimate(num * most + g) if num > 1 else None,
            prompt_win_rate=estimate(num * (most + 1) + g) if num > 1 else None,
            best_of=[estimate(g * most + n) for n in range(most)],
            by_category={c: float(means[[p.category == c for p in prompts], g].mean()) for c in categories},
        )
        for g in order
    ]
    spearman, kendall = (
        _agreement(f, names, value, ranks, human, confidence, len(prompts)) for f in (metrics.spearman, metrics.kendall_tau_b)
    )
    return ScorerResult(
        name=scorer,
        generators=found,
        win_matrix=matrix.mean(axis=0)[np.ix_(order, order)].tolist(),
        differences=metrics.differences(
            "mean", {names[g]: float(value[g]) for g in order}, {names[g]: sampled[:, g] for g in order}, confidence
        ),
        spearman=spearman,
        kendall_tau_b=kendall,
    )


def _agreement(
    correlation: Callable[[Any, Any], float],
    names: Sequence[str],
    value: metrics.Floats,
    ranks: np.ndarray[Any, Any],
    human: HumanRanking | None,
    confidence: float,
    num_prompts: int,
) -> Interval | None:
    """A rank correlation of mean rewards [G] with people, and its interval from the resampled ranks [R, G]."""
    if human is None or len(human.ranks) < 2:
        return None
    compared = [g for g, name in enumerate(names) if name in human.ranks]
    of_people = [human.ranks[names[g]] for g in compared]
    at = correlation(value[compared], of_people)
    if math.isnan(at):
        return None
    orders, times = np.unique(ranks[:, compared], axis=0, return_counts=True)  # few, however many resamples
    samples = np.repeat([correlation(-order, of_people) for order in orders], times)
    return Interval(at, *metrics.interval(samples, confidence), num_prompts)
