"""All fields of a study as a file to read, to copy and to change."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from scalepet.config.fields import fields_of
from scalepet.config.listing import commented, field_lines
from scalepet.config.study import StudyConfig, StudyMethod

_HEADER = """\
# Every field of a study, with its default, its meaning and (what is allowed).
# NEEDED: there is no default; what stands there is an example.
# Paths are relative to the folder in which scalepet is started; the fields of
# a run, a backbone, a task and a method: scalepet train --fields.
"""
_EXAMPLES: dict[str, Any] = {
    "output": "studies/first",
    "base": {"precision": "fp32", "train": {"steps": 300, "batch_size": 16}},
    "backbones": {"small": {"path": "google/flan-t5-small"}},
    "tasks": {"sst2": "sst2"},
}
_METHOD: dict[str, Any] = {
    "method": {"name": "apet"},
    "learning_rate": {100: 0.1, 10000: 0.01},
    "budgets": [100, 1000, 10000],
}
_INDENT = "    "


def study_fields_as_yaml() -> str:
    """A study that is valid as it stands and names every field, with comments, 80 columns wide."""
    return _HEADER + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    for name, field in fields_of(StudyConfig).items():
        example = _EXAMPLES.get(name)
        if name == "methods":
            yield from ("", *commented(f"{name}:", f"NEEDED: {field.meaning}"), "  apet:")
            yield from _method_lines()
        elif isinstance(example, dict):
            yield from ("", *commented(f"{name}:", f"NEEDED: {field.meaning}"))
            inner = yaml.safe_dump(example, sort_keys=False)
            yield from textwrap.indent(inner, "  ").splitlines()
        else:
            yield from field_lines(field, (name,), example=example)


def _method_lines() -> Iterator[str]:
    for name, field in fields_of(StudyMethod).items():
        example = _METHOD.get(name)
        trail = ("methods", "apet", name)
        yield from field_lines(field, trail, example=example)
