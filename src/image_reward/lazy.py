"""Names of a package that are imported on first use, so that a command's help or a table of models loads no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562) whose modules ``homes`` hold these names.

    >>> lazy_names("image_reward", {"types": ["Ranking"]})("Ranking").__name__
    'Ranking'
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def getattr_of_package(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return getattr_of_package
