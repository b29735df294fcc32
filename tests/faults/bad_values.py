"""Values that a field cannot take, found from its type by rules that are not pydantic's, and each
with its reason.
"""

from __future__ import annotations

import collections.abc
import math
import random
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen

from scalepet.config.fields import NEEDED, Trail, fields_of, without_null

CANDIDATES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    1.0,
    0.5,
    -0.25,
    math.nan,
    math.inf,
    -math.inf,
    -(10**9),
    2**40,
    "",
    "word",
    "3",
    "true",
    "3x",
    [],
    [None],
    [[1], {}],
    {},
    {"a": {"b": None}},
    {1: 2},
)


@dataclass(frozen=True)
class Bad:
    """One thing that is wrong with a config.

    Attributes:
        trail: the field; may end in a name that is none.
        value: what stands there; ``GONE`` for nothing.
        why: it is bad, for whoever reads that it was taken.
        names: what the refusal has to name.
    """

    trail: Trail
    value: Any
    why: str
    names: str

    def __str__(self) -> str:
        shown = "nothing" if self.value is GONE else repr(self.value)
        return f"{'.'.join(self.trail)}={shown[:30]}"


GONE: Any = object()


def takes(kind: Any, value: Any) -> bool:
    """Whether a field of this type may hold the value, as the words of ``--fields`` have it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return takes(arguments[0], value) and all(
            _is_within(value, limit) for limit in kind.__metadata__
        )
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(takes(member, value) for member in arguments)
    if origin in (list, tuple, collections.abc.Sequence):
        return _takes_list(arguments, value)
    if origin in (dict, collections.abc.Mapping):
        key, inner = arguments
        return isinstance(value, dict) and all(
            takes(key, name) and takes(inner, one) for name, one in value.items()
        )
    if fields_of(kind):
        return isinstance(value, dict)  # what is in it has trails of its own
    return _takes_one(kind, value)


def _takes_list(arguments: tuple[Any, ...], value: Any) -> bool:
    is_fixed = len(arguments) > 1 and arguments[-1] is not Ellipsis
    fits = isinstance(value, list) and (not is_fixed or len(value) == len(arguments))
    return fits and all(takes(arguments[0], one) for one in value)


def _takes_one(kind: Any, value: Any) -> bool:
    if kind is float:
        is_number = type(value) in (int, float)
        return is_number and math.isfinite(value)
    if kind is Path:
        return type(value) is str and value != ""
    return type(value) is kind


def _is_within(value: Any, limit: Any) -> bool:
    if isinstance(limit, Gt):
        return bool(value > limit.gt)
    if isinstance(limit, Ge):
        return bool(value >= limit.ge)
    if isinstance(limit, Lt):
        return bool(value < limit.lt)
    if isinstance(limit, Le):
        return bool(value <= limit.le)
    return not isinstance(limit, MinLen) or len(value) >= limit.min_length


def bad_leaves(section: Any, parents: Trail, *, each: int, chance: random.Random) -> Iterator[Bad]:
    """So many values of each field of a section, and of the sections in it, that it cannot take."""
    for field in fields_of(section).values():
        trail = (*parents, field.name)
        refused = [value for value in CANDIDATES if not takes(field.kind, value)]
        for value in chance.sample(refused, min(each, len(refused))):
            yield Bad(trail, value, f"{field.kind} does not take it", ".".join(trail))
        for choice in _choices(field.kind):
            yield Bad(trail, misspelt(choice, chance), "it is misspelt", ".".join(trail))
        yield from bad_leaves(without_null(field.kind), trail, each=each, chance=chance)


def _choices(kind: Any) -> list[str]:
    """One of the words that a field may hold, if it has such."""
    return [choice for choice in get_args(kind) if isinstance(choice, str)][:1]


def bad_names(section: Any, parents: Trail, *, chance: random.Random) -> Iterator[Bad]:
    """A misspelt and an unknown name in a section and in each in it, and each needed field left
    out.
    """
    fields = fields_of(section)
    if not fields:
        return
    where = ".".join((*parents, "")) if parents else ""
    wrong = misspelt(chance.choice(list(fields)), chance)
    yield Bad((*parents, wrong), 1, "no field is called so", f"{where}{wrong}: no such")
    unknown = "x" + "".join(chance.choices("abcdefgh", k=7))
    yield Bad((*parents, unknown), {"a": 1}, "no field is called so", f"{where}{unknown}: no such")
    for name, field in fields.items():
        if field.default is NEEDED:
            yield Bad((*parents, name), GONE, "it is needed", f"{where}{name}")
        yield from bad_names(without_null(field.kind), (*parents, name), chance=chance)


def misspelt(word: str, chance: random.Random) -> str:
    """The word with a letter twice: no field and no choice has its like beside it."""
    place = chance.randrange(len(word))
    return word[: place + 1] + word[place:]


def changed(content: Mapping[str, Any], bad: Bad) -> dict[str, Any]:
    """The content with the bad value in its place."""
    first, *rest = bad.trail
    if rest:
        inner = content.get(first) or {}
        return {**content, first: changed(inner, Bad(tuple(rest), bad.value, "", ""))}
    return {
        name: value for name, value in {**content, first: bad.value}.items() if value is not GONE
    }
