"""How tyro makes help of the commands' classes."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import tyro

CONFIG = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
"""No ``--no-json`` beside ``--json``, and no ``{None}`` among the values of an option that can be left out."""

_QUIET = tyro.conf.arg(help_behavior_hint=lambda default: "" if default in ("None", "False", "") else f"(default: {default})")


def without_empty_defaults(command: type) -> None:
    """Leave "(default: None)" and "(default: False)" out of the help of a dataclass and of the groups in it.

    tyro takes this from annotations alone, so it is added to all of them here rather than written beside each.
    """
    for kind in command.__mro__:
        if not is_dataclass(kind):
            continue
        hints = get_type_hints(kind, include_extras=True)
        for name in vars(kind).get("__annotations__", {}):
            hint = hints[name]
            for part in _parts(hint):
                if isinstance(part, type) and is_dataclass(part):
                    without_empty_defaults(part)
            base, *others = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if _QUIET not in others and get_origin(base) is not ClassVar:
                kind.__annotations__[name] = Annotated[(base, _QUIET, *others)]  # first, so that an argument's own hint prevails


def _parts(hint: Any) -> list[Any]:
    return [hint, *(part for argument in get_args(hint) for part in _parts(argument))]
