"""Rows of csv and tsv files: every field is the text that stands in the file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from scalepet.data.local_files import (
    CONTENT_ERRORS,
    MAX_COLUMNS,
    MAX_LINE,
    lines_of,
    unreadable,
)
from scalepet.data.rows import listed
from scalepet.errors import DataError

Fields = list[str | None]


def separator_of(file: Path) -> str:
    """What stands between the fields of a file of this name."""
    name = file.name.lower().removesuffix(".gz")
    return "\t" if name.endswith(".tsv") else ","


def csv_header(file: Path, sep: str) -> list[str]:
    """The names of the columns; one without a name is called by its place, as pandas does it.

    Raises:
        DataError: the file cannot be read, has no header, too many columns, or one of them twice.
    """
    columns, _ = _opened(file, sep)
    return columns


def read_csv(file: Path, sep: str) -> Iterator[Fields]:
    """The fields of each row; an empty one is None, and blank lines are no rows.

    Raises:
        DataError: with the row: quotes that do not balance, more or fewer fields than columns, a
            field of a tsv file that goes on in the next line; or text that is not UTF-8.
    """
    columns, rows = _opened(file, sep)
    row = -1
    try:
        for fields in rows:
            if not fields:
                continue
            row += 1
            if len(fields) != len(columns):
                _refuse_width(file, row, fields, columns)
            if sep == "\t" and any("\n" in field or "\r" in field for field in fields):
                raise DataError(
                    f"{str(file)!r}: row {row} (to line {rows.line_num}) has a field that goes on"
                    " in the next line; allowed in a tsv file: a row a line, and a quote at the"
                    ' beginning of a field as """'
                )
            yield [field or None for field in fields]
    except csv.Error as error:
        raise DataError(
            f"{str(file)!r}: row {row + 1} (to line {rows.line_num}) cannot be read: {error};"
            ' allowed: quotes around a whole field, and "" for each quote inside of it'
        ) from error
    except CONTENT_ERRORS as error:
        raise unreadable(str(file), error) from error


def _opened(file: Path, sep: str) -> tuple[list[str], Any]:
    csv.field_size_limit(MAX_LINE)
    try:
        rows = csv.reader(lines_of(file), delimiter=sep, strict=True)
        header = next((fields for fields in rows if fields), None)
    except (*CONTENT_ERRORS, csv.Error) as error:
        raise unreadable(str(file), error) from error
    if header is None:
        raise unreadable(str(file), ValueError("No columns to read"))
    columns = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{str(file)!r} has {len(columns):,} columns; allowed: {MAX_COLUMNS:,}")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{str(file)!r} has the column {listed(twice)} twice; allowed: once")
    return columns, rows


def _refuse_width(file: Path, row: int, fields: list[str], columns: list[str]) -> NoReturn:
    if len(fields) > len(columns):
        raise DataError(
            f"{str(file)!r}: row {row}: Expected {len(columns)} fields, found {len(fields)}, more"
            f" fields than the header {listed(columns)}; allowed: one field for each column"
        )
    missing = [repr(name) for name in columns[len(fields) :]]
    raise DataError(
        f"{str(file)!r}: row {row} has {len(fields)} fields and none for {listed(missing)};"
        " allowed: one field for each column"
    )
