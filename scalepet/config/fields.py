"""The fields of a section, whatever declares it: a model, a dataclass or a method's builder."""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

Trail = tuple[str, ...]
"""The names that lead to a field: ("train", "steps")."""

NEEDED: Any = object()
"""The default of a field that has none."""


@dataclass(frozen=True)
class Field:
    """One field of a section.

    Attributes:
        kind: its type, with its limits.
        default: ``NEEDED`` where the file must give it.
        meaning: for people.
    """

    name: str
    kind: Any
    default: Any
    meaning: str


def fields_of(section: Any) -> dict[str, Field]:
    """The fields of a pydantic model, of a dataclass, or the keyword-only parameters of a function,
    by name; nothing for a type that has none.
    """
    if isinstance(section, type) and issubclass(section, BaseModel):
        found = _of_model(section)
    elif dataclasses.is_dataclass(section):
        found = _of_dataclass(section)
    elif inspect.isfunction(section):
        found = _of_function(section)
    else:
        return {}
    return {field.name: field for field in found}


def walk(section: Any, parents: Trail = ()) -> Iterator[Trail]:
    """The trail of every field of a section and of the sections in it, in their order."""
    for field in fields_of(section).values():
        trail = (*parents, field.name)
        yield trail
        yield from walk(field.kind, trail)


def without_null(kind: Any) -> Any:
    """The one type that a field may hold besides null; the type itself where there are several."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    others = [member for member in get_args(kind) if member is not type(None)]
    return others[0] if len(others) == 1 else kind


def item_of(kind: Any) -> Any:
    """The type of the items of a list; None for what is no list."""
    is_list = get_origin(kind) in (list, tuple, collections.abc.Sequence)
    return get_args(kind)[0] if is_list else None


def _of_model(model: type[BaseModel]) -> Iterator[Field]:
    for name, info in model.model_fields.items():
        kind: Any = info.annotation
        if info.metadata:
            kind = Annotated[kind, *info.metadata]
        default = NEEDED if info.is_required() else info.get_default(call_default_factory=True)
        yield Field(name, kind, default, info.description or "")


def _of_dataclass(section: Any) -> Iterator[Field]:
    hints, meanings = get_type_hints(section), documented(section.__doc__)
    for field in dataclasses.fields(section):
        default = NEEDED if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Field(field.name, hints[field.name], default, meanings.get(field.name, ""))


def _of_function(function: Callable[..., Any]) -> Iterator[Field]:
    hints = get_type_hints(function, include_extras=True)
    meanings = documented(function.__doc__)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = NEEDED if parameter.default is parameter.empty else parameter.default
            yield Field(name, hints[name], default, meanings.get(name, ""))


def documented(docstring: str | None) -> Mapping[str, str]:
    """What the Args of a docstring say of each name; several names may share an entry."""
    _, _, args = inspect.cleandoc(docstring or "").partition("Args:\n")
    block = re.split(r"\n\n|\n(?=\S)", args, maxsplit=1)[0]
    meanings = {}
    for entry in re.split(r"\n(?=    \S)", f"\n{block}")[1:]:
        names, _, text = entry.partition(":")
        plain = " ".join(text.replace("``", "").split()).rstrip(".")
        meanings.update({name.strip(): plain for name in names.split(",")})
    return meanings
