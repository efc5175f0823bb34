"""The images that generators made for prompts: finding them, and selecting those that are compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from image_reward.addresses import Address
from image_reward.errors import InputError
from image_reward.image_files import IMAGE_SUFFIXES
from image_reward.prompt_sets import Prompt, first_few
from image_reward.rows import read_rows


@dataclass(frozen=True)
class Images:
    """The images of each generator and prompt."""

    paths: dict[str, dict[str, list[Path]]]
    """Generator -> prompt id -> images, in the order of their numbers."""
    extra: list[Path] = field(default_factory=list)
    """Files that belong to no prompt."""

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Generator -> prompt id -> the number of images, as ``select`` takes it."""
        return {generator: {name: len(paths) for name, paths in by_prompt.items()} for generator, by_prompt in self.paths.items()}


# --- a folder ------------------------------------------------------------------------------------------------------------------------


def find_images(root: str | os.PathLike[str], prompts: Sequence[Prompt]) -> Images:
    """The images of a folder that has a folder for each generator, with files PROMPT_ID_NUMBER.png, or PROMPT_ID.png for a single one.

    Any image suffix will do; hidden files are passed over. Raises ``FileNotFoundError``, or ``ValueError`` where there are no generators,
    or two files are the same image of a prompt.
    """
    root = Address.parse(root).local
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder of images: {root}")
    visible = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        raise InputError(f"{root} has no folders; it should have one for each generator, with images PROMPT_ID_NUMBER.png")
    ids = {prompt.id for prompt in prompts}
    images = Images({}, [path for path in visible if not path.is_dir()])
    for folder in folders:
        images.paths[folder.name] = _images_of(folder, ids, images.extra)
    return images


def _images_of(folder: Path, ids: set[str], extra: list[Path]) -> dict[str, list[Path]]:
    """Prompt id -> a generator's images, in the order of their numbers. Files that belong to no prompt are added to ``extra``."""
    numbered: dict[tuple[str, int], Path] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        places = _places(path.stem, ids) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else []
        if len(places) > 1:
            raise InputError(
                f"{path} is of prompt {places[0][0]!r}, or of {places[1][0]!r}; use a manifest, or ids that cannot be mixed up"
            )
        if not places:
            extra.append(path)
        elif (other := numbered.setdefault(places[0], path)) != path:
            raise InputError(f"{path} and {other.name} are the same image of prompt {places[0][0]!r}; remove one")
    by_prompt: dict[str, list[Path]] = {}
    for (name, _), path in sorted(numbered.items()):
        by_prompt.setdefault(name, []).append(path)
    return by_prompt


def _places(stem: str, ids: set[str]) -> list[tuple[str, int]]:
    """The possible readings of a file's name: prompt id and number."""
    name, _, number = stem.rpartition("_")
    places = [(stem, 0)] if stem in ids else []
    return [*places, (name, int(number))] if name in ids and number.isdecimal() else places


# --- a manifest ----------------------------------------------------------------------------------------------------------------------


_MANIFEST = ("generator", "prompt_id", "prompt", "image")


def read_manifest(path: str | os.PathLike[str], prompts: Sequence[Prompt] | None = None) -> tuple[list[Prompt], Images]:
    """Images as rows of a CSV, JSONL or Parquet file: ``generator``, ``prompt_id`` or ``prompt``, and ``image``, relative to the file.

    Rows may have both; without ``prompts`` the prompts are those of the rows. Rows of prompts that are not among ``prompts`` are extra.

    Raises ``FileNotFoundError`` for the file or an image that is not there, or ``ValueError`` that names the row.
    """
    path = Path(path)
    known: _RowPrompts | _KnownPrompts = _RowPrompts() if prompts is None else _KnownPrompts(prompts)
    images = Images({})
    first_rows: dict[tuple[str, Path], int] = {}
    for number, row in enumerate(read_rows(path, _MANIFEST), start=1):
        where = f"{path}, row {number}"
        values = {key: value for key, value in row.values.items() if value not in (None, "")}
        generator, name, text, file = (values.get(key) for key in _MANIFEST)
        if not (generator and file and (name is not None or text)):
            present = ", ".join(map(str, values)) or "nothing"
            raise InputError(f"{where} has {present}; a row needs generator, image, and prompt_id or prompt")
        generator, image = str(generator), path.parent / str(file)
        if (other := first_rows.setdefault((generator, image), number)) != number:
            raise InputError(f"{where} names {image}, which row {other} names for {generator} too")
        by_prompt = images.paths.setdefault(generator, {})
        prompt = known.find(None if name is None else str(name), str(text or ""), where)
        if prompt is None:
            images.extra.append(image)
        elif not image.is_file():  # before a model is loaded and hours of scoring are lost
            raise FileNotFoundError(f"{where}: no such image: {image}")
        else:
            by_prompt.setdefault(prompt.id, []).append(image)
    if not images.paths:
        raise InputError(f"{path} has no rows")
    return list(known.by_id.values()), images


