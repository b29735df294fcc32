"""YAML as people mean it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from scalepet.reading import within_limits

_NUMBER = r"[-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"

_PLAIN_VALUES = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (_NUMBER + r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
    "merge": (r"<<", ["<"]),
}
"""What a value without quotes can be other than text: pattern, and its first characters."""


class Loader(yaml.SafeLoader):
    """1e-3 is a number; yes, no, 2026-01-01, 12:30 and 007 are texts; no key stands twice.

    YAML 1.1, which PyYAML reads, takes these for a text, truth values, a date and numbers; and the
    last of two keys, which ``within_limits`` refuses.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own way: filled below)


for _kind, (_pattern, _first) in _PLAIN_VALUES.items():
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), _first
    )


MAX_NUMBER = 2**63


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds.

    Raises:
        ValueError: in one line, what is wrong and where.
    """
    value = within_limits(text, Loader)  # a SafeLoader: plain values only
    _check(value, set())
    return value


def _check(value: Any, seen: set[int]) -> None:
    """
    Raises:
        ValueError: a text that no file or path can hold, a number that no library takes.
    """
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError(f"{value[:40]!r} has a character that no file or path can hold")
    if isinstance(value, int) and abs(value) >= MAX_NUMBER:
        raise ValueError(f"{str(value)[:40]} is too large; allowed: below 2^63")
    if isinstance(value, (dict, list)) and id(value) not in seen:
        seen.add(id(value))
        for one in value if isinstance(value, list) else [*value, *value.values()]:
            _check(one, seen)
