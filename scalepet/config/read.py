"""From a YAML file and overrides to a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalepet.config.check import check_all
from scalepet.config.loader import parse_yaml
from scalepet.config.models import Config, RunConfig, StreamConfig
from scalepet.errors import ConfigError
from scalepet.reading import read_text

Content = dict[str, Any]


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file and dotted overrides (``train.steps=100``) describe.

    Raises:
        ConfigError: with every fault of the file and the overrides.
    """
    return _read(path, overrides, RunConfig)


def read_stream_config(path: Path, overrides: Sequence[str] = ()) -> StreamConfig:
    """As ``read_config``, for a run over a stream."""
    return _read(path, overrides, StreamConfig)


def _read(path: Path, overrides: Sequence[str], kind: type[Config]) -> Config:
    content, faults = read_content(path, overrides)
    config, more_faults = check_all(content, kind)
    if config is None or faults:
        raise ConfigError([*faults, *more_faults])
    return config


def read_content(path: Path, overrides: Sequence[str]) -> tuple[Content, list[str]]:
    """What a YAML file and the overrides hold, and what is wrong with the overrides.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _with_overrides(_read_file(path), overrides)


def read_overrides(overrides: Sequence[str]) -> Content:
    """Dotted overrides alone, as nested values.

    Raises:
        ConfigError: with every one that is malformed.
    """
    content, faults = _with_overrides({}, overrides)
    if faults:
        raise ConfigError(faults)
    return content


def _read_file(path: Path) -> Content:
    try:
        content = parse_yaml(read_text(path))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); allowed: a YAML file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else repr(content)
        raise ConfigError(
            f"{path} holds {found}; allowed: fields such as output, backbone, task, method, train"
        )
    return content


def _with_overrides(content: Content, overrides: Iterable[str]) -> tuple[Content, list[str]]:
    """The content with every override that can be put in, and what is wrong with the others."""
    faults = []
    for text in overrides:
        try:
            content = _with_override(content, text)
        except ValueError as error:
            faults.append(
                f"override {text!r}: {error}; allowed: FIELD=VALUE, as in train.learning_rate=1e-3"
            )
    return content, faults


def _with_override(content: Content, text: str) -> Content:
    """Raises ValueError with what is wrong."""
    name, separator, value = text.partition("=")
    trail = name.split(".")
    if not separator:
        raise ValueError("there is no =")
    if not all(trail):
        raise ValueError(f"{name!r} is no field")
    return _placed(content, trail, parse_yaml(value))


def _placed(content: Mapping[str, Any], trail: Sequence[str], value: Any) -> Content:
    """A new mapping with the value at the end of the trail; the old one stays as it is."""
    first, *rest = trail
    if not rest:
        return {**content, first: value}
    inner = content.get(first)
    if inner is None:
        inner = {}
    if first == "task" and isinstance(inner, str):
        inner = {"name": inner}  # of the catalogue, whose fields may be replaced one by one
    if not isinstance(inner, Mapping):
        raise ValueError(f"{first} is {inner!r} and has no field {rest[0]}")
    return {**content, first: _placed(inner, rest, value)}
