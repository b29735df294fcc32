"""Templates: one string with column names in braces, "Input: {premise} {hypothesis} Output: "."""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import Formatter
from typing import Any

Piece = tuple[str, str | None]
"""Literal text, then the column that follows it (None at the end of a template)."""


def parse_template(template: str) -> list[Piece]:
    """The pieces of a template in order; ``{{`` and ``}}`` are literal braces.

    Raises:
        ValueError: a brace without its partner, a field without a name, or a field with a
            conversion or format; the message says which.
    """
    pieces: list[Piece] = []
    for literal, name, spec, conversion in Formatter().parse(template):
        if name == "":
            raise ValueError("a field without a column name: {}")
        if spec or conversion:
            raise ValueError(f"the field {name!r} has a conversion or format; only {{{name}}}")
        pieces.append((literal, name))
    return pieces


def template_columns(template: str) -> tuple[str, ...]:
    """The columns a valid template uses, each once, in order of first use."""
    return tuple(dict.fromkeys(name for _, name in parse_template(template) if name is not None))


def template_fault(template: str) -> str | None:
    """What is wrong with a template, in words, or None."""
    try:
        columns = template_columns(template)
    except ValueError as error:
        return f"{error}; literal braces are written {{{{ and }}}}"
    return None if columns else 'it names no column, as in "{text}"'


def render(pieces: list[Piece], texts: Mapping[str, str]) -> str:
    """The text of one row; ``texts`` maps column names to their texts."""
    return "".join(literal + (texts[name] if name is not None else "") for literal, name in pieces)


def value_text(value: Any) -> str | None:
    """The text of one raw value: strings as they are, numbers formatted.

    None for what has no text: None, NaN, a blank string, a list, a dict, a date.
    """
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, (int, float)) else None
