"""Rows of text on disk: train.jsonl and test.jsonl, one JSON object a line, UTF-8."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from scalepet.assets.splits import draw

Row = dict[str, str]


def in_order(rows: Iterable[Row], *, key: Callable[[Row], str]) -> list[Row]:
    """The rows in an order drawn from their keys, whatever class they are of.

    `split` gives the rows of lowest draw to the test set, class by class. By the same draw, the
    training set of a class of few rows would begin early or late, and a slice of the first rows
    would have too many or too few of it; so the order has a draw of its own.
    """
    return sorted(rows, key=lambda row: place(key(row)))


def place(key: str) -> bytes:
    """Where in the order what has this key stands."""
    return draw(f"order {key}")


def write_rows(folder: Path, parts: Mapping[str, Iterable[Row]]) -> str:
    """Write one file for each part, in the order given; returns how many rows each has."""
    notes = []
    for name, rows in parts.items():
        num_rows = 0
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_rows += 1
        notes.append(f"{num_rows} rows in {name}.jsonl")
    return f"{' and '.join(notes)}, in a fixed random order."
