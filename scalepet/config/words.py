"""Types and values in plain words."""

from __future__ import annotations

import collections.abc
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Lt

_MAX_VALUE_LENGTH = 100
_NAMES = {str: "text", bool: "true or false", Path: "a path", type(None): "null", Any: "any value"}


def words_of(annotation: Any) -> str:
    """What a field of this type may hold, e.g. ``a whole number from 1, or null``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(arguments[0], arguments[1:])
    if origin in (Literal, Union, types.UnionType):
        return listed(list(dict.fromkeys(_choices(annotation))))
    if origin in (list, tuple, collections.abc.Sequence):
        is_fixed = origin is tuple and arguments[-1] is not Ellipsis
        number = f"{len(arguments)} " if is_fixed else ""
        return f"a list of {number}{_several(words_of(arguments[0]))}"
    if origin in (dict, collections.abc.Mapping):
        return f"fields with {words_of(arguments[1])} each"
    if annotation in (int, float):
        return _limited(annotation, ())
    return _NAMES.get(annotation, "fields")


def _several(words: str) -> str:
    is_number = words.startswith(("a number", "a whole number"))
    return words[2:].replace("number", "numbers") if is_number else words.replace("text", "texts")


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _choices(member)
    else:
        yield words_of(annotation)


def _limited(kind: Any, limits: Sequence[Any]) -> str:
    if kind is str and limits:
        return "text that is not empty"
    if kind not in (int, float):
        return words_of(kind)
    words = "a whole number" if kind is int else "a number"
    for limit in limits:
        if isinstance(limit, Gt):
            words += f" from {int(limit.gt) + 1}" if kind is int else f" above {limit.gt}"  # type: ignore[call-overload]
        if isinstance(limit, Ge):
            words += f" from {limit.ge}"
        if isinstance(limit, Lt):
            words += f" to below {limit.lt:g}" if kind is float else f" to below {limit.lt}"
    return words


def listed(choices: Sequence[str]) -> str:
    """``a, b or c``; ``a, b or c, or null`` where a choice is itself a list of choices."""
    *others, last = choices
    comma = "," if any(" or " in choice for choice in others) else ""
    return f"{', '.join(others)}{comma} or {last}" if others else last


def shown(value: Any) -> str:
    """A value in a message, in the words of YAML, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{name}: {shown(inner)}" for name, inner in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(shown, value)) + "]"
    else:
        text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}..."
