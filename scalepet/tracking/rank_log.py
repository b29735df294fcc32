"""The first rank speaks; what other ranks and their libraries say goes to files of the run."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

LOGS = "logs"

_terminal: TextIO | None = None
"""Where this process spoke before it got a log."""


def log_apart(folder: Path, *, rank: int) -> None:
    """From now on what this process says goes to ``folder``/logs/rank-N.log, unless it is the first
    rank, or the file cannot be written.
    """
    if rank == 0:
        return
    path = folder / LOGS / f"rank-{rank}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return
    global _terminal
    if _terminal is None:
        _terminal = os.fdopen(os.dup(2), "w")
    sys.stdout.flush()
    for stream in (1, 2):  # the descriptors, since NCCL and gloo do not speak through Python
        os.dup2(log, stream)
    os.close(log)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"--- {now} rank {rank} on {socket.gethostname()}", flush=True)


def tell_terminal(line: str) -> None:
    """Say it where someone looks, too, if this process has a log."""
    if _terminal is not None:
        with contextlib.suppress(OSError):  # nobody looks any more
            print(line, file=_terminal, flush=True)
