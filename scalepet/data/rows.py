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
    chosen = rows.select_columns(list(dict.fromkeys(columns)))
    for start in range(0, len(chosen), NUM_ROWS_READ):
        end = min(start + NUM_ROWS_READ, len(chosen))
        try:
            part = chosen[start:end]
        except UnicodeDecodeError as error:  # arrow takes the bytes of a JSON file unseen
            raise DataError(
                f"columns {listed(columns)}: rows {start} to {end - 1} cannot be read: {error};"
                " allowed: texts in UTF-8"
            ) from error
        yield from zip(*(part[column] for column in columns), strict=True)


def check_columns(rows: Rows, columns: Sequence[str]) -> None:
    """Nothing, if the rows have all of these columns.

    Raises:
        DataError: columns that are missing, all of them, with those that exist.
    """
    exist = rows.column_names
    missing = [column for column in dict.fromkeys(columns) if column not in exist]
    if missing:
        allowed = ", ".join(exist)
        raise DataError([f"column {column!r} is missing; columns: {allowed}" for column in missing])


def class_names(rows: Rows, column: str) -> list[str] | None:
    """The class names of a ClassLabel column, whose raw values count them; else None."""
    names = getattr(rows.features.get(column), "names", None)
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
