"""stdout and stderr that nobody need read: a run goes on where they cannot be written any more."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

from scalepet.errors import LaunchError

_NOBODY_READS = (errno.EPIPE, errno.EBADF, errno.EIO)
"""For good; a disk that is full may have room again."""


class Patient(io.FileIO):
    """What cannot be written is lost, and no error.

    Attributes:
        lost: why the last loss happened, unless nobody reads any more.
    """

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in _NOBODY_READS:
                _open_nowhere(self.fileno())  # so that no child of this process dies of it
            else:
                self.lost = error
            return memoryview(data).nbytes


def be_patient() -> None:
    """From now on a stdout or stderr that is closed, full or read by nobody harms no command."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed before this process began
            if not _is_open(number):
                _open_nowhere(number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # not one that a caller has put there
            setattr(sys, name, _patient(stream))


def check_answered() -> None:
    """Returns if all of stdout has been written, or is wanted by nobody: for commands whose answer
    it is.

    Raises:
        LaunchError: some of it is lost.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, Patient) and raw.lost is not None:
        raise LaunchError(f"stdout cannot be written: {raw.lost.strerror}; the answer is not whole")


def _patient(stream: TextIO) -> TextIO:
    stream.flush()
    raw = Patient(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=bool(stream.line_buffering),
    )


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)
