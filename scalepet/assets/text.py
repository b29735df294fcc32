"""Labelled text inside packages.

Rows stand in an order drawn from their own text (splits.py). Runs of white space become one space.
Each converter returns what was done, for the asset's SOURCE.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from scalepet.assets.rows import Row, write_rows
from scalepet.assets.splits import SPLITS, draw, split, split_note
from scalepet.errors import DataError

NUM_TAB_HEADERS = 3
SENTIMENT_LABELS = {0: "negative", 1: "positive"}
WIKI_FILE = "summaries_en-us.json"
NO_TOPIC = "Uncategorized"


def orange_tables(raw: Path, folder: Path) -> str:
    """Orange's `*-train.tab` and `*-test.tab` as columns text, label.

    Such a table has three header lines, then a label, a tab and a text on each line that is not
    empty. Rows are counted from 0.

    Raises:
        DataError: lines that are not one label and one text.
    """
    parts = {}
    for name in SPLITS:
        (table,) = raw.glob(f"*-{name}.tab")
        lines = table.read_text(encoding="utf-8").split("\n")[NUM_TAB_HEADERS:]
        fields = [line.split("\t") for line in lines if line]
        odd = [index for index, row in enumerate(fields) if len(row) != 2]
        if odd:
            raise DataError(f"{table.name}: rows {odd[:5]} do not have 2 fields")
        parts[name] = _whole(({"text": row[1], "label": row[0]} for row in fields), table.name)
    return f"The package's own split. {_write(folder, parts)}"


def sentiment(raw: Path, folder: Path) -> str:
    """Review sentences as columns text, label (negative, positive) and domain (the file's name).

    Raises:
        DataError: a sentence without one of the two classes.
    """
    rows = []
    for path in sorted(raw.glob("*.json")):
        items = json.loads(path.read_text(encoding="utf-8"))
        found = ({"text": x["text"], "label": SENTIMENT_LABELS.get(x["class"], "")} for x in items)
        rows += [row | {"domain": path.stem} for row in _whole(found, path.name)]
    parts = split(rows, key=_text, stratum=lambda row: f"{row['domain']} {row['label']}")
    return f"{split_note('domain and label')} {_write(folder, parts)}"


def wiki_topic(raw: Path, folder: Path) -> str:
    """Opening passages of encyclopedia articles and their topic: columns text, label."""
    parts = _wiki_parts(raw, column="topic", renamed="label", nothing=NO_TOPIC)
    return f"{split_note('topic')} Articles without a topic are left out. {_write(folder, parts)}"


def wiki_describe(raw: Path, folder: Path) -> str:
    """The same passages and their description in a few words: columns text, target.

    Split as `wiki_topic` is: no passage is in the training set of one and the test set of
    the other.
    """
    parts = _wiki_parts(raw, column="description", renamed="target", nothing="")
    note = "Articles without a description are left out."
    return f"{split_note('topic')} {note} {_write(folder, parts)}"


def _wiki_parts(raw: Path, *, column: str, renamed: str, nothing: str) -> dict[str, list[Row]]:
    articles = json.loads((raw / WIKI_FILE).read_text(encoding="utf-8")).values()
    rows = [_tidy({"text": item["extract"]} | item) for item in articles]
    return {
        name: [
            {"text": row["text"], renamed: row[column]} for row in part if row[column] != nothing
        ]
        for name, part in split(rows, key=_text, stratum=lambda row: row["topic"]).items()
    }


def _tidy(row: Row) -> Row:
    return {column: " ".join(value.split()) for column, value in row.items()}


def _whole(rows: Iterable[Row], source: str) -> list[Row]:
    """The rows, tidied; a row that is blank all over is none, a half blank one is a fault."""
    tidy = [_tidy(row) for row in rows]
    half = [index for index, row in enumerate(tidy) if any(row.values()) and not all(row.values())]
    if half:
        raise DataError(f"{source}: rows {half[:5]} have a text or a label, not both")
    return [row for row in tidy if all(row.values())]


def _write(folder: Path, parts: dict[str, list[Row]]) -> str:
    return write_rows(
        folder,
        {name: sorted(rows, key=lambda row: draw(_text(row))) for name, rows in parts.items()},
    )


def _text(row: Row) -> str:
    return row["text"]
