"""Join the processes of a run: device, process group, and a DeepSpeed that needs no compiler."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch

from scalepet import dist
from scalepet.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    LaunchError,
    RankError,
    ScalepetError,
    in_words,
    mendable,
)
from scalepet.launch import arrival
from scalepet.launch.alarm import Alarm
from scalepet.launch.gpus import count_gpus, sees_gpus
from scalepet.launch.loopback import keep_to_loopback
from scalepet.launch.place import own_place
from scalepet.launch.roll_call import missing_ranks
from scalepet.signals import EXIT_STOPPED, Stopped
from scalepet.tracking.redact import without_secrets

_joined = False
"""Whether this process has been in a process group."""

_alarm: Alarm | None = None
"""Of the group that this process is in, where it is one of several."""

_open: list[Callable[[], None]] = []
"""Close what others would wait for."""

DEFAULT_TIMEOUT_MINUTES = 30
"""How long a collective waits for the others, where DEEPSPEED_TIMEOUT (minutes) does not say.

Rank 0 may read a large checkpoint for minutes before it joins one. A process that ends is noticed
at once; only a machine that falls silent makes the others wait so long.
"""


def is_launched() -> bool:
    """Whether a launcher (deepspeed, torchrun, srun) has started this process as one of several.

    Raises:
        LaunchError: as ``own_place``.
    """
    place = own_place()
    return place is not None and place.world_size > 1


def pick_device() -> torch.device:
    """The GPU of this rank; the CPU where the machine has none, or where they are hidden.

    Raises:
        LaunchError: more ranks than GPUs on this machine, or as ``count_gpus`` and ``own_place``.
    """
    place, num_gpus = own_place(), count_gpus()
    if not num_gpus:
        return torch.device("cpu")
    local_rank = place.local_rank if place else 0
    if local_rank >= num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise LaunchError(
            f"local rank {local_rank} has no GPU: this machine shows {num_gpus}{hidden};"
            " start at most one process a GPU (deepspeed --num_gpus), and let each see all of its"
            " machine (srun --gpu-bind=none)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def join_processes(*, timeout_seconds: int | None = None) -> torch.device:
    """Start the process group through DeepSpeed and return this rank's device. Safe to call again.

    A process that no launcher started becomes a group of one.

    Args:
        timeout_seconds: how long a collective waits for the others; None for what the user says.

    Raises:
        LaunchError: the environment of the launcher is not whole, a rank has no device, their
            devices are of several types, or the group cannot be formed.
    """
    place = own_place()
    if timeout_seconds is None:
        timeout_seconds = 60 * _timeout_minutes()
    if place is None:
        device = pick_device()
        _become_a_group_of_one()
    else:
        device = _device_among(place.world_size, timeout_seconds)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Groups that DeepSpeed makes itself take their timeout from here, not from init_distributed.
    os.environ.setdefault("DEEPSPEED_TIMEOUT", str(max(1, timeout_seconds // 60)))
    deepspeed = quiet_deepspeed()
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo",
            init_method=keep_to_loopback(is_alone=place is None),
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=timeout_seconds),
        )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(
            f"rank {os.environ['RANK']} cannot join the group at {address}: {error}"
        ) from error
    global _joined, _alarm
    _joined = True
    if _alarm is None and is_launched():
        _alarm = Alarm(_give_up)
    return device


def _device_among(num_ranks: int, timeout_seconds: float) -> torch.device:
    """This rank's device, once all ranks have one of the same type: others would join another kind
    of group, and wait for ever.
    """
    faults: Sequence[str] = ()
    device = torch.device("cpu")
    try:
        device = pick_device()
    except LaunchError as error:
        if num_ranks == 1:
            raise
        faults = error.faults
    if num_ranks > 1:
        arrival.come(
            device=device.type,
            gpu=_identity(device),
            faults=faults,
            timeout_seconds=timeout_seconds,
        )
    return device


def _identity(device: torch.device) -> str:
    if device.type == "cpu":
        return ""
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))


def leave_processes() -> None:
    """Wait for all, then take the group down: a rank that just ends can abort the others."""
    global _alarm
    if _alarm is not None:
        _alarm.close()
        _alarm = None
    if torch.distributed.is_initialized():
        dist.barrier()
        torch.distributed.destroy_process_group()
    arrival.forget()


@contextlib.contextmanager
def joined(*, timeout_seconds: int | None = None) -> Iterator[torch.device]:
    """This rank's device, inside of the group that ``join_processes`` joins.

    An exception that leaves it is told to all other ranks, which then end with it wherever they
    are; nothing waits for them.

    Raises:
        LaunchError: as ``join_processes``.
        RankError: in place of the broken collective that another rank's exception has led to.
    """
    device = join_processes(timeout_seconds=timeout_seconds)
    try:
        yield device
    except BaseException as error:
        _part_with(error)
        raise
    leave_processes()


def _part_with(error: BaseException) -> None:
    """Tell the others why this rank ends; the group goes where no collective is under way in it."""
    global _alarm
    alarm, _alarm = _alarm, None
    is_broken = isinstance(error, Exception) and is_broken_collective(error)
    if alarm is not None:
        if is_broken and alarm.heard is not None:
            raise alarm.heard from None
        if not is_broken:  # of which the others know themselves
            alarm.ring(_as_failure(error))
    is_shared = isinstance(error, (ScalepetError, RankError, Stopped))
    if torch.distributed.is_initialized() and (is_shared or alarm is None):
        torch.distributed.destroy_process_group()


def _as_failure(error: BaseException) -> RankError:
    if isinstance(error, RankError):
        return error
    if isinstance(error, Stopped):
        return RankError(str(error), code=EXIT_STOPPED)
    code = EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_FAILED
    if isinstance(error, Exception):
        error = mendable(error)
    if isinstance(error, ScalepetError):
        code = EXIT_REFUSED
    rank = os.environ.get("RANK", "0")
    return RankError([f"rank {rank}: {words}" for words in in_words(error)], code=code)


@contextlib.contextmanager
def closing(close: Callable[[], None]) -> Iterator[None]:
    """Calls ``close`` at the end; and, in another thread, where this process hangs inside and is
    ended, since another rank has failed.
    """
    _open.append(close)
    try:
        yield
    finally:
        _open.remove(close)
        close()


def _give_up(failure: RankError) -> None:
    """Where the main thread cannot be reached."""
    for close in reversed(_open):
        with contextlib.suppress(Exception):
            close()
    for fault in failure.faults:
        print(without_secrets(f"scalepet: {fault}"), file=sys.stderr)
    end_process(failure.code)


def end_process(code: int) -> NoReturn:
    """End this process with this exit code, whatever the others do.

    DeepSpeed holds on to its groups, and an ordinary exit of the interpreter now and then destroys
    one whose threads still run: the process aborts, and a launcher sees a crash in place of the
    code. So a process that has been in a group leaves without the interpreter's clean-up.
    """
    if not _joined:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended_neighbours() -> list[int]:
    """Ranks of this machine that have ended while this one still runs. Not a collective.

    It is due to them that a collective breaks. Empty where the launcher is not DeepSpeed's.
    """
    parent, own = os.getppid(), int(os.environ.get("RANK", "0"))
    first = own - int(os.environ.get("LOCAL_RANK", "0"))
    expected = range(first, first + int(os.environ.get("LOCAL_SIZE", "0")))
    children = Path(f"/proc/{parent}/task/{parent}/children")
    there = (
        {_rank_of(child) for child in children.read_text().split()} if children.is_file() else {}
    )
    return [rank for rank in expected if rank not in there] if own in there else []


def _rank_of(process: str) -> int | None:
    """As its environment says, which is gone once it has ended."""
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"RANK="):
                return int(variable.removeprefix(b"RANK="))
    return None


def is_broken_collective(error: Exception) -> bool:
    """Whether a collective failed because of other ranks: a lost connection, a timeout."""
    kinds = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def silent_ranks(error: Exception) -> list[int]:
    """Ranks that have not failed with this one; [] where it failed by itself.

    One rank of those that failed gets them, the others [] once it has (``missing_ranks``).
    """
    if not (_joined and is_launched() and is_broken_collective(error)):
        return []
    return missing_ranks()


def forget_peak_memory() -> None:
    """From here on ``peak_memory_bytes`` counts anew, so that a run after another has its own peak.

    Of the host on Linux alone.
    """
    if sees_gpus():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc


def peak_memory_bytes() -> int:
    """The most memory that this process has held since ``forget_peak_memory``: of its GPU where it
    has one, else of the host.
    """
    if sees_gpus():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timeout_minutes() -> int:
    """
    Raises:
        LaunchError: DEEPSPEED_TIMEOUT is no whole number of minutes.
    """
    text = os.environ.get("DEEPSPEED_TIMEOUT", str(DEFAULT_TIMEOUT_MINUTES))
    if not text.isdecimal() or int(text) == 0:
        raise LaunchError(f"DEEPSPEED_TIMEOUT is {text!r}; allowed: a whole number of minutes")
    return int(text)


def _become_a_group_of_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def quiet_deepspeed():  # type: ignore[no-untyped-def]
    """Import DeepSpeed, without its chatter and without its shared-memory op for CPUs.

    That op is compiled at the first start (minutes, a compiler needed), and a compile that was
    killed leaves a lock on which every later start waits for ever. DeepSpeed takes gloo where its
    table of compatible ops does not list it; a table given here also spares every rank the compiler
    probes that fill DeepSpeed's own.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
        from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch is about to change, once a gather.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed
