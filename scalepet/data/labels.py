"""From raw column values to classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalepet.data.rows import BadRows, Rows, class_names, listed, read_rows
from scalepet.data.task import Task
from scalepet.errors import DataError


def discover_labels(rows: Rows, column: str) -> tuple[str, ...]:
    """Class names in class order, for a task that does not give its labels.

    Those of the ClassLabel type where the column has one; else the distinct values of these rows
    (the train split), strings in code point order, whole numbers in their own.

    Raises:
        DataError: the column is missing, a value is neither text nor a whole number, text and
            numbers are mixed, or there are fewer than two classes.
    """
    names = class_names(rows, column)
    if names is not None:
        return tuple(names)
    found: set[Any] = set()
    bad = BadRows()
    for row, (value,) in enumerate(read_rows(rows, [column])):
        if label_text(value) is None or isinstance(value, bool):
            bad.add(row, column=column, value=value, allowed="text or whole numbers")
        else:
            found.add(value)
    bad.refuse(num_rows=len(rows))
    if len({type(value) for value in found}) > 1:
        raise DataError(f"column {column!r} mixes text and numbers; allowed: one of them")
    if len(found) < 2:
        raise DataError(f"column {column!r} has the classes {sorted(found)}; allowed: two or more")
    return tuple(str(value) for value in sorted(found))


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
        index = table.get(label_text(value) or "")
        if index is None:
            bad.add(row, column=task.target, value=value, allowed=allowed)
        else:
            classes.append(index)
    return classes


def check_classes(task: Task, rows: Rows) -> None:
    """Raises DataError with the rows whose labels are not allowed."""
    bad = BadRows()
    read_classes(task, rows, bad)
    bad.refuse(num_rows=len(rows))


def label_text(value: object) -> str | None:
    """What a raw label is compared by: text as it is, whole numbers in decimals, else None."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or None
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
