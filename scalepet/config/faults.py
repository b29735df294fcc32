"""pydantic's errors in plain words: one fault a field, with its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic

from scalepet.config.fields import NEEDED, Field, Trail, fields_of
from scalepet.config.words import shown, words_of


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
        trail, field = _find(section, fault["loc"])
        name = ".".join(parent + trail)
        if field is None:
            faults[trail] = f"{name}: no such {noun}; {_hint(trail, section, elsewhere)}"
        elif fault["type"].startswith("missing") and fault["loc"][-1] == trail[-1]:
            faults[trail] = f"{name}: is missing; allowed: {_allowed(field)}"
        else:
            value = shown(_value_at(content, trail))
            faults[trail] = f"{name}: {value}; allowed: {_allowed(field)}"
    return faults


def _find(section: Any, location: Sequence[Any]) -> tuple[Trail, Field | None]:
    """The field that an error is about, whichever part of its value pydantic points at; None with
    the trail of a name that is no field.
    """
    trail: Trail = ()
    field = None
    for part in location:
        fields = fields_of(section)
        if trail and not fields:
            break
        trail = (*trail, str(part))
        field = fields.get(str(part))
        if field is None:
            break
        section = field.kind
    return trail, field


def _value_at(content: Any, trail: Trail) -> Any:
    for name in trail:
        content = content[name]
    return content


def _allowed(field: Field) -> str:
    """What a field may hold; of a section, which fields it has."""
    inner = fields_of(field.kind)
    if not inner:
        words, meaning = words_of(field.kind), field.meaning
        is_said = not meaning or meaning.replace('"', "") == words
        return words if is_said else f"{words} ({meaning})"
    needed = [name for name, inner_field in inner.items() if inner_field.default is NEEDED]
    return f"the fields {', '.join(inner)}" + (f"; needed: {', '.join(needed)}" if needed else "")


def _hint(trail: Trail, section: Any, elsewhere: Iterable[Trail]) -> str:
    *parents, name = trail
    for parent in parents:
        section = fields_of(section)[parent].kind
    moved = [".".join(known) for known in elsewhere if known[-1] == name]
    return did_you_mean(name, list(fields_of(section)), or_else=moved)


def did_you_mean(name: str, allowed: Sequence[str], *, or_else: Sequence[str] = ()) -> str:
    """``did you mean steps? allowed: epochs, steps``; what looks like the name comes first, then
    the first of ``or_else``.
    """
    close = [*difflib.get_close_matches(name, allowed, n=1), *or_else]
    return (f"did you mean {close[0]}? " if close else "") + (
        f"allowed: {', '.join(allowed) or 'none'}"
    )
