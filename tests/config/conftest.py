from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

CONTENT: dict[str, Any] = {
    "output": "runs/first",
    "backbone": {"path": "google/flan-t5-small"},
    "task": {
        "kind": "classification",
        "source": {"path": "csv", "files": {"train": "train.csv", "validation": "held_out.csv"}},
        "template": "Input: {text} Output: ",
        "target": "label",
    },
    "method": {"name": "apet", "budget": 4096},
}


@pytest.fixture
def content() -> dict[str, Any]:
    """A small config without a fault, to be changed at will."""
    return copy.deepcopy(CONTENT)


@pytest.fixture
def with_fields(content: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """``with_fields({"train.steps": 3})``: the config with these fields; None takes one away."""

    def change(fields: dict[str, Any]) -> dict[str, Any]:
        for name, value in fields.items():
            *parents, last = name.split(".")
            place = content
            for parent in parents:
                place = place.setdefault(parent, {})
            if value is None:
                del place[last]
            else:
                place[last] = value
        return content

    return change
