"""A study as several processes of this machine, each with some of its cells."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scalepet.config.study import RUNS
from scalepet.launch.place import SET_BY_LAUNCHERS
from scalepet.signals import EXIT_STOPPED

LOGS = "logs"
POLL_SECONDS = 0.5
_ENDS_WELL = (0, 1, EXIT_STOPPED)
"""All finished; some failed, which their folders say; stopped as asked."""


@dataclass(frozen=True)
class Worker:
    """A process that works through some cells."""

    process: subprocess.Popen[bytes]
    cells: Sequence[str]
    log: Path

    @property
    def fault(self) -> str | None:
        """Why it ended otherwise than a sweep does."""
        code = self.process.returncode
        if code in _ENDS_WELL:
            return None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the worker of {', '.join(self.cells)} {how}; see {self.log}"


@dataclass
class Workers:
    """Hands out cells in portions, which shrink: a process starts for seconds.

    Attributes:
        study: the file that each worker reads; beside it are the runs, and the logs of workers.
        gpus: as CUDA_VISIBLE_DEVICES names them, at least one a worker; none where they use CPUs.
        faults: of workers that did not end well.
    """

    study: Path
    num_workers: int
    gpus: Sequence[str] = ()
    faults: list[str] = field(default_factory=list)

    def run(self, cells: Sequence[str]) -> Iterator[None]:
        """Yields for every run that is finished; on the way out workers are asked to stop, and
        waited for.
        """
        waiting, working = list(cells), dict[int, Worker]()
        num_before = self._num_finished()
        try:
            while waiting or working:
                for slot in range(self.num_workers):
                    if waiting and slot not in working:
                        size = max(1, len(waiting) // (2 * self.num_workers))
                        portion, waiting = waiting[:size], waiting[size:]
                        working[slot] = self._start(slot, portion)
                time.sleep(POLL_SECONDS)
                for slot, worker in list(working.items()):
                    if worker.process.poll() is not None:
                        self.faults += filter(None, [worker.fault])
                        del working[slot]
                num_now = self._num_finished()
                yield from [None] * (num_now - num_before)
                num_before = num_now
        finally:
            for worker in working.values():
                worker.process.send_signal(signal.SIGUSR1)
            for worker in working.values():
                worker.process.wait()

    def _num_finished(self) -> int:
        return sum(1 for _ in self.study.with_name(RUNS).glob("*/*/*/*/result.json"))

    def _start(self, slot: int, cells: Sequence[str]) -> Worker:
        command = [sys.executable, "-P", "-m", "scalepet", "sweep", str(self.study), "--worker"]
        for cell in cells:
            command += ["--only", cell]
        log = self.study.with_name(LOGS) / f"worker-{slot}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=self.environment(slot),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which asks workers to stop
            )
        return Worker(process, cells, log)

    def environment(self, slot: int) -> dict[str, str]:
        """Without what would make workers ranks of one group. Cores are shared among them, and
        each has one GPU where there are some.
        """
        environment = {
            name: value for name, value in os.environ.items() if name not in SET_BY_LAUNCHERS
        }
        threads = max(1, len(os.sched_getaffinity(0)) // self.num_workers)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot]
        return environment


def stop_with_parent() -> None:
    """Let this process stop, as asked by a signal, once the one that started it has ended: then its
    stdin ends, whatever ended it.
    """

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
