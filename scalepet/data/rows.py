"""Rows as data/ reads them, and the one way to refuse bad ones: all together, with examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from reprlib import Repr
from typing import Any, Protocol

from scalepet.errors import DataError

NUM_ROWS_READ = 1000
"""Rows held as Python objects at a time."""

NUM_EXAMPLES_SHOWN = 5
NUM_ALLOWED_SHOWN = 20

_shorten = Repr()
_shorten.maxstring = _shorten.maxother = 60


class Rows(Protocol):
    """The part of ``datasets.Dataset`` that is used here."""

    @property
    def column_names(self) -> list[str]:
        """Names of all columns."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Column name -> its type; a type with ``names`` holds numbers of named classes."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, rows: slice, /) -> Mapping[str, Sequence[Any]]:
        """Column name -> the values of these rows."""

    def select_columns(self, column_names: list[str], /) -> Rows:
        """The same rows with these columns only."""


def read_rows(rows: Rows, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, row by row.

    Raises:
        DataError: as ``check_columns``, or a text that is not UTF-8.
    """
    check_columns(rows, columns)
    trails = [trail_of(rows, column) or (column,) for column in columns]
    chosen = rows.select_columns(list(dict.fromkeys(first for first, *_ in trails)))
    for start in range(0, len(chosen), NUM_ROWS_READ):
        end = min(start + NUM_ROWS_READ, len(chosen))
        try:
            part = chosen[start:end]
        except UnicodeDecodeError as error:  # arrow takes the bytes of a JSON file unseen
            raise DataError(
                f"columns {listed(columns)}: rows {start} to {end - 1} cannot be read: {error};"
                " allowed: texts in UTF-8"
            ) from error
        yield from zip(*(_at_end(part[first], inner) for first, *inner in trails), strict=True)


def trail_of(rows: Rows, column: str) -> tuple[str, ...] | None:
    """The names that lead to a column: "translation.en" is the field en of the column translation,
    where there is no column of the whole name. None where there is no such column.
    """
    if column in rows.column_names:
        return (column,)
    first, *inner = column.split(".")
    while inner and first not in rows.column_names:
        first, inner = f"{first}.{inner[0]}", inner[1:]
    if not inner:
        return None
    feature = rows.features[first]
    for name in inner:
        fields = _fields_of(feature)
        if name not in fields:
            return None
        feature = fields[name]
    return (first, *inner)


def _fields_of(feature: Any) -> Mapping[str, Any]:
    """The fields of a type; of a list those of its items."""
    while not isinstance(feature, Mapping) and hasattr(feature, "feature"):
        feature = feature.feature
    return feature if isinstance(feature, Mapping) else {}


def _at_end(values: Sequence[Any], trail: Sequence[str]) -> Sequence[Any]:
    for name in trail:
        values = [_field(value, name) for value in values]
    return values


def _field(value: Any, name: str) -> Any:
    """The field of an object, or of each object of a list."""
    if isinstance(value, list):
        return [_field(one, name) for one in value]
    return value.get(name) if isinstance(value, Mapping) else None


def check_columns(rows: Rows, columns: Sequence[str]) -> None:
    """Nothing, if the rows have all of these columns.

    Raises:
        DataError: columns that are missing, all of them, with those that exist.
    """
    missing = [column for column in dict.fromkeys(columns) if trail_of(rows, column) is None]
    if missing:
        allowed = ", ".join(
            name
            for column in rows.column_names
            for name in [f"{column}.{field}" for field in _fields_of(rows.features.get(column))]
            or [column]
        )
        raise DataError([f"column {column!r} is missing; columns: {allowed}" for column in missing])


def class_names(rows: Rows, column: str) -> list[str] | None:
    """The class names of a ClassLabel column, whose raw values count them; else None."""
    feature: Any = rows.features
    for name in trail_of(rows, column) or (column,):
        feature = _fields_of(feature).get(name)
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


class BadRows:
    """Bad rows by column and by what is allowed there; they are refused together."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], list[str]] = {}

    def add(self, row: int, *, column: str, value: object, allowed: str) -> None:
        """Note one bad value; ``row`` counts from 0 within the split."""
        key = (column, allowed)
        self._counts[key] = self._counts.get(key, 0) + 1
        examples = self._examples.setdefault(key, [])
        if len(examples) < NUM_EXAMPLES_SHOWN:
            examples.append(f"row {row}: {_shorten.repr(value)}")

    def refuse(self, *, num_rows: int) -> None:
        """Raise DataError if a bad value was noted: one fault for each column and reason."""
        faults = []
        for (column, allowed), count in self._counts.items():
            shown = self._examples[column, allowed]
            more = f", and {count - len(shown)} more" if count > len(shown) else ""
            faults.append(
                f"column {column!r}: {count} of {num_rows} rows cannot be used "
                f"({', '.join(shown)}{more}); allowed: {allowed}"
            )
        if faults:
            raise DataError(faults)


def listed(values: Sequence[str]) -> str:
    """Values for a message, the first ones only where they are many."""
    more = len(values) - NUM_ALLOWED_SHOWN
    shown = ", ".join(values[:NUM_ALLOWED_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
