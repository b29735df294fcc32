"""A process that works in a run folder, as it names itself to others."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pydantic

from scalepet.errors import LaunchError


@dataclass(frozen=True)
class Holder:
    """A process that works in a folder.

    Attributes:
        system: names the start of the machine, and the world of process ids in it.
        started: ticks of that machine's clock, which tell a process from a later one of its id.
        since: when it took the folder.
        job: of SLURM.
        num_restarts: of that job.
        workplace: the name of the folder beside the lock where its files are made.
    """

    host: str
    system: str
    pid: int
    started: int | None
    since: str
    job: str | None = None
    num_restarts: int = 0
    workplace: str = ""

    @classmethod
    def here(cls) -> Holder:
        """This process.

        Raises:
            LaunchError: SLURM_RESTART_COUNT is no whole number.
        """
        return cls(
            host=socket.gethostname(),
            system=_system(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            since=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            job=os.environ.get("SLURM_JOB_ID"),
            num_restarts=_num_restarts(),
        )

    @classmethod
    def read(cls, text: str) -> Holder | None:
        try:
            return pydantic.TypeAdapter(cls).validate_json(text)
        except pydantic.ValidationError:
            return None  # cut, being written, or of nobody that scalepet knows

    def __str__(self) -> str:
        job = f" of SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def is_beside(self, other: Holder) -> bool:
        """Whether both are processes of one machine, in one world of process ids."""
        return (self.host, self.system) == (other.host, other.system)

    def lives(self) -> bool:
        """Of a process of this machine, whether it still runs."""
        started = _start_of(self.pid)
        return started is not None and started == self.started

    def comes_after(self, other: Holder) -> bool:
        """Whether SLURM has started the job of both again, which it ends everywhere before."""
        is_same = self.job is not None and self.job == other.job
        return is_same and self.num_restarts > other.num_restarts


def _num_restarts() -> int:
    text = os.environ.get("SLURM_RESTART_COUNT") or "0"
    if not text.isdecimal():
        raise LaunchError(f"SLURM_RESTART_COUNT is {text!r}; allowed: a whole number")
    return int(text)


def _start_of(pid: int) -> int | None:
    """When a process of this machine has started, in ticks since the machine has; None once it has
    ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _system() -> str:
    """Process ids mean the same where this is the same; where the kernel does not tell, never."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex
