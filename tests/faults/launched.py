"""A run on two ranks, to one of which something happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from conftest import finish_ranks, start_ranks

STRUCK = str(Path(__file__).with_name("struck.py"))
NUM_RANKS = 2
RUN_SECONDS = 240.0


@dataclass
class Launched:
    """It has ended.

    Attributes:
        codes: of each rank, or of their launcher.
        end_seconds: from the blow until all have ended; 0 where there was none.
        passed: how often each rank that ended by itself came to each place.
    """

    codes: list[int]
    said: str
    end_seconds: float = 0.0
    passed: dict[str, dict[str, int]] = field(default_factory=dict)


def run_struck(
    words: Sequence[str],
    *,
    launcher: Sequence[str] = (),
    kill_after: tuple[float, int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Launched:
    """Run it to its end, or kill one of its ranks without warning.

    Args:
        words: of ``struck.py``.
        launcher: starts both ranks, and ends the other one when one has ended; none: each is on its
            own.
        kill_after: seconds, rank.
    """
    struck_at = None
    processes = _start(words, launcher, {**(environment or {})})
    try:
        if kill_after is not None:
            time.sleep(kill_after[0])
            struck_at = _kill(processes, kill_after[1])
        results = finish_ranks(processes, timeout_seconds=RUN_SECONDS)
        ended_at = time.monotonic()
    finally:
        if launcher:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(processes[0].pid, signal.SIGKILL)
    launched = Launched([code for code, _ in results], "".join(said for _, said in results))
    for line in launched.said.splitlines():
        if line.startswith("struck "):
            struck_at = float(line.split()[-1])
        if line.startswith("passed "):
            _, rank, counts = line.split(" ", 2)
            launched.passed[rank] = json.loads(counts)
    if struck_at is not None:
        launched.end_seconds = ended_at - struck_at
    return launched


def _start(
    words: Sequence[str], launcher: Sequence[str], environment: dict[str, str]
) -> list[subprocess.Popen[str]]:
    if not launcher:
        command = [sys.executable, STRUCK, *words]
        return start_ranks(command, NUM_RANKS, environment=environment)
    return [
        subprocess.Popen(
            [*launcher, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )
    ]


def _kill(processes: Sequence[subprocess.Popen[str]], rank: int) -> float | None:
    """When; None where the rank is not there."""
    if len(processes) > 1:
        processes[rank].kill()
        return time.monotonic()
    for child in psutil.Process(processes[0].pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank):
                child.kill()
                return time.monotonic()
    return None
