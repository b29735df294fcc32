"""YAML as people mean it."""

from __future__ import annotations

import re
from typing import Any

import yaml

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

    YAML 1.1, which PyYAML reads, takes these for a text, truth values, a date and numbers, and the
    last of two keys.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own way: filled below)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As in SafeLoader; raises ConstructorError for keys that stand twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(twice)} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


for _kind, (_pattern, _first) in _PLAIN_VALUES.items():
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_pattern})$"), _first
    )


MAX_VALUES = 100_000
"""Of a file, with what aliases repeat: nine lines of aliases can stand for a billion values."""

MAX_NUMBER = 2**63
_NOT_YET = -1


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds.

    Raises:
        ValueError: in one line, what is wrong and where.
    """
    try:
        value = yaml.load(text, Loader=Loader)  # a SafeLoader: plain values only
        num_values = _num_values(value, {})
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        words = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{words}{place}") from error
    # The latter ones are slips of PyYAML's own, as for "!!timestamp x".
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if num_values > MAX_VALUES:
        raise ValueError(f"it holds {num_values:,} values; allowed: {MAX_VALUES:,}")
    return value


def _num_values(value: Any, known: dict[int, int]) -> int:
    """How many values it stands for, counted once for each alias but looked at once.

    Raises:
        ValueError: an alias in its own anchor, a text that no file or path can hold, a number that
            no library takes.
    """
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError(f"{value[:40]!r} has a character that no file or path can hold")
    if isinstance(value, int) and abs(value) >= MAX_NUMBER:
        raise ValueError(f"{str(value)[:40]} is too large; allowed: below 2^63")
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = _NOT_YET
        inner = value if isinstance(value, list) else [*value, *value.values()]
        known[id(value)] = 1 + sum(_num_values(one, known) for one in inner)
    if known[id(value)] == _NOT_YET:
        raise ValueError("circular reference: an alias lies in its own anchor")
    return known[id(value)]
