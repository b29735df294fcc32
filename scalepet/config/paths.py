"""Fields that hold paths, whichever section they are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scalepet.config.words import shown
from scalepet.paths import unset_variables

PATH_FIELDS = ("output", "path", "tokenizer", "files", "root", "deepspeed", "nvme_path")
_TEXT_FIELDS = ("template", "labels", "label_values")


def unset_faults(content: Any, where: str = "", *, is_path: bool = False) -> Iterator[str]:
    """A fault for each path with a variable that the environment does not have.

    Args:
        content: a config, or a part of one, as plain values.
        where: the field that holds it.
        is_path: whether texts in it are paths.
    """
    if isinstance(content, str) and is_path:
        for name in unset_variables(content):
            yield f"{where}: {shown(content)}: ${name} is not set; allowed: variables that are"
    elif isinstance(content, Mapping):
        for name, inner in content.items():
            field, is_named = f"{where}.{name}" if where else str(name), name in PATH_FIELDS
            if name not in _TEXT_FIELDS:
                # A section may be called as a path is, like deepspeed: its fields say for
                # themselves.
                in_it = is_named or (is_path and where.endswith("files"))
                yield from unset_faults(inner, field, is_path=in_it)
    elif isinstance(content, (list, tuple)):
        for index, inner in enumerate(content):
            yield from unset_faults(inner, f"{where}[{index}]", is_path=is_path)
