"""What scalepet says when it cannot go on: one clear message, every fault at once.

A ``ScalepetError`` is the user's to mend (a value, a file, a machine) and ends a run with exit code
2 (a ``PassingError`` with 1) and no traceback. Our own mistakes are ``assert`` and keep theirs.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator, Sequence

EXIT_FAILED = 1
EXIT_REFUSED = 2
"""The user can mend it, and starting again does not."""
EXIT_INTERRUPTED = 130
"""By Ctrl-C, as shells have it."""

OF_THE_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG})
"""Failures of files and paths that are the user's to mend, wherever they happen."""


class ScalepetError(Exception):
    """Base of every error that is shown to the user in plain words.

    Args:
        faults: one message, or all of them; each names the thing, its value and what is allowed.
    """

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        assert self.faults, "an error without a fault"
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type[ScalepetError], tuple[tuple[str, ...]]]:
        """Pickle by faults, so that an error can cross to other ranks."""
        return (type(self), (self.faults,))


class ConfigError(ScalepetError):
    """The run as described cannot be: a config value, a missing file, a missing device."""


class DataError(ScalepetError):
    """The data is not what the config says it is: columns, labels, empty or broken rows."""


class CheckpointError(ScalepetError):
    """A saved adapter or run state that does not fit, is not whole, or cannot be written."""


class PassingError(CheckpointError):
    """A file could not be written for a reason that may pass by itself: the same command may well
    succeed, so it ends with exit code 1 and a job script queues it again.
    """


class LaunchError(ScalepetError):
    """The processes of a run cannot start or find each other."""


class RankError(Exception):
    """Another rank cannot go on, so this one does not. What it is stands there, with a traceback
    where it is our own mistake.

    Args:
        faults: as they are to be shown, each with its rank.
        code: the exit code of the other rank, which becomes that of this one.
    """

    def __init__(self, faults: str | Sequence[str], *, code: int = EXIT_FAILED) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        self.code = code
        super().__init__("\n".join(self.faults))

    def as_text(self) -> str:
        return json.dumps([self.faults, self.code])

    @classmethod
    def of_text(cls, text: str) -> RankError:
        faults, code = json.loads(text)
        return cls(faults, code=code)


def in_words(error: BaseException) -> tuple[str, ...]:
    """What is wrong, for somebody who has not the traceback."""
    if isinstance(error, ScalepetError):
        return error.faults
    first_line = next(iter(str(error).splitlines()), "")
    return (f"{type(error).__name__}: {first_line}",)


def mendable(error: Exception) -> Exception:
    """The same, or a ``ScalepetError`` where it is the machine that the user has to mend."""
    if not isinstance(error, OSError) or error.errno not in OF_THE_MACHINE:
        return error
    path = f": {str(error.filename)[:100]!r}" if error.filename else ""
    return ScalepetError(f"{error.strerror}{path}")


def some_ranks(ranks: Sequence[int]) -> str:
    """As a message names them: "rank 1", "ranks 0, 2"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class Faults(list[str]):
    """Goes on after a fault, so that the user sees all of them at once::

    faults = Faults()
    for folder in folders:
        with faults.noted():
            read(folder)
    faults.raise_any()
    """

    @contextlib.contextmanager
    def noted(self, prefix: str = "") -> Iterator[None]:
        """Keeps the faults of a ``ScalepetError`` that is raised inside, each behind ``prefix``."""
        try:
            yield
        except ScalepetError as error:
            self.extend(prefix + fault for fault in error.faults)

    def raise_any(self) -> None:
        """Returns if there is no fault.

        Raises:
            ConfigError: with all of them.
        """
        if self:
            raise ConfigError(self)
