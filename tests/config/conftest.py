from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


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
