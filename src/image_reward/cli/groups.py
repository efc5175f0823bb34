"""The settings of a recipe as options in groups, and back: the recipe is flat, and its class says where each group begins."""

from __future__ import annotations

from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from image_reward.cli.help import field_docs
from image_reward.recipes import Recipe

Settings = TypeVar("Settings", bound=Recipe)


@cache
def options_of(kind: Any) -> type:
    """A dataclass of the settings of a class of recipes: those before its first group, then a dataclass for each of ``kind.groups``.

    Settings that are dataclasses themselves are groups of their own already.
    """
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
    top: list[Any] = []
    members: dict[str, list[Any]] = {title: [] for title in kind.groups}
    begins = {first: title for title, (first, _) in kind.groups.items()}
    group = top
    for each in fields(kind):
        if each.name in begins:
            group = members[begins[each.name]]
        option = (each.name, Annotated[hints[each.name], tyro.conf.arg(help=docs.get(each.name))], _default(each))
        (top if is_dataclass(hints[each.name]) else group).append(option)
    for title, options in members.items():
        part = make_dataclass(title, options, frozen=True, namespace={"__doc__": kind.groups[title][1]})
        top.append((title, tyro.conf.OmitArgPrefixes[part], field(default_factory=part)))  # type: ignore[valid-type, misc]
    return make_dataclass(kind.__name__, top, frozen=True, namespace={"__doc__": kind.__doc__})


def options_from(settings: Recipe) -> Any:
    """Settings as ``options_of`` their class."""
    kind: Any = type(settings)
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}  # type: ignore[arg-type]
    parts: dict[str, Any] = {each.name: each.default_factory for each in fields(options_of(kind)) if each.name in kind.groups}
    grouped = {title: part(**{each.name: values.pop(each.name) for each in fields(part)}) for title, part in parts.items()}
    return options_of(kind)(**values, **grouped)


def settings_from(options: Any, kind: type[Settings]) -> Settings:
    """The settings of what ``options_from`` made. Raises ``InputError`` as ``kind`` does."""
    values = {each.name: getattr(options, each.name) for each in fields(options)}
    for title in kind.groups:
        values |= asdict(values.pop(title))
    return kind(**values)


def _default(setting: Field[Any]) -> Any:
    return field(default_factory=setting.default_factory) if setting.default_factory is not MISSING else field(default=setting.default)
