"""The options of a method are the keywords of its builder; a new one writes nothing else."""

from __future__ import annotations

import re
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from scalepet.config.fields import NEEDED, fields_of
from scalepet.config.loader import parse_yaml
from scalepet.config.models import FurtherMethod
from scalepet.pet import METHODS

_SAME_AS = re.compile(r"same-as: ?(\w+)(?:\((.*)\))?")


def options_model(method: str) -> type[BaseModel]:
    """A model of the options that the method takes."""
    fields: dict[str, Any] = {
        field.name: (field.kind, ... if field.default is NEEDED else field.default)
        for field in fields_of(METHODS[method]).values()
    }
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.create_model(f"{method}_options", __config__=strict, **fields)


def method_options(config: FurtherMethod) -> dict[str, Any]:
    """The options as the builder takes them, defaults filled in."""
    return options_model(config.name).model_validate(config.options).model_dump()


def same_as(budget: Any) -> dict[str, Any] | None:
    """The section of the method that a budget such as ``same-as:lora(r=4)`` counts by; None for a
    budget of its own.

    Raises:
        ValueError: it is not ``same-as:method`` or ``same-as:method(option=value, ...)``.
    """
    if not isinstance(budget, str) or not budget.strip().startswith("same-as"):
        return None
    found = _SAME_AS.fullmatch(budget.strip())
    if found is None:
        raise ValueError("it is not a method with its options in brackets")
    name, inside = found.groups()
    options = re.sub(r"(\w+) ?= ?", r"\1: ", inside or "")
    section: dict[str, Any] = parse_yaml(f"{{name: {name}, {options}}}")
    return section
