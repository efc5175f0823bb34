"""Prompts to measure generators with: published sets by name, and files of your own."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from image_reward.addresses import Address, PathLike, scheme
from image_reward.downloads import WebFile, fetch
from image_reward.errors import InputError
from image_reward.rows import read_rows

_PROMPT_KEYS = ("prompt", "Prompt", "Prompts", "text")
_ID_KEYS = ("id", "prompt_id")
_CATEGORY_KEYS = ("category", "Category", "tag")


@dataclass(frozen=True)
class Prompt:
    """A prompt of a set."""

    id: str
    prompt: str
    category: str = ""
    """The kind of prompt, in sets that have categories."""


@dataclass(frozen=True)
class PromptSet:
    """A published set of prompts."""

    description: str
    licence: str
    num_prompts: int
    sources: Mapping[str, str]
    """Category -> URL of a file; the category is "" for a file that holds several or none."""
    packaged: str = ""
    """The file of this package that holds it."""


_HPDV2 = "https://huggingface.co/datasets/zhwang/HPDv2/resolve/b9517430f34b1080d4f741118d2a440155a165cd/benchmark"

PROMPT_SETS: dict[str, PromptSet] = {
    "ImageReward": PromptSet(
        description="the prompts of ImageReward's Table 1, chosen from DiffusionDB (Xu et al. 2023)",
        licence="Apache-2.0",
        num_prompts=100,
        sources={"": "https://github.com/THUDM/ImageReward/blob/main/benchmark/benchmark-prompts.json"},
        packaged="assets/benchmark_prompts.json",
    ),
    "DrawBench": PromptSet(
        description="short prompts in 11 categories: colours, counting, positions, text, … (Saharia et al. 2022, Imagen)",
        licence="Apache-2.0",
        num_prompts=200,
        sources={
            "": "https://huggingface.co/datasets/sayakpaul/drawbench/resolve/ad794cba698c253ffdb6d18eff3fc87b004c1135/"
            "DrawBench%20Prompts%20-%20Sheet1.csv"
        },
    ),
    "PartiPrompts": PromptSet(
        description="P2: prompts in 12 categories (Yu et al. 2022, Parti)",
        licence="Apache-2.0",
        num_prompts=1632,
        sources={"": "https://raw.githubusercontent.com/google-research/parti/2c99f6652cbc7f0d0441aa91f4c7e7055bcb0071/PartiPrompts.tsv"},
    ),
    "HPSv2": PromptSet(
        description="800 prompts in each of 4 styles (Wu et al. 2023, HPSv2)",
        licence="Apache-2.0",
        num_prompts=3200,
        sources={style: f"{_HPDV2}/{style}.json" for style in ("anime", "concept-art", "paintings", "photo")},
    ),
    "GenEval": PromptSet(
        description="object-focused prompts in 6 categories (Ghosh et al. 2023, GenEval)",
        licence="MIT",
        num_prompts=553,
        sources={
            "": "https://raw.githubusercontent.com/djghosh13/geneval/d927da8e42fde2b1b5cd743da4df5ff83c1654ff/"
            "prompts/evaluation_metadata.jsonl"
        },
    ),
}


def prompts(name_or_file: str | os.PathLike[str]) -> list[Prompt]:
    """The prompts of a known set, or of a file. A name wins over a file of the same name; write ``./NAME`` for the file.

    Raises what ``prompt_set`` and ``read_prompts`` raise.
    """
    name = os.fspath(name_or_file)
    return prompt_set(name) if name in PROMPT_SETS or (not scheme(name) and not Path(name).exists()) else read_prompts(name)


def prompt_set(name: str) -> list[Prompt]:
    """The prompts of a published set, downloaded once. Prompts published without ids are numbered: 00000, or anime-00000.

    Raises ``ValueError`` for an unknown name, or a file that is not the published one; ``DownloadError`` where it cannot be downloaded.
    """
    if name not in PROMPT_SETS:
        close = difflib.get_close_matches(name.lower(), [known.lower() for known in PROMPT_SETS], n=1, cutoff=0.5)
        hint = next((f" Did you mean {known}?" for known in PROMPT_SETS if close and known.lower() == close[0]), "")
        raise InputError(f"{name!r} is neither a file nor a known set of prompts.{hint} Known sets: {', '.join(PROMPT_SETS)}")
    spec = PROMPT_SETS[name]
    if spec.packaged:
        return read_prompts(str(files("image_reward").joinpath(spec.packaged)))
    published = []
    paths = [fetch_text(url) for url in spec.sources.values()]
    for category, path in zip(spec.sources, paths, strict=True):
        part = read_prompts(path)
        published += [Prompt(f"{category}-{p.id}" if category else p.id, p.prompt, category or p.category) for p in part]
    if len(published) != spec.num_prompts:
        places = ", ".join(map(str, paths))
        raise InputError(f"{name} has {spec.num_prompts} prompts, but {places} have {len(published)}; delete them and try again")
    return published


def fetch_text(url: str) -> Path:
    """A small file from the web, downloaded once. Mirrors of the hub (``HF_ENDPOINT``) and offline mode are honoured.

    Raises ``DownloadError`` that says how to place the file by hand.
    """
    from huggingface_hub import constants

    return fetch(WebFile(url.replace("https://huggingface.co", constants.ENDPOINT, 1)))


def read_prompts(path: PathLike | Address) -> list[Prompt]:
    """The prompts of a file, in its order.

    A JSON list of strings or of objects with ``prompt`` and optional ``id`` and ``category``; the same as JSONL, CSV, TSV or Parquet; or
    plain text with a prompt on each line. The format is recognised by the content, whatever the file's name. Prompts without ids are
    numbered: 00000, ….

    Raises ``FileNotFoundError``, or ``ValueError`` that names the row without a prompt or the ids used twice.
    """
    path = Address.parse(path)
    prompts = []
    for number, row in enumerate(read_rows(path, (*_PROMPT_KEYS, *_ID_KEYS, *_CATEGORY_KEYS), line="prompt")):
        text = _first(row.values, _PROMPT_KEYS)
        if not isinstance(text, str) or not text.strip():
            what = f"{text!r:.40} is not text; a prompt is a string, or an object with {_PROMPT_KEYS[0]!r}"
            raise InputError(f"{path}, prompt {number + 1}: {what}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}, prompt {number + 1}: {text!r:.60} holds half of a surrogate pair; decode its source again") from None
        name = _first(row.values, _ID_KEYS)
        prompts.append(Prompt(f"{number:05d}" if name is None else str(name), text, str(_first(row.values, _CATEGORY_KEYS) or "")))
    if not prompts:
        raise InputError(f"{path} has no prompts")
    if twice := repeated([prompt.id for prompt in prompts]):
        raise InputError(f"{path} has {len(twice)} ids more than once: {first_few(twice)}; every prompt needs an id of its own")
    return prompts


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once, each once.

    >>> repeated(["a", "b", "a"])
    ['a']
    """
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]


def first_few(names: Sequence[str], limit: int = 10) -> str:
    """The first names of a list and the number of the others, for a message.

    >>> first_few(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
