"""From raw column values to classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scalepet.data.rows import BadRows, Rows, class_names, listed, read_rows
from scalepet.data.task import Task
from scalepet.errors import DataError

CLASSES = "text or whole numbers, or true and false: answers are classes here, not measures"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
WHOLE = re.compile(r"([-+]?\d+)\.0*")
"""A whole number in a table of texts that was stored as a number with fractions."""


def discover_labels(rows: Rows, column: str) -> tuple[str, ...]:
    """Class names in class order, for a task that does not give its labels.

    Those of the ClassLabel type where the column has one; else the distinct values of these rows
    (the train split), strings in code point order, whole numbers in their own, false before true.

    Raises:
        DataError: the column is missing, a value is no text, truth value or whole number, text and
            numbers are mixed, or there are fewer than two classes.
    """
    names = class_names(rows, column)
    if names is not None:
        return tuple(names)
    found: set[Any] = set()
    bad = BadRows()
    measures = any(_has_fraction(value) for (value,) in read_rows(rows, [column]))
    for row, (value,) in enumerate(read_rows(rows, [column])):
        if label_text(value) is None or (measures and isinstance(value, float)):
            bad.add(row, column=column, value=value, allowed=CLASSES)
        else:
            found.add(int(value) if isinstance(value, float) else value)
    bad.refuse(num_rows=len(rows))
    if len({type(value) for value in found}) > 1:
        raise DataError(f"column {column!r} mixes text and numbers; allowed: one of them")
    _check_no_measures(column, found)
    if len(found) < 2:
        raise DataError(f"column {column!r} has the classes {sorted(found)}; allowed: two or more")
    return tuple(str(label_text(value)) for value in sorted(found))


def _has_fraction(value: object) -> bool:
    return isinstance(value, float) and not value.is_integer()


def _check_no_measures(column: str, found: Collection[Any]) -> None:
    """Raises DataError where texts are numbers with fractions, which measure and do not name."""
    texts = [value for value in found if isinstance(value, str)]
    if texts and all(map(NUMBER.fullmatch, texts)):
        measures = [text for text in texts if not float(text).is_integer()]
        if measures:
            raise DataError(
                f"column {column!r} holds numbers that are not whole, such as {measures[0]!r};"
                f" allowed: {CLASSES}; or task.labels, where they are names"
            )


def class_table(task: Task, names: Sequence[str] | None = None) -> dict[str, int]:
    """Text of a raw value -> class, for every raw value that is allowed.

    With ``label_values`` exactly these. Else a raw value is a label word, or the number of a
    class; where a label word is itself a number ("1" to "5" stars), numbers mean words.

    Args:
        task: a classification task whose labels are known.
        names: class names of a ClassLabel column, whose raw values are positions in it.

    Raises:
        DataError: ``names`` and the labels cannot be matched without a guess.
    """
    assert task.labels, "labels are found before they are used"
    classes = {word: index for index, word in enumerate(task.labels)}
    if task.label_values:
        table = {str(label_text(raw)): classes[word] for raw, word in task.label_values.items()}
    elif any(word.isdecimal() for word in task.labels):
        table = classes
    else:
        table = classes | {str(index): index for index in classes.values()}
    return table if names is None else _table_of_names(task, names, table, classes)


def read_classes(task: Task, rows: Rows, bad: BadRows) -> list[int]:
    """The class of each row; one whose label is not allowed is noted in ``bad`` and left out."""
    table = class_table(task, class_names(rows, task.target))
    allowed = listed(list(table))
    classes = []
    for row, (value,) in enumerate(read_rows(rows, [task.target])):
        index = _class_of(value, table)
        if index is None:
            bad.add(row, column=task.target, value=value, allowed=allowed)
        else:
            classes.append(index)
    return classes


def _class_of(value: object, table: Mapping[str, int]) -> int | None:
    text = label_text(value) or ""
    whole = WHOLE.fullmatch(text)
    if text in table or whole is None:
        return table.get(text)
    return table.get(whole[1])


def check_classes(task: Task, rows: Rows) -> None:
    """Raises DataError with the rows whose labels are not allowed."""
    bad = BadRows()
    read_classes(task, rows, bad)
    bad.refuse(num_rows=len(rows))


def label_text(value: object) -> str | None:
    """What a raw label is compared by: text as it is, truth values as true and false, whole numbers
    in decimals, also where they are stored as 1.0; else None.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) else None


def _table_of_names(
    task: Task, names: Sequence[str], table: dict[str, int], classes: dict[str, int]
) -> dict[str, int]:
    """Positions in ``names`` -> class; the same word at another position must not change class."""
    if task.label_values or set(names) <= set(classes):
        by_name = {str(index): table[name] for index, name in enumerate(names) if name in table}
        return table | by_name if task.label_values else by_name
    moved = [name for index, name in enumerate(names) if classes.get(name, index) != index]
    if moved or len(names) != len(task.labels):
        raise DataError(
            f"column {task.target!r} has the classes {', '.join(names)}, which do not match "
            f"task.labels {', '.join(task.labels)}; allowed: the same names, as many words in "
            "the same order, or task.label_values"
        )
    return {str(index): index for index in range(len(names))}
