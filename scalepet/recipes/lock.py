"""One run at a time in a folder, on one machine or on many that share it.

``run.lock`` says who works there. Whether that process still lives is known from the kernel where
it runs on this machine, else from its heartbeat (the time of the file) or from a file lock, where
the file system has such. What cannot live any more is taken over without anyone's help.

A process may be taken for dead that was only frozen. So a holder makes all its files in a workplace
(``scalepet.files``), and the one that takes over renames that away first: whatever the other still
finishes gets nowhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scalepet import dist, engine
from scalepet.errors import CheckpointError
from scalepet.files import WORKPLACE, clear_workplace, unwritable
from scalepet.recipes.holder import Holder

LOCK = "run.lock"
HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""Without a heartbeat for so long, a process of another machine has ended: shared file systems show
a new time to other machines within a minute.
"""
POLL_SECONDS = 1.0

NAMELESS = "a process that it does not name"

Say = Callable[[str], None]


@contextlib.contextmanager
def one_run_in(folder: Path, *, say: Say) -> Iterator[Hold]:
    """Inside, no other run works in the folder. All ranks together on the way in; rank 0 holds it.

    Args:
        say: told, on rank 0, of a wait or of a takeover from another machine.

    Raises:
        CheckpointError: a run that lives has the folder, or no file can be written there.
    """
    lock = dist.together(lambda: take(folder, say=say) if dist.is_main() else None)
    if lock is None:
        yield Hold()
        return
    with engine.closing(lock.release):
        yield Hold(lock.check, lock.workplace)


@dataclass(frozen=True)
class Hold:
    """What a run has of its folder; of ranks other than 0, nothing.

    Attributes:
        check: raises a CheckpointError once another process has the folder.
        workplace: where its files are made, for ``scalepet.files``.
    """

    check: Callable[[], None] = lambda: None
    workplace: Path | None = None


class RunLock:
    """This process's hold of a folder, with a heartbeat until it is released."""

    def __init__(self, path: Path, descriptor: int, workplace: Path) -> None:
        self.workplace = workplace
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
        clear_workplace(self.workplace, self._path.parent)
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
    path, workplace = folder / LOCK, folder / f"{WORKPLACE}{uuid.uuid4().hex}"
    here = dataclasses.replace(Holder.here(), workplace=workplace.name)
    try:
        workplace.mkdir()
        try:
            return RunLock(path, _taken(path, here, workplace, say), workplace)
        except BaseException:
            shutil.rmtree(workplace, ignore_errors=True)
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def _taken(path: Path, here: Holder, workplace: Path, say: Say) -> int:
    """The lock, open, once this process has it."""
    while True:
        with contextlib.suppress(FileExistsError):
            return _create(path, here)
        with contextlib.suppress(FileNotFoundError):  # it has just been released
            descriptor = _take_over(path, here, workplace, say)
            if descriptor is not None:
                return descriptor


def _take_over(path: Path, here: Holder, workplace: Path, say: Say) -> int | None:
    """The lock, open; None where another process was faster.

    Raises:
        CheckpointError: its holder lives.
    """
    claims = _claims(path)
    last, text = claims[-1]
    holder, why = _wait_for_end(last, here, say)
    claim = _claim_of(path, text)
    try:
        descriptor = _create(claim, here)
    except FileExistsError:
        return None
    if _claims(path) != [*claims, (claim, _text_of(claim))]:
        # The lock has a living holder by now: it took over from those who are ahead of this claim.
        claim.unlink()
        os.close(descriptor)
        return None
    if why:
        say(f"{path}: taken over from {holder or NAMELESS}: {why}")
    for _, one in claims:
        _fence_off(path.parent, Holder.read(one), workplace)
    claim.replace(path)
    for left, _ in claims[1:]:
        left.unlink(missing_ok=True)
    return descriptor


def _claims(path: Path) -> list[tuple[Path, str]]:
    """The lock and its text, then the claim to take it over, then the claim of one who found that
    claimant dead, and so on.

    To make the claim, which only one process can, is to become the holder; the claim then gets the
    name of the lock. Its own name comes from the text that it follows, which is written once.
    """
    claims = [(path, _text_of(path))]
    while (claim := _claim_of(path, claims[-1][1])).exists():
        claims.append((claim, _text_of(claim)))
    return claims


def _claim_of(path: Path, text: str) -> Path:
    return path.with_name(f"{LOCK}.{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}")


def _fence_off(folder: Path, holder: Holder | None, workplace: Path) -> None:
    """From here on that holder, should it still live, finishes nothing any more; what it was
    replacing when it died is put back.
    """
    name = holder.workplace if holder else ""
    if not name.startswith(WORKPLACE) or Path(name).name != name:  # of 0.1, or forged
        return
    with contextlib.suppress(FileNotFoundError):
        left = (folder / name).rename(workplace / name)
        clear_workplace(left, folder)


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
    """A new file that names this process, on the disk, open and, where the file system can,
    locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        _flock(descriptor)
        os.write(descriptor, json.dumps(dataclasses.asdict(here)).encode())
        os.fsync(descriptor)  # an empty one makes the next process wait
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
    probe = path.with_name(f"{path.name}.{here.host}.{here.pid}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return max(0.0, now - path.stat().st_mtime)
