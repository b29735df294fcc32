"""What the README.md of a data folder says of its splits, as on the hub; it names files of the
folder and nothing else.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from scalepet.data.folders import Layout, is_document, kind_of, layout_of
from scalepet.data.rows import listed
from scalepet.errors import ConfigError
from scalepet.reading import read_text, within_limits

_HEADER = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)
_FIELDS = ("config_name", "data_files", "data_dir", "default", "sep", "delimiter", "description")


def described_layout(folder: Path, subset: str | None) -> tuple[Layout, str | None] | None:
    """The splits of one configuration, and what stands between its fields where that is said; None
    where the README.md describes none.

    Raises:
        ConfigError: the header is no YAML, names files outside of the folder or addresses, asks for
            what is not done here, or has no such configuration.
    """
    readme = folder / "README.md"
    configs = _configs(readme) if readme.is_file() else []
    if not configs:
        return None
    config = _chosen(readme, configs, subset)
    unknown = sorted(config.keys() - {*_FIELDS})
    if unknown:
        raise ConfigError(f"{str(readme)!r} has configs.{listed(unknown)}; allowed: {_FIELDS}")
    base = folder / _inside(readme, "data_dir", config.get("data_dir") or ".")
    sep = config.get("sep", config.get("delimiter"))
    if sep is not None and not (isinstance(sep, str) and len(sep) == 1):
        raise ConfigError(f"{str(readme)!r}: sep is {sep!r}; allowed: one character")
    if "data_files" not in config:
        return layout_of(base), sep
    splits: dict[str, list[Path]] = {}
    roots: dict[str, Path] = {}
    for split, pattern in _patterns(readme, config["data_files"]):
        found = _matching(base, _inside(readme, "data_files", pattern))
        if not found:
            raise ConfigError(f"{str(readme)!r} names {pattern!r}; allowed: files that are there")
        splits.setdefault(split, []).extend(found)
        roots.setdefault(split, base / _fixed(pattern))
    kind = kind_of(folder, [file for files in splits.values() for file in files])
    return Layout(kind, splits, roots), sep


def _configs(readme: Path) -> list[dict[str, Any]]:
    shown = f"task.source.path: {str(readme)!r}"
    try:
        header = _HEADER.match(read_text(readme))
        content = within_limits(header[1], yaml.SafeLoader) if header else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shown} cannot be read: {error}") from error
    configs = content.get("configs", []) if isinstance(content, dict) else []
    if not isinstance(configs, list) or not all(isinstance(one, dict) for one in configs):
        raise ConfigError(f"{shown}: configs is {configs!r:.60}; allowed: a list of fields")
    return configs


def _chosen(readme: Path, configs: list[dict[str, Any]], subset: str | None) -> dict[str, Any]:
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    if subset is None:
        default = [config for config in configs if config.get("default") is True]
        alone = [*default, *([by_name["default"]] if "default" in by_name else [])]
        if alone or len(configs) == 1:
            return (alone or configs)[0]
    elif subset in by_name:
        return by_name[subset]
    raise ConfigError(
        f"task.source.subset is {subset!r}; allowed, by {str(readme)!r}: {listed([*by_name])}"
    )


def _patterns(readme: Path, data_files: Any) -> Iterator[tuple[str, str]]:
    """Split and pattern, in the forms that the hub allows."""
    if isinstance(data_files, Mapping):
        data_files = [{"split": name, "path": path} for name, path in data_files.items()]
    entries = data_files if isinstance(data_files, list) else [data_files]
    for entry in entries:
        is_named = isinstance(entry, Mapping) and entry.keys() == {"split", "path"}
        split, paths = (entry["split"], entry["path"]) if is_named else ("train", entry)
        for path in paths if isinstance(paths, list) else [paths]:
            if not isinstance(path, str) or not isinstance(split, str):
                raise ConfigError(
                    f"{str(readme)!r}: data_files has {entry!r:.60}; allowed: paths, or split and"
                    " path"
                )
            yield split, path


def _inside(readme: Path, field: str, path: object) -> str:
    """The path, which leads to no other place."""
    parts = Path(path).parts if isinstance(path, str) else ()
    if (
        not isinstance(path, str)
        or "::" in path
        or "://" in path
        or path.startswith(("/", "~"))
        or ".." in parts
    ):
        raise ConfigError(
            f"{str(readme)!r}: {field} names {path!r}; allowed: files of the same folder"
        )
    return path


def _matching(base: Path, pattern: str) -> list[Path]:
    """A path that exists is a path; only else a pattern."""
    if (base / pattern).is_file():
        return [base / pattern]
    found = glob.glob(pattern, root_dir=base, recursive=True)
    files = [base / name for name in sorted(found) if (base / name).is_file()]
    return [file for file in files if not is_document(file.name)]


def _fixed(pattern: str) -> str:
    """The folder that a pattern begins with, before its first sign."""
    parts = pattern.split("/")[:-1]
    signs = [place for place, part in enumerate(parts) if glob.has_magic(part)]
    return "/".join(parts[: signs[0]] if signs else parts)
