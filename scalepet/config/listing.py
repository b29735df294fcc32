"""All fields of a config as a file to read, to copy and to change."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from scalepet.config.fields import NEEDED, Field, Trail, fields_of
from scalepet.config.models import DEFAULT_EPOCHS, DEFAULT_METHOD, MethodConfig, RunConfig, Setup
from scalepet.config.words import words_of
from scalepet.data import METRICS
from scalepet.pet import METHODS

_HEADER = """\
# Every field of a run, with its default, its meaning and (what is allowed).
# NEEDED: there is no default; what stands there is an example.
# Paths are relative to the folder in which scalepet is started.
"""
_EXAMPLES: dict[str, Any] = {
    "output": "runs/first",
    "backbone.path": "google/flan-t5-small",
    "task.kind": "classification",
    "task.source.path": "csv",
    "task.source.files": {"train": "train.csv", "validation": "held_out.csv"},
    "task.template": "Input: {text} Output: ",
    "task.target": "label",
    "stream.name": "standard-cl-1",
    "method.budget": 4096,
    "train.epochs": DEFAULT_EPOCHS,
}
_MEANINGS = {
    "task.kind": "classification, sequence_to_sequence or image_classification",
    "task.metrics": f"of {', '.join(METRICS)}; the first one chooses the best adapter",
}
"""Where a docstring speaks to programmers."""
_TELLS_NOTHING = ("text", "path", "true", "fields")
_COMMENT_COLUMN = 34
_WIDTH = 80


def fields_as_yaml(kind: type[Setup] = RunConfig) -> str:
    """A config that is valid as it stands and names every field, with comments, 80 columns wide.

    Args:
        kind: of run.
    """
    return _HEADER + "\n".join(_section_lines(kind)) + "\n"


def _section_lines(section: Any, parents: Trail = ()) -> Iterator[str]:
    for field in fields_of(section).values():
        trail = (*parents, field.name)
        if not fields_of(field.kind):
            yield from field_lines(field, trail)
            continue
        if not parents:
            yield ""
        yield from commented(f"{_indent(trail)}{field.name}:", field.meaning)
        yield from _section_lines(field.kind, trail)
        if field.kind is MethodConfig:
            yield from _option_lines()


def _option_lines() -> Iterator[str]:
    """The options of every method; those of the default one stand, the others are comments."""
    for method, builder in METHODS.items():
        is_default = method == DEFAULT_METHOD
        width = _WIDTH if is_default else _WIDTH - len("# ")
        fields = fields_of(builder).values()
        lines = [
            line
            for field in fields
            for line in field_lines(field, ("method", field.name), width=width)
        ]
        if is_default:
            yield from lines
        else:
            yield f"  # name: {method}" + ("" if lines else "  (no options)")
            yield from (f"  # {line.removeprefix('  ')}" for line in lines)


def field_lines(
    field: Field, trail: Trail, *, width: int = _WIDTH, example: Any = None
) -> Iterator[str]:
    """A field with an example or its default, its meaning and what it takes."""
    is_needed = field.default is NEEDED
    value = example if is_needed or example is not None else field.default
    if value is None:
        value = _EXAMPLES.get(".".join(trail))
    meaning = _MEANINGS.get(".".join(trail), field.meaning)
    words = words_of(field.kind)
    if not any(word in words for word in _TELLS_NOTHING) and not _says(meaning, field.kind, words):
        meaning += f" ({words})"
    text = f"{_indent(trail)}{field.name}: {_flow(value)}"
    yield from commented(text, f"NEEDED: {meaning}" if is_needed else meaning, width=width)


def _says(meaning: str, kind: Any, words: str) -> bool:
    """Whether a meaning already tells what is allowed, as in ``uniform over all, or even``."""
    choices = get_args(kind) if get_origin(kind) is Literal else (words,)
    return all(re.search(rf"\b{re.escape(choice)}\b", meaning) for choice in choices)


def commented(text: str, comment: str, *, width: int = _WIDTH) -> Iterator[str]:
    """The text with the comment beside it, or below it where the text is long."""
    lines = textwrap.wrap(comment, width - _COMMENT_COLUMN - 2, break_on_hyphens=False) or [""]
    if len(text) >= _COMMENT_COLUMN:
        yield text
        text = ""
    for line in lines:
        yield f"{text:{_COMMENT_COLUMN}}# {line}"
        text = ""


def _indent(trail: Trail) -> str:
    return "  " * (len(trail) - 1)


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, tuple):
        value = [
            one.model_dump(exclude_none=True) if isinstance(one, BaseModel) else one
            for one in value
        ]
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
