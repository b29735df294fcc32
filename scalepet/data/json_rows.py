"""Rows of JSON files: a text is the text that stands there, never a date; a number stays a number
where its column has nothing else and all of its digits can be kept, else it is the text of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from scalepet.data.local_files import (
    CONTENT_ERRORS,
    MAX_COLUMNS,
    lines_of,
    open_content,
    reason,
    unreadable,
)
from scalepet.data.rows import listed
from scalepet.errors import DataError

MAX_DOCUMENT = 2**30
"""Bytes of a file that is one JSON value, which is read as a whole."""

MAX_NESTING = 32
ROWS_KEY = "data"
"""Under which a file like those of SQuAD, {version, data: [...]}, has its rows."""

Kind = str | list[Any] | dict[str, Any]
"""Of a value: "null", "bool", "int", "float" or "text"; [kind of the items]; {name: kind}."""

_KIND_OF = {str: "text", bool: "bool"}
"""Of values that need no second look."""

_WORDS: dict[type, str] = {list: "a list", dict: "fields"}


class Number(float):
    """A number that knows how it is written."""

    written: str

    @classmethod
    def of(cls, written: str) -> Number:
        number = cls(written)
        number.written = written
        return number


def read_json(file: Path) -> Iterator[dict[str, Any]]:
    """The rows: one object a line, a list of objects, or what stands under "data" in one object.

    Raises:
        DataError: with the row: no JSON, a name twice, a value that is no object, text that is not
            UTF-8; or the file holds no row.
    """
    num_rows, names = 0, list[str]()
    try:
        for found in _values(file):
            if not isinstance(found, dict):
                raise ValueError(f"{_shown(found)} is no object with fields")
            yield found
            num_rows, names = num_rows + 1, [*found]
    except (*CONTENT_ERRORS, RecursionError) as error:
        behind = f", behind one with the columns {listed(names)}" if names else ""
        told = ValueError(f"row {num_rows}{behind}: {_reason(error)}")
        raise unreadable(str(file), told) from None
    if not num_rows:
        raise unreadable(str(file), ValueError("it holds no row"))


def _values(file: Path) -> Iterator[Any]:
    lines = (line for line in lines_of(file) if line.strip())
    first, second = next(lines, ""), next(lines, "")
    if not first:
        return
    try:
        value = _parsed(first)
    except json.JSONDecodeError:
        if not second:
            raise
        value, second = _document(file), ""
    if isinstance(value, list) and not second:
        yield from value
    elif not second and isinstance(value, dict) and _is_list_of_rows(value.get(ROWS_KEY)):
        yield from value[ROWS_KEY]
    else:
        yield value
        # What is cut shows in the row behind the last whole one, so each row is parsed in its turn.
        yield from map(_parsed, chain([second] if second else [], lines))


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _document(file: Path) -> Any:
    with open_content(file) as opened:
        content = opened.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise ValueError(f"it is larger than {MAX_DOCUMENT:,} bytes; allowed: one row a line")
    return _parsed(content.decode("utf-8-sig"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in one object")
    return found


_parsed = json.JSONDecoder(
    parse_float=Number.of, parse_constant=Number.of, object_pairs_hook=_object
).decode


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MAX_NESTING} levels"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error}"
    return reason(error) if isinstance(error, OSError) else str(error)


def _shown(value: Any) -> str:
    return repr(value)[:40]


def kinds_of(rows: Iterator[dict[str, Any]], known: dict[str, Any], *, file: Path) -> list[str]:
    """Widen ``known``, the kind of each column, by these rows.

    Returns:
        The columns that the rows have, in the order in which they come.

    Raises:
        DataError: a column has texts or numbers in one row and lists or fields in another, too many
            columns, or too many levels; with the row.
    """
    names: dict[str, None] = {}
    for row, found in enumerate(rows):
        names.update(dict.fromkeys(found))
        for name, value in found.items():
            kind = known.get(name, "null")
            if _KIND_OF.get(type(value)) == kind:
                continue
            try:
                known[name] = _widened(kind, value)
            except ValueError as error:
                raise DataError(
                    f"{str(file)!r}: row {row}: column {name!r} {error}; allowed: values of one"
                    " kind in a column"
                ) from error
        if len(known) > MAX_COLUMNS:
            raise DataError(
                f"{str(file)!r} has more than {MAX_COLUMNS:,} columns, the most allowed"
            )
    return [*names]


def _widened(known: Kind, value: Any, level: int = 0) -> Kind:
    if level > MAX_NESTING:
        raise ValueError(f"is nested deeper than {MAX_NESTING} levels")
    if not isinstance(value, (list, dict)):
        kind = _scalar(value)
        if kind == "null" or known == kind:
            return known
        if isinstance(known, str):
            return kind if known == "null" else "text"
        if is_empty(known):
            return kind
        raise ValueError(f"is {_shown(value)} here and {_WORDS[type(known)]} in another row")
    if isinstance(known, str) and (known != "null"):
        if value:
            raise ValueError(f"is {_shown(value)} here and {known} in another row")
        return known
    if isinstance(known, str) or (is_empty(known) and value):
        known = type(value)()
    if type(known) is not type(value):
        if value:
            raise ValueError(f"is {_shown(value)} here and {_WORDS[type(known)]} in another row")
        return known
    return _widened_inside(known, value, level)


def _widened_inside(known: Kind, value: Any, level: int) -> Kind:
    if isinstance(known, list):
        item = known[0] if known else "null"
        for one in value:
            item = _widened(item, one, level + 1)
        return [item] if value or known else []
    assert isinstance(known, dict)
    for name, one in value.items():
        known[name] = _widened(known.get(name, "null"), one, level + 1)
    if len(known) > MAX_COLUMNS:
        raise ValueError(f"has more than {MAX_COLUMNS:,} fields")
    return known


def is_empty(kind: Kind) -> bool:
    """Whether nothing but empty lists or empty objects has been seen."""
    return isinstance(kind, (list, dict)) and not kind


def _scalar(value: Any) -> str:
    if type(value) is str:
        return "text"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "text"
    if isinstance(value, float):
        is_kept = repr(float(value)) == getattr(value, "written", "")
        return "float" if is_kept else "text"
    return "text"


def converted(value: Any, kind: Kind) -> Any:
    """The value as its column holds it; what is missing or empty in a column of texts is None."""
    if _KIND_OF.get(type(value)) == kind:
        return value
    if isinstance(kind, list) and isinstance(value, list):
        return [converted(one, kind[0]) for one in value]
    if isinstance(kind, dict) and isinstance(value, Mapping):
        return {name: converted(value.get(name), inner) for name, inner in kind.items()}
    if isinstance(value, (list, dict)) or _scalar(value) == "null":
        return None
    return _written(value) if kind == "text" else value


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return getattr(value, "written", None) or str(value)


def arrow_type(kind: Kind) -> Any:
    """The Arrow type that holds all values of a kind; of nothing but nulls, texts."""
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(arrow_type(kind[0] if kind else "null"))
    if isinstance(kind, dict):
        if not kind:
            return pa.string()
        return pa.struct([(name, arrow_type(inner)) for name, inner in kind.items()])
    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    return types.get(kind, pa.string())
