"""A run that is asked to stop, by SIGTERM or SIGUSR1, stops where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h, "try again later": the same command with --resume goes on."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM (scancel, time limits, --signal) and launchers send."""


class Stopped(BaseException):
    """This process ends as it was asked to, and nothing is lost.

    Like KeyboardInterrupt no ``Exception``: what guards against failures lets it pass.
    """


class StopRequest:
    """Whether this process was asked to stop, heard while this is entered (in the main thread).

    A request raises ``Stopped`` at once, where there is nothing to save. Inside of ``postponed`` it
    is only noted, however often it comes: whoever works there looks at ``is_made`` where all ranks
    can stop together.

    Args:
        goes_on: for people, what goes on from there.

    Attributes:
        is_made: on this process; others may not have been asked.
    """

    def __init__(self, *, goes_on: str = "the same command with --resume") -> None:
        self.is_made = False
        self._goes_on = goes_on
        self._is_postponed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside, a request waits to be looked at."""
        self._is_postponed = True
        try:
            yield
        finally:
            self._is_postponed = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        is_first, self.is_made = not self.is_made, True
        if is_first and not self._is_postponed:
            raise Stopped(
                f"stopped by {signal.Signals(number).name}, with nothing to save;"
                f" {self._goes_on} goes on"
            )
