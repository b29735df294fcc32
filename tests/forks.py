"""Python processes that have imported everything already: forks of one that has.

A start of scalepet is four seconds of imports, and the tests make hundreds of them. A fork runs
what ``python -m scalepet`` or ``python script.py`` would, in its own environment and to its own
exit. There is one to fork for the machine as it is, and one that has taken in the emulated CUDA
device. As a script, this file is the process that forks.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import emulated_cuda

MODULES = (
    *("torch", "transformers", "deepspeed", "datasets", "matplotlib.pyplot", "sklearn.metrics"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("t5", "bert", "vit")),
    *("scalepet.recipes", "scalepet.experiments"),
)
READ_BY_IMPORTS = (
    *("HF_", "TRANSFORMERS_", "DS_", "DEEPSPEED_", "TORCH_", "TRITON_", "CUDA_", "WANDB_"),
    *("PYTHON", "XDG_", "HOME", "PATH", "TMPDIR", "LD_", "OMP_"),
)
"""How the environment variables begin that a library may read while it is imported."""

SECONDS_BETWEEN_LOOKS = 0.01


@dataclass(frozen=True)
class Done:
    """What a process left behind."""

    code: int
    out: str
    err: str


def run_python(
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    timeout_seconds: float,
) -> list[Done]:
    """``python ARGUMENTS`` once in each environment, all of them at once and to the end.

    They are forks where that is the same: of modules and scripts, and where the environments may
    not change what is imported, but for the emulated CUDA device.

    Raises:
        subprocess.TimeoutExpired: one of them took longer.
    """
    is_code = arguments[0].startswith("-") and arguments[0] != "-m"
    forked = _to_fork(environments)
    if is_code or forked is None:
        return run_anew(arguments, environments, timeout_seconds=timeout_seconds)
    with tempfile.TemporaryDirectory() as folder:
        places = [[f"{folder}/{n}.out", f"{folder}/{n}.err"] for n in range(len(environments))]
        request = {
            "arguments": list(arguments),
            "folder": str(Path.cwd()),
            "environments": [dict(found) for found in environments],
            "places": places,
            "timeout_seconds": timeout_seconds,
        }
        server = _server(forked)
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(request), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        if codes is None:
            raise subprocess.TimeoutExpired(list(arguments), timeout_seconds)
        return [
            Done(code, *(Path(place).read_text(encoding="utf-8") for place in both))
            for code, both in zip(codes, places, strict=True)
        ]


def run_anew(
    arguments: Sequence[str],
    environments: Sequence[Mapping[str, str]],
    *,
    timeout_seconds: float,
) -> list[Done]:
    """The same, each of them a new process."""

    def run(environment: Mapping[str, str]) -> Done:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(len(environments)) as threads:
        return list(threads.map(run, environments))


def _before_imports(environment: Mapping[str, str]) -> dict[str, str]:
    known = {n: value for n, value in environment.items() if n.startswith(READ_BY_IMPORTS)}
    return {**known, "OMP_NUM_THREADS": "1"}


_FORKED = {
    "the machine": dict(os.environ),
    "the emulated device": emulated_cuda.environment(),
}


def _to_fork(environments: Sequence[Mapping[str, str]]) -> str | None:
    """Which process has imported everything as these environments would have it."""
    for name, forked in _FORKED.items():
        if all(_before_imports(found) == _before_imports(forked) for found in environments):
            return name
    return None


@functools.cache
def _server(forked: str) -> subprocess.Popen[str]:
    """It ends with this process, which holds the other end of its stdin."""
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**_FORKED[forked], "OMP_NUM_THREADS": "1"},
    )


def _serve() -> None:
    """Answer each line with the exit codes, or null where they took too long. Forks return."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed says on stdout which accelerator it takes
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # or each fork's first collection copies all of it
    for line in sys.stdin:
        request, pids = json.loads(line), []
        for environment, places in zip(request["environments"], request["places"], strict=True):
            pid = os.fork()
            if pid == 0:
                return _become(request["arguments"], request["folder"], environment, places)
            pids.append(pid)
        codes = _codes(pids, request["timeout_seconds"])
        print(json.dumps(codes), file=answers, flush=True)
    sys.exit()


def _codes(pids: list[int], timeout_seconds: float) -> list[int] | None:
    left, codes, deadline = set(pids), {}, time.monotonic() + timeout_seconds
    while left:
        for pid in tuple(left):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                left.remove(pid)
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return None
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return [codes[pid] for pid in pids]


def _become(
    arguments: list[str], folder: str, environment: Mapping[str, str], places: Sequence[str]
) -> None:
    """Be as a new process of that command is before it runs."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    for number, place in enumerate(places, start=1):
        opened = os.open(place, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = arguments


if __name__ == "__main__":
    _serve()
    # A fork; the interpreter ends with it as with any other process.
    if sys.argv[0] == "-m":
        sys.argv, sys.path[0] = sys.argv[1:], str(Path.cwd())
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
