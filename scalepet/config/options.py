"""The options of a method are the keywords of its builder; a new one writes nothing else."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from scalepet.config.fields import NEEDED, fields_of
from scalepet.config.models import MethodConfig
from scalepet.pet import METHODS


def options_model(method: str) -> type[BaseModel]:
    """A model of the options that the method takes."""
    fields: dict[str, Any] = {
        field.name: (field.kind, ... if field.default is NEEDED else field.default)
        for field in fields_of(METHODS[method]).values()
    }
    strict = ConfigDict(extra="forbid", strict=True)
    return pydantic.create_model(f"{method}_options", __config__=strict, **fields)


def method_options(config: MethodConfig) -> dict[str, Any]:
    """The options as the builder takes them, defaults filled in."""
    return options_model(config.name).model_validate(config.options).model_dump()
