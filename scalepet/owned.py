"""Which files in a folder are scalepet's own, so that nobody else's is ever replaced or deleted."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from scalepet.errors import CheckpointError
from scalepet.files import make_folder, replace_file

RECORD = "scalepet-files.json"
"""Names what a command has written into the folder that it lies in."""


def check_free(folder: Path, names: Iterable[str], *, own: Collection[str] = ()) -> None:
    """Returns where a command may write these names into the folder.

    Args:
        names: paths below the folder.
        own: those that may be there already.

    Raises:
        CheckpointError: every other one that is there.
    """
    foreign = [name for name in names if name not in own and os.path.lexists(folder / name)]
    if foreign:
        raise CheckpointError(
            f"{folder} has {', '.join(sorted(foreign))}, which this command would write and"
            " scalepet did not make; allowed: another folder, or to move it away"
        )


def check_new_file(option: str, path: Path, *, overwrite: bool) -> None:
    """Returns where a command may write that one file.

    Raises:
        CheckpointError: it exists and may not be replaced, or is no file.
    """
    if not os.path.lexists(path) or (overwrite and path.is_file()):
        return
    way_out = "a file" if overwrite else "a file that does not, or --overwrite"
    raise CheckpointError(f"{option}: {path} exists; allowed: {way_out}")


def own_files(folder: Path) -> set[str]:
    """What the record in the folder names; nothing where there is none, or it is not scalepet's."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        names = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return {name for name in names if _is_below(name)}
    return set()


def note_files(folder: Path, names: Iterable[str]) -> None:
    """Write the record of what the folder holds now.

    Raises:
        CheckpointError: it cannot be written.
    """
    text = json.dumps({"files": sorted(names)}, indent=2) + "\n"
    with contextlib.suppress(OSError):  # the write says it better
        make_folder(folder)
    replace_file(folder / RECORD, text)


def _is_below(name: object) -> bool:
    """Whether a record that a stranger may have written names a place in its own folder."""
    path = Path(name) if isinstance(name, str) else Path("..")
    return not path.is_absolute() and ".." not in path.parts