class _KnownPrompts:
    """The known prompts that a manifest's rows refer to."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.by_id = {prompt.id: prompt for prompt in prompts}
        self.ids_by_text: dict[str, list[str]] = {}
        for prompt in prompts:
            self.ids_by_text.setdefault(prompt.prompt, []).append(prompt.id)

    def find(self, name: str | None, text: str, where: str) -> Prompt | None:
        """The prompt with this id, or else with this text, or None. Raises ``ValueError`` for a row that contradicts the prompts."""
        if name is None:
            ids = self.ids_by_text.get(text, [])
            if len(ids) > 1:
                raise InputError(f"{where}: several prompts read {text!r:.60} ({first_few(ids)}); add the prompt_id")
            if not ids:
                return None
            name = ids[0]
        prompt = self.by_id.get(name)
        if prompt and text and prompt.prompt != text:
            raise InputError(f"{where}: the prompt of {name!r} is {text!r:.60} there, but {prompt.prompt!r:.60} in the prompts")
        return prompt


class _RowPrompts:
    """The prompts named by a manifest's own rows."""

    def __init__(self) -> None:
        self.by_id: dict[str, Prompt] = {}

    def find(self, name: str | None, text: str, where: str) -> Prompt:
        if not text.strip():
            raise InputError(f"{where} has no prompt; add it to the row, or use --prompts")
        prompt = self.by_id.setdefault(name or text, Prompt(name or text, text))
        if prompt.prompt != text:
            raise InputError(f"{where} has another prompt for {name!r} than a row before it")
        return prompt


# --- selection ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The prompts that are compared, and the number of images of each."""

    prompts: list[Prompt]
    num_images: list[int]
    """Of each generator, for each prompt: the first N."""
    left_out_prompts: list[str]
    """The ids of those that some generator has no image of."""
    left_out_images: dict[str, int]
    """Generator -> how many of its images of known prompts are not compared, because another has fewer."""


def select(prompts: Sequence[Prompt], counts: Mapping[str, Mapping[str, int]], allow_missing: bool = False) -> Selection:
    """The prompts and images over which means compare. ``counts``: generator -> prompt id -> the number of images.

    All generators must have images of all prompts, and equally many of each prompt. ``allow_missing`` selects the prompts that all have
    images of, and of each prompt the number of images that all have.

    Raises ``ValueError`` that says whose images of which prompts are missing.
    """
    expected = {prompt.id: max((images.get(prompt.id, 0) for images in counts.values()), default=0) for prompt in prompts}
    lacking = {
        generator: [f"{name} ({images.get(name, 0)} of {num or 1})" for name, num in expected.items() if images.get(name, 0) < (num or 1)]
        for generator, images in counts.items()
    }
    if any(lacking.values()) and not allow_missing:
        lines = [
            f"{generator}: {len(names)} of {len(prompts)} prompts: {first_few(names)}" for generator, names in lacking.items() if names
        ]
        raise InputError(
            "images are missing, and means over different images do not compare:\n  "
            + "\n  ".join(lines)
            + "\nMake them, or continue with those that all generators have (--allow-missing)"
        )
    least = {name: min(images.get(name, 0) for images in counts.values()) for name in expected}
    kept = [prompt for prompt in prompts if least[prompt.id]]
    if not kept:
        raise InputError("no prompt has an image from every generator; check that these are the prompts the images were made for")
    left_out = {generator: sum(num - least[name] for name, num in images.items() if name in least) for generator, images in counts.items()}
    return Selection(
        prompts=kept,
        num_images=[least[prompt.id] for prompt in kept],
        left_out_prompts=[prompt.id for prompt in prompts if not least[prompt.id]],
        left_out_images={generator: num for generator, num in left_out.items() if num},
    )
