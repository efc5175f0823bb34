"""Lets ``image_reward`` be the package beside this one, whatever else bears that name where a program runs.

Programs written for image-reward 1.5 call scripts and folders of their own ``image_reward``, and those come first on Python's path. Every
module here imports this one first, because some programs load modules of this package without its ``__init__``.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

_NAME = "image_reward"


def _put_in_place() -> None:
    spec = PathFinder.find_spec(_NAME, [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))])
    if spec is None or spec.loader is None or spec.origin is None:  # it is not installed beside this package
        return
    other = sys.modules.get(_NAME)
    if other is None:
        module = sys.modules[_NAME] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return
    origin = getattr(other, "__file__", None) or next(iter(getattr(other, "__path__", [])), "a module without a file")
    if os.path.realpath(origin) != os.path.realpath(spec.origin):
        raise ImportError(
            f"{origin} was imported as {_NAME!r}, which is the name of the package that ImageReward is built on ({spec.origin}): "
            "give yours another name",
            name=_NAME,
            path=origin,
        )


_put_in_place()
