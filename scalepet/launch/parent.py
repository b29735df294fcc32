"""A rank whose launcher is gone stops by itself."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping

_OF_LAUNCHERS = frozenset({"LOCAL_SIZE", "TORCHELASTIC_RUN_ID"})
"""DeepSpeed's launcher and torchrun set them, and stay for as long as their ranks do."""

_PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def stop_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Let this rank be asked to stop, by SIGTERM, once the launcher that started it has ended,
    whatever ended it: nobody is left to end the rank or to hear its exit code.

    Nothing happens in a process that neither DeepSpeed nor torchrun has started.
    """
    if not _OF_LAUNCHERS.isdisjoint(environment):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
