"""Names of a package that are imported on first use, so that a command's help or a table of models loads no PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        with _collector_paused():
            module = import_module(f"{package}.{home_of[name]}")
        return getattr(module, name)

    return getattr_of_package


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without garbage collection, which takes a sixth of the import of PyTorch and collects next to nothing: most of it lives on."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
