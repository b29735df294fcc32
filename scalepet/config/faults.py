"""pydantic's errors in plain words: one fault a field, with its value and what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic

from scalepet.config.fields import NEEDED, Field, Trail, fields_of, item_of, without_null
from scalepet.config.words import shown, words_of

_MAX_NAME = 60


def faults_of(
    error: pydantic.ValidationError,
    section: Any,
    content: Mapping[str, Any],
    *,
    parent: Trail = (),
    noun: str = "field",
    elsewhere: Iterable[Trail] = (),
) -> dict[Trail, str]:
    """The faults by the trail of their field. pydantic has an error for each member of a union and
    each item of a list; a person needs one.

    Args:
        section: what the content was checked against.
        parent: where the content lies in the file.
        noun: what a name in it is.
        elsewhere: fields of the whole file, to be named where one of them stands at a wrong place.
    """
    faults: dict[Trail, str] = {}
    for fault in error.errors():
        trail, field, inside = _find(section, fault["loc"])
        if field is None:
            hint = did_you_mean(
                trail[-1], list(fields_of(inside)), or_else=_moved(trail, elsewhere)
            )
            faults[trail] = f"{dotted(parent + trail)}: no such {noun}; {hint}"
        elif fault["type"].startswith("missing") and fault["loc"][-1] == trail[-1]:
            faults[trail] = f"{dotted(parent + trail)}: is missing; allowed: {_allowed(field)}"
        else:
            faults[trail] = wrong_value(parent + trail, field, _value_at(content, trail))
    return faults


def wrong_value(trail: Trail, field: Field, value: Any) -> str:
    """The fault of a value that a field does not take."""
    return f"{dotted(trail)}: {shown(value)}; allowed: {_allowed(field)}"


def dotted(trail: Trail) -> str:
    """The name of a field as one line, whatever its file calls it."""
    names = (name if name.isprintable() else repr(name) for name in trail)
    return ".".join(name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in names)


def _find(section: Any, location: Sequence[Any]) -> tuple[Trail, Field | None, Any]:
    """The field that an error is about, whichever part of its value pydantic points at, and the
    section that it is in; no field and the trail of a name that is none.
    """
    trail: Trail = ()
    field, inside = None, section
    for part in location:
        if field is not None and isinstance(part, int) and fields_of(item_of(section)):
            trail = (*trail[:-1], f"{trail[-1]}[{part}]")
            section = item_of(section)
            field = dataclasses.replace(field, kind=section, meaning="")
            continue
        fields = fields_of(section)
        if trail and not fields:
            break
        trail, inside = (*trail, str(part)), section
        field = fields.get(str(part))
        if field is None:
            break
        section = without_null(field.kind)
    return trail, field, inside


def _value_at(content: Any, trail: Trail) -> Any:
    for part in trail:
        name, is_item, index = part.partition("[")
        content = content[name]
        if is_item:
            content = content[int(index.removesuffix("]"))]
    return content


def _moved(trail: Trail, elsewhere: Iterable[Trail]) -> list[str]:
    """Where a name stands that is none at this place."""
    return [".".join(known) for known in elsewhere if known[-1] == trail[-1]]


def _allowed(field: Field) -> str:
    """What a field may hold; of a section, which fields it has."""
    inner = fields_of(field.kind)
    if not inner:
        words, meaning = words_of(field.kind), field.meaning
        is_said = not meaning or meaning.replace('"', "") == words
        return words if is_said else f"{words} ({meaning})"
    needed = [name for name, inner_field in inner.items() if inner_field.default is NEEDED]
    return f"the fields {', '.join(inner)}" + (f"; needed: {', '.join(needed)}" if needed else "")


def did_you_mean(name: str, allowed: Sequence[str], *, or_else: Sequence[str] = ()) -> str:
    """``did you mean steps? allowed: epochs, steps``; what looks like the name comes first, then
    the first of ``or_else``.
    """
    close = [*difflib.get_close_matches(name, allowed, n=1), *or_else]
    return (f"did you mean {close[0]}? " if close else "") + (
        f"allowed: {', '.join(allowed) or 'none'}"
    )
