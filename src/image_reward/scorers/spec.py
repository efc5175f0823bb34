"""What a scorer that can be loaded by name is, and what is handed to whoever builds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from image_reward.config import WEIGHTS_NAME, ScorerConfig
from image_reward.downloads import INDEX_SUFFIX, HubFile, WebFile, fetch, find_local, shards_of
from image_reward.types import ImageOptions, LongPrompts

if TYPE_CHECKING:
    import torch

    from image_reward.scorers.base import Scorer

Thing = TypeVar("Thing")
Devices: TypeAlias = "torch.device | Literal['auto'] | None"
"""A device, or "auto": over all CUDA devices, and the CPU for what does not fit there."""


@dataclass(frozen=True)
class LoadOptions:
    """What ``load`` hands to whatever builds a scorer."""

    name: str
    """The name that the scorer shows."""
    images: ImageOptions = field(default_factory=ImageOptions)
    long_prompts: LongPrompts = "truncate"
    config: ScorerConfig | str | os.PathLike[str] | None = None
    """The config that the user gave."""
    registered: ScorerConfig | None = None
    """The config in the table of names."""
    exact: bool = False
    dtype: torch.dtype | None = None
    devices: Devices = None
    """Where a network that fills the memory is to be, and in which precision: others are built in float32 on the CPU, and moved."""
    load_member: Callable[[str], Scorer[Any]] | None = None
    """Builds a member of a scorer that is made of others, from what ``load`` takes, with the same options; None for a member itself."""
    shared: dict[Hashable, Any] = field(default_factory=dict)
    """What scorers that are loaded together have in common."""

    def once(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """What ``make`` returns, made only once for all scorers that are loaded together.

        The key says what it is and what it is made of, as in ``once(("CLIP", path), lambda: read_clip(path))``.
        """
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


Paths = Mapping[str, Path]
"""The files of a scorer by the names of its ``ModelSpec``. What a user gives is called "folder"; "config", where it is a JSON file; else
"weights". Those that an index names are called as they are named there."""

Build = Callable[[Paths, LoadOptions], "Scorer[Any]"]
"""Builds a scorer from its files: in float32 on the CPU, or as the options ask where it could not be moved from there."""


@dataclass(frozen=True)
class ModelSpec:
    """A scorer that can be loaded by name."""

    description: str
    """What the score means, in one line."""
    licence: str
    """Of the weights."""
    range: str
    """The values that the score takes, in words."""
    build: Build
    files: Mapping[str, HubFile | WebFile] = field(default_factory=dict)
    """What is downloaded, by the names that ``build`` knows it by, such as "config", "weights" or "tokenizer"."""
    config: ScorerConfig | None = None
    """For a file that carries none."""
    packaged: str = ""
    """The folder of this package that holds it, in place of ``files``."""
    least_size: int | None = None
    """Bytes of the tensors that the network reads, where the size of the file with them is not published: it is larger."""
    notice: str = ""
    """What whoever uses it must know, in one line."""

    def local_paths(self) -> Paths | None:
        """Where its files are on this machine, if they all are."""
        if self.packaged:
            return {"folder": self._folder}
        try:
            return self._located(find_local)
        except ValueError:  # a damaged index; ``fetch`` says so
            return None

    def fetch(self, cache_dir: Path | None = None) -> Paths:
        """Its verified files, downloaded if need be. Raises what ``downloads.fetch`` raises."""
        if self.packaged:
            return {"folder": self._folder}
        paths = self._located(lambda file: fetch(file, cache_dir))
        assert paths is not None
        return paths

    def _located(self, locate: Callable[[HubFile | WebFile], Path | None]) -> dict[str, Path] | None:
        """Where the files are, and the weights that an index among them names; None if one is nowhere."""
        paths: dict[str, Path] = {}
        for part, file in self.files.items():
            path = locate(file)
            if path is None:
                return None
            paths[part] = path
            if isinstance(file, HubFile) and file.name.endswith(INDEX_SUFFIX):
                for name in shards_of(path):
                    shard = locate(HubFile(file.repo, name))
                    if shard is None:
                        return None
                    paths[name] = shard
        return paths

    @property
    def size(self) -> int | None:
        """Bytes of all files whose size is published; None where that of the weights is not. Configs and tokenizers are small."""
        if self.packaged:
            return (self._folder / WEIGHTS_NAME).stat().st_size
        if any(file.size is None for part, file in self.files.items() if part in ("weights", "head", "index")):
            return None
        return sum(file.size or 0 for file in self.files.values())

    @property
    def _folder(self) -> Path:
        return Path(str(files("image_reward").joinpath(self.packaged)))
