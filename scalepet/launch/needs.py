"""Whether a machine whose libraries nobody chose for scalepet can run it.

As a script, ``python -m scalepet.launch.needs PYPROJECT MODULE...``: exit code 2 where a module
cannot be imported; older libraries are warned of. It needs nothing but Python itself.
"""

from __future__ import annotations

import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<least>[\d.]+)")


def older_than_asked(pyproject: Path) -> Iterator[str]:
    """A line for each library that is here in a version below the least one of the project."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        asked = _REQUIREMENT.match(requirement)
        if asked is None:
            continue
        try:
            found = metadata.version(asked["name"])
        except metadata.PackageNotFoundError:
            continue
        if _numbers(found) < _numbers(asked["least"]):
            yield f"{asked['name']} {found} is older than {requirement}; it is tried all the same"


def not_importable(modules: Iterable[str]) -> Iterator[str]:
    """A line for each module that fails, whatever it fails with."""
    for module in modules:
        try:
            pkgutil.resolve_name(f"{module}:")
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            yield f"{module} cannot be imported ({type(error).__name__}: {first_line})"


def _numbers(version: str) -> tuple[int, ...]:
    """Of 2.11.0+cu130: (2, 11, 0)."""
    found = re.match(r"[\d.]+", version)
    return tuple(int(part) for part in found[0].split(".") if part) if found else ()


def main(pyproject: str, *modules: str) -> None:
    for line in older_than_asked(Path(pyproject)):
        print(f"scalepet: warning: {line}", file=sys.stderr)
    faults = [*not_importable(modules)]
    for fault in faults:
        print(f"scalepet: {fault}; launchers/README.md says how to bring it", file=sys.stderr)
    sys.exit(2 if faults else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
