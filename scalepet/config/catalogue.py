"""A task by its name: the catalogue's fields, where a file does not give its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from scalepet.config.faults import did_you_mean
from scalepet.config.fields import fields_of
from scalepet.config.words import shown
from scalepet.data import TASKS, Task


def named_task(task: Any) -> tuple[Any, list[str]]:
    """The fields of a task that is given as ``sst2`` or as ``{name: sst2, source: {...}}``, and
    what is wrong with the name. Any other value stays as it is.

    Fields beside the name take the place of the catalogue's, in the sections of the task one by
    one; a source with another path has no subset but its own.
    """
    if isinstance(task, str):
        where, name, given = "task", task, {}
    elif isinstance(task, Mapping) and "name" in task:
        where, name = "task.name", task["name"]
        given = {field: value for field, value in task.items() if field != "name"}
    else:
        return task, []
    if not isinstance(name, str) or name not in TASKS:
        close, allowed, names = did_you_mean(str(name), list(TASKS)).partition("allowed: ")
        if where == "task":
            names = f"the fields {', '.join(fields_of(Task))}; or one of {names}"
        return given, [f"{where}: {shown(name)}; {close}{allowed}{names}"]
    known = dataclasses.asdict(TASKS[name].task)
    source, there = given.get("source"), known["source"]
    if isinstance(source, Mapping) and source.get("path", there["path"]) != there["path"]:
        there["subset"] = None
    return _laid_over(known, given), []


def _laid_over(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _laid_over(known[name], value)
        for name, value in given.items()
        if isinstance(value, Mapping) and isinstance(known.get(name), Mapping)
    }
    return {**known, **given, **both}
