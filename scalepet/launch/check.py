"""What must hold on all machines before a run starts, found out by its own ranks."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as torch_dist

from scalepet.launch.facts import Facts, device_faults, named, own_facts, placed, version_faults
from scalepet.launch.meeting import Meeting

_GRACE_SECONDS = 5.0
_EXIT_REFUSED = 2

SECONDS_TO_BE_SEEN = 5.0
"""A network file system may show a new file a little later to the others."""

Say = Callable[[str, str], None]
Check = Callable[[], tuple[list[str], str]]
"""Its faults, and what it found if there are none."""


def check_launch(output: Path | None, *, timeout_seconds: float, say: Say) -> list[str]:
    """Every fault of the machines, processes and network of a launch. Called on every rank.

    Args:
        output: a folder in which all machines would write, made where it is not there; None leaves
            it out.
        timeout_seconds: wall-clock limit; a check that hangs beyond it ends this process with exit
            code 2 and its name.
        say: is given the name of every check that holds, and what it has found.

    Returns:
        The same faults on every rank; none if a run can start.

    Raises:
        LaunchError: this rank has not met the others; they may not know why.
    """
    with _no_longer_than(timeout_seconds + _GRACE_SECONDS) as begin:
        begin("processes")
        meeting = Meeting(timeout_seconds=timeout_seconds)
        own = own_facts(meeting.host, meeting.local_rank)
        ranks = [Facts(*values) for values in meeting.gather("facts", own)]
        say("processes", f"{len(ranks)} met: {placed(ranks)}")
        checks: dict[str, Check] = {
            "devices": lambda: (device_faults(ranks), "one for each process"),
            "versions": lambda: (version_faults(ranks), _in_words(own.versions)),
        }
        if output is not None:
            checks["folder"] = lambda: _check_folder(meeting, output)
        if not device_faults(ranks):
            checks["network"] = lambda: _check_network(meeting, ranks)
        faults: list[str] = []
        for name, check in checks.items():
            begin(name)
            found, words = check()
            faults += found
            if not found:
                say(name, words)
        meeting.leave()
    return faults


def _in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _check_folder(meeting: Meeting, folder: Path) -> tuple[list[str], str]:
    """Each rank writes a file there, and all must see it."""
    own = folder / f".scalepet-check-{meeting.rank}"
    before = meeting.gather("before", (meeting.host, folder.exists()))
    hosts = [host for host, _ in before]
    errors = meeting.gather("written", _write(own, meeting.host))
    missed = meeting.gather("missed", [] if any(errors) else _missed(folder, hosts))
    with contextlib.suppress(OSError):
        own.unlink()
        if not all(was_there for _, was_there in before):
            folder.rmdir()  # which the last rank can
    faults = [
        f"--output {folder} cannot be written on {host} ({error})"
        for host, error in zip(hosts, errors, strict=True)
        if error
    ] + [
        f"--output {folder} is not one folder: {host} does not see what {named(others)} wrote;"
        " allowed: a folder that all machines share"
        for host, others in zip(hosts, missed, strict=True)
        if others
    ]
    seen_by = named(list(dict.fromkeys(hosts)))
    return list(dict.fromkeys(faults)), f"{folder} is written and seen by {seen_by}"


def _write(path: Path, host: str) -> str:
    """What went wrong, if anything did."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(host, encoding="utf-8")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _missed(folder: Path, hosts: list[str]) -> list[str]:
    """Hosts whose files are not there, or not theirs."""
    deadline = time.monotonic() + SECONDS_TO_BE_SEEN
    while True:
        missed = [host for rank, host in enumerate(hosts) if not _is_seen(folder, rank, host)]
        if not missed or time.monotonic() > deadline:
            return list(dict.fromkeys(missed))
        time.sleep(0.2)


def _is_seen(folder: Path, rank: int, host: str) -> bool:
    try:
        return (folder / f".scalepet-check-{rank}").read_text(encoding="utf-8") == host
    except OSError:
        return False


def _check_network(meeting: Meeting, ranks: list[Facts]) -> tuple[list[str], str]:
    """All add up a number over the network that training would use."""
    backend = "nccl" if ranks[0].num_gpus else "gloo"
    errors = meeting.gather("sums", _sum_error(meeting, backend))
    faults = [
        f"{backend} does not reach all from rank {rank} on {ranks[rank].host}: {error};"
        f" {backend.upper()}_SOCKET_IFNAME names the network interface to take"
        for rank, (error, _) in enumerate(errors)
        if error
    ]
    slowest = max(seconds for _, seconds in errors)
    return faults, f"{backend} adds up over {len(ranks)} processes ({slowest:.2f} s)"


def _sum_error(meeting: Meeting, backend: str) -> tuple[str, float]:
    started = time.monotonic()
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", meeting.local_rank)
        torch.cuda.set_device(
            device
        )  # else all processes of a machine hold memory on its first GPU
    # Without it NCCL waits in the background, and ends the process in its own way.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        torch_dist.init_process_group(
            backend,
            store=torch_dist.PrefixStore("group", meeting.store),
            rank=meeting.rank,
            world_size=meeting.world_size,
            timeout=timedelta(seconds=meeting.seconds_left() / 2),
        )
        total = torch.ones((), device=device)
        torch_dist.all_reduce(total)
        wrong = "" if total.item() == meeting.world_size else f"the sum is {total.item()}"
    except RuntimeError as error:
        wrong = str(error).splitlines()[0]
    finally:
        if torch_dist.is_initialized():
            torch_dist.destroy_process_group()
    return wrong, time.monotonic() - started


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[Callable[[str], None]]:
    """Ends the process if the block takes longer; gives what notes the name of what is going on.

    In a thread of its own: a process that waits for a dead file system heeds no signal.
    """
    doing = ["nothing"]

    def give_up() -> None:
        where = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
        print(f"scalepet: {where} hangs in the check: {doing[0]}", file=sys.stderr, flush=True)
        os._exit(_EXIT_REFUSED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield lambda name: doing.__setitem__(0, name)
    finally:
        timer.cancel()
