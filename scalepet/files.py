"""Files and folders that are there whole or not at all, whatever ends the process.

All is made in a *workplace*, forced to the disk there and renamed to its place. The workplace of a
run is a folder of its process's own inside the run folder: once another process has renamed it
away, nothing that the first one still finishes gets anywhere any more.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

from scalepet.errors import CheckpointError, PassingError

T = TypeVar("T")

PASSING = frozenset({errno.EIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT})
"""Failures of a network file system that often do not come again."""

SECONDS_BETWEEN_TRIES = (0.1, 1.0, 4.0)

WORKPLACE = ".scalepet-"
"""How the name of a workplace begins."""

_OLD = ".old"


def replace_file(path: Path, content: str | bytes, *, workplace: Path | None = None) -> None:
    """Write a file in place of what is there; it is on the disk when this returns.

    Args:
        workplace: an existing folder of the same file system; None for a temporary one beside the
            file.

    Raises:
        CheckpointError: it cannot be written; what was there is as it was.
    """
    encoded = content.encode() if isinstance(content, str) else content

    def write(fresh: Path) -> None:
        fresh.write_bytes(encoded)
        sync(fresh)

    with _making(path, workplace) as place:
        trying_again(lambda: _replace(path, write, place))


def replace_folder(
    folder: Path, fill: Callable[[Path], None], *, workplace: Path | None = None
) -> None:
    """Make a folder and its parents, in place of what is there; all is on the disk on return.

    A process that dies in between leaves the old folder or the new one, which ``whole_folder``
    finds.

    Args:
        fill: writes flat files into the empty folder that it is given; called again where a failure
            may pass.
        workplace: as for ``replace_file``.

    Raises:
        CheckpointError: it cannot be written; what was there is as it was.
    """

    def write(fresh: Path) -> None:
        fresh.mkdir()
        fill(fresh)
        for path in (*fresh.iterdir(), fresh):
            sync(path)

    try:
        trying_again(lambda: make_folder(folder.parent))
    except OSError as error:
        raise unwritable(folder, error) from error
    with _making(folder, workplace) as place:
        trying_again(lambda: _replace(folder, write, place))


def discard(folder: Path, *, workplace: Path) -> None:
    """Take a folder away at once, and delete it where that goes; what stays of it is in the
    workplace and goes with it.

    Raises:
        OSError: it cannot be taken away.
    """
    gone = Path(tempfile.mkdtemp(prefix=f"{folder.name}.gone-", dir=workplace))
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def whole_folder(folder: Path) -> Path:
    """Where the content of a folder is that was being replaced when its process died: the folder
    itself, unless only what it should replace is there.
    """
    if folder.exists():
        return folder
    return next(iter(_replaced(folder)), folder)


def put_right(folder: Path) -> None:
    """Put the content of such a folder back into its place.

    Raises:
        OSError: it cannot be renamed.
    """
    found = whole_folder(folder)
    if found != folder:
        found.rename(folder)


@contextlib.contextmanager
def workplace_beside(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside the path.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.mkdtemp(prefix=WORKPLACE, dir=path.parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def clear_workplace(workplace: Path, folder: Path) -> None:
    """Put back what a process was replacing in ``folder`` when it died, and delete all else that it
    left in its workplace.
    """
    for old in workplace.rglob(f"*{_OLD}"):
        place = folder / old.stem
        if not place.exists():
            old.rename(place)
    shutil.rmtree(workplace, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing, and their names last.

    Raises:
        OSError: it cannot be made.
    """
    lacking = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in reversed(lacking):
        sync(one.parent)


def sync(path: Path) -> None:
    """Force a file or folder to the disk: a rename is only as good as what lies behind it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def trying_again(work: Callable[[], T]) -> T:
    """What ``work`` returns; it is called again after a failure that may pass.

    Raises:
        OSError: any other failure, or the last of several.
    """
    for seconds in SECONDS_BETWEEN_TRIES:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(seconds)
    return work()


def unwritable(path: Path, error: OSError, *, besides: str = "") -> CheckpointError:
    """What to raise where the system does not let a file or folder be written."""
    kind = PassingError if error.errno in PASSING else CheckpointError
    return kind(f"{path} cannot be written ({error.strerror or error}){besides}")


def _replaced(folder: Path) -> Iterator[Path]:
    """Where the content of a folder may be that a dying process has moved out of the way."""
    name = folder.name + _OLD
    beside = folder.with_name(name)  # as 0.1 left it
    if beside.exists():
        yield beside
    yield from sorted(folder.parent.glob(f"{WORKPLACE}*/{glob.escape(name)}"))


def _replace(path: Path, write: Callable[[Path], None], place: Path) -> None:
    fresh, old = place / f"{path.name}.new", place / f"{path.name}{_OLD}"
    for left in (fresh, old):
        _delete(left)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link is in its place")
    try:
        write(fresh)
        if path.is_dir():  # nothing can be renamed onto a folder that holds something
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        with contextlib.suppress(OSError):  # half of it would go on filling a full disk
            _delete(fresh)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _making(path: Path, workplace: Path | None) -> Iterator[Path]:
    """Gives the folder to make it in; what the system refuses becomes a CheckpointError."""
    try:
        with workplace_beside(path) if workplace is None else nullcontext(workplace) as place:
            yield place
    except OSError as error:
        if workplace is not None and not workplace.exists():
            raise CheckpointError(
                f"{path} is not written: another process has taken this run's folder over"
            ) from error
        raise unwritable(path, error, besides="; what was there before is kept") from error
