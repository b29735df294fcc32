"""One run at a time in a folder, on one machine or on many that share it.

``run.lock`` says who works there. Whether that process still lives is known from the kernel where
it runs on this machine, else from its heartbeat (the time of the file) or from a file lock, where
the file system has such. What cannot live any more is taken over without anyone's help.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scalepet import dist
from scalepet.errors import CheckpointError
from scalepet.recipes.holder import Holder

LOCK = "run.lock"
HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""Without a heartbeat for so long, a process of another machine has ended: shared file systems show
a new time to other machines within a minute.
"""
POLL_SECONDS = 1.0
FLOCK_SECONDS = 5.0
"""A process that takes a folder over locks the old file for a moment; one that does so for longer
was forked by a holder that has ended.
"""

NAMELESS = "a process that it does not name"

Say = Callable[[str], None]


@contextlib.contextmanager
def one_run_in(folder: Path, *, say: Say) -> Iterator[Callable[[], None]]:
    """Inside, no other run works in the folder. All ranks together on the way in; rank 0 holds it.

    Args:
        say: told, on rank 0, of a wait or of a takeover from another machine.

    Returns:
        What raises, on rank 0, once the folder was taken over from this run.

    Raises:
        CheckpointError: a run that lives has the folder, or no file can be written there.
    """
    lock = dist.together(lambda: take(folder, say=say) if dist.is_main() else None)
    try:
        yield lock.check if lock else lambda: None
    finally:
        if lock:
            lock.release()


class RunLock:
    """This process's hold of a folder, with a heartbeat until it is released."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """
        Raises:
            CheckpointError: another process has the folder now.
        """
        if not _is_at(self._path, self._descriptor):
            raise CheckpointError(
                f"{self._path} is of another process now, or gone: this run was silent for more"
                f" than {SILENT_SECONDS:.0f} s, or someone has deleted the file; it ends here"
            )

    def release(self) -> None:
        self._released.set()
        self._heart.join()
        if _is_at(self._path, self._descriptor):
            with contextlib.suppress(OSError):  # a folder that went read-only; nobody is misled
                self._path.unlink()
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)


def take(folder: Path, *, say: Say) -> RunLock:
    """Take the folder, once it is known that nobody has it.

    Raises:
        CheckpointError: as ``one_run_in``.
    """
    path, here = folder / LOCK, Holder.here()
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                return RunLock(path, _create(path, here))
            with contextlib.suppress(FileNotFoundError):  # it has just been released
                descriptor = _take_over(path, here, say)
                if descriptor is not None:
                    return RunLock(path, descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error.strerror})") from error


def _take_over(path: Path, here: Holder, say: Say) -> int | None:
    """What is open of the new file; None where another process was faster.

    Raises:
        CheckpointError: its holder lives.
    """
    holder, why = _wait_for_end(path, here, say)
    theirs = os.open(path, os.O_RDWR)
    try:
        _wait_for_flock(theirs)
        if not _is_at(path, theirs) or Holder.read(_text_of(path)) != holder:
            return None
        if why:
            say(f"{path}: taken over from {holder or NAMELESS}: {why}")
        fresh = path.with_name(f"{path.name}.{here.host}.{here.pid}")
        fresh.unlink(missing_ok=True)
        descriptor = _create(fresh, here)
        fresh.replace(path)
        return descriptor
    finally:
        os.close(theirs)


def _wait_for_end(path: Path, here: Holder, say: Say) -> tuple[Holder | None, str]:
    """The holder of the file, and how it is known that it has ended; no words where the kernel
    knows it.

    Raises:
        CheckpointError: it lives.
    """
    first_beat = path.stat().st_mtime_ns
    is_told = False
    while True:
        holder, age = Holder.read(_text_of(path)), _age(path, here)
        if holder and holder.is_beside(here):
            if holder.lives():
                raise _refusal(path.parent, holder)
            return holder, ""
        if holder and here.comes_after(holder):
            return holder, "its job has started again"
        if _is_flocked(path) or path.stat().st_mtime_ns != first_beat:
            raise _refusal(path.parent, holder)
        if age >= SILENT_SECONDS:
            return holder, f"no sign of life for {age:.0f} s"
        if not is_told:
            say(
                f"{path}: of {holder or NAMELESS}, whose last sign of life is {age:.0f} s old;"
                f" waiting for the next one, or for {SILENT_SECONDS:.0f} s without any"
            )
            is_told = True
        time.sleep(POLL_SECONDS)


def _refusal(folder: Path, holder: Holder | None) -> CheckpointError:
    return CheckpointError(
        f"output: {folder} is in use by {holder or NAMELESS};"
        " allowed: to wait until it ends or to stop it, or output=ANOTHER_FOLDER"
    )


def _create(path: Path, here: Holder) -> int:
    """A new file that names this process, open and, where the file system can, locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _flock(descriptor)
        os.write(descriptor, json.dumps(dataclasses.asdict(here)).encode())
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def _flock(descriptor: int) -> bool:
    """Whether no other process has locked the file; True where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _wait_for_flock(descriptor: int) -> None:
    end = time.monotonic() + FLOCK_SECONDS
    while not _flock(descriptor) and time.monotonic() < end:
        time.sleep(0.05)


def _is_flocked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not _flock(descriptor)
    finally:
        os.close(descriptor)


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is what lies there."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _age(path: Path, here: Holder) -> float:
    """Seconds since the last heartbeat, by the clock of the file system, which all machines
    share.
    """
    probe = path.with_name(f"{path.name}.{here.host}.{here.pid}.now")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return max(0.0, now - path.stat().st_mtime)
