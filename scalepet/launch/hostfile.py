"""Hostfiles of DeepSpeed: a line a machine, as in ``node1 slots=8``."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from scalepet.errors import Faults, LaunchError
from scalepet.reading import read_text

# No machine is called like an option of ssh.
_LINE = re.compile(r"(?P<host>\w[\w.:@-]*)\s+slots=(?P<slots>\d{1,6})\s*(#.*)?", re.ASCII)
_NO_FOLDER, _NO_PYTHON, _SSH_FAILED = 40, 41, 255


def read_hostfile(path: Path) -> dict[str, int]:
    """The number of processes of every machine, in the order of their ranks.

    Raises:
        LaunchError: the file does not exist or names no machine, a line is not as above, a machine
            stands twice or has no slot.
    """
    if not path.is_file():
        raise LaunchError(f"--hostfile {path} does not exist; allowed: one with a line a machine")
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise LaunchError(f"--hostfile {path} cannot be read: {error}") from error
    hosts: dict[str, int] = {}
    faults = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None or int(found["slots"]) == 0:
            faults.append(f"{path}:{number}: {line.strip()!r}; allowed: as in node1 slots=8")
        elif found["host"] in hosts:
            faults.append(f"{path}:{number}: {found['host']} stands there already; allowed: once")
        else:
            hosts[found["host"]] = int(found["slots"])
    if not hosts and not faults:
        faults.append(f"{path} names no machine; allowed: lines as in node1 slots=8")
    if faults:
        raise LaunchError(faults)
    return hosts


def reach_hosts(hosts: Iterable[str], *, timeout_seconds: float) -> None:
    """Returns once every machine has answered ssh and has the current folder and this Python.

    Raises:
        LaunchError: with a fault for each that has not, or where a program of the launcher lacks.
    """
    lacking = [name for name in ("ssh", "pdsh") if shutil.which(name) is None]
    if lacking:
        raise LaunchError(f"{' and '.join(lacking)} not found; DeepSpeed starts machines with them")
    folder, python = shlex.quote(str(Path.cwd())), shlex.quote(sys.executable)
    look = f"cd {folder} || exit {_NO_FOLDER}; test -x {python} || exit {_NO_PYTHON}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(timeout_seconds))}"]
    answers = {
        host: subprocess.Popen(
            ["ssh", *options, host, look],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in hosts
    }
    deadline = time.monotonic() + timeout_seconds
    faults = Faults()
    for host, answer in answers.items():
        with faults.noted():
            _take(host, answer, seconds=max(0.0, deadline - time.monotonic()))
    if faults:
        raise LaunchError(faults)


def _take(host: str, answer: subprocess.Popen[str], *, seconds: float) -> None:
    try:
        _, said = answer.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        answer.kill()
        answer.communicate()
        raise LaunchError(f"{host} has not answered ssh in time; is it up?") from None
    if answer.returncode == _SSH_FAILED:
        last = said.strip().splitlines()[-1:] or ["no reason given"]
        raise LaunchError(
            f"{host} cannot be reached by ssh without a password ({last[0].strip()});"
            f" try: ssh -o BatchMode=yes {host} true"
        )
    if answer.returncode == _NO_FOLDER:
        raise LaunchError(
            f"{host} has no folder {Path.cwd()}; allowed: one that all machines share"
        )
    if answer.returncode != 0:
        raise LaunchError(
            f"{host} has no Python at {sys.executable}; allowed: the same environment, at the same"
            " path, on all machines"
        )
