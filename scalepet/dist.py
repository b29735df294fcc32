"""Ranks talking to each other in plain words; with no process group, one rank on its own.

Every function is a collective unless it says otherwise: all ranks call it, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import torch
import torch.distributed as torch_dist
from torch import Tensor

from scalepet.errors import RankError, ScalepetError, in_words, mendable, some_ranks

T = TypeVar("T")


def rank() -> int:
    """This process's place among all processes; 0 with no process group. Not a collective."""
    return torch_dist.get_rank() if _has_group() else 0


def world_size() -> int:
    """How many processes work together; 1 with no process group. Not a collective."""
    return torch_dist.get_world_size() if _has_group() else 1


def local_rank() -> int:
    """This process's place on its own machine, as the launcher set it. Not a collective."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the one rank that prints and writes. Not a collective."""
    return rank() == 0


def barrier() -> None:
    """Returns once every rank has come here."""
    if not _has_group():
        return
    if "nccl" in torch_dist.get_backend():
        torch_dist.barrier(device_ids=[torch.cuda.current_device()])  # else it guesses, and warns
    else:
        torch_dist.barrier()


@overload
def sum_over_ranks(value: Tensor) -> Tensor: ...
@overload
def sum_over_ranks(value: int) -> int: ...
@overload
def sum_over_ranks(value: float) -> float: ...
def sum_over_ranks(value: Tensor | float) -> Tensor | float:
    """The sum of every rank's value, on every rank.

    Args:
        value: a tensor of any shape (left as it is), or a number. Whole numbers are added as int64
            and others as float64, so counts stay exact.

    Returns:
        A new tensor of the same shape, type and device, or a number; True counts as 1.
    """
    if isinstance(value, Tensor):
        return _summed(value)
    if isinstance(value, int):
        return int(_summed(torch.tensor(int(value), dtype=torch.int64)).item())
    return float(_summed(torch.tensor(value, dtype=torch.float64)).item())


def all_gather_objects(value: T) -> list[T]:
    """Every rank's value in the order of ranks, on every rank. Values must pickle."""
    if not _has_group():
        return [value]
    values: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T, source: int = 0) -> T:
    """The value of rank ``source``, on every rank; what the others pass is ignored."""
    if not _has_group():
        return value
    values = [value]
    torch_dist.broadcast_object_list(values, src=source)
    return values[0]


def agree(fault: Exception | None) -> None:
    """Returns if no rank has a fault; otherwise raises on all, so that none waits for another.

    Called after work that can fail on some ranks alone (a file, a device) and before the next
    collective::

        fault = None
        try:
            open_the_file()
        except Exception as error:
            fault = error
        agree(fault)

    Args:
        fault: what went wrong on this rank, or None.

    Raises:
        ScalepetError: where no fault is of another kind: the type of the lowest rank with one, and
            the faults of all ranks; one that not all ranks share begins with its ranks,
            "rank 1: ...".
        Exception: a rank whose fault is no ``ScalepetError`` keeps its own, with its traceback.
        RankError: on the others, with the faults of all ranks.
    """
    if fault is not None:
        fault = mendable(fault)
    reports = all_gather_objects(_Report.of(fault))
    if not any(report.faults for report in reports):
        return
    if fault is not None and not isinstance(fault, ScalepetError):
        raise fault
    faults = _merged([report.faults for report in reports])
    kinds = [report.kind for report in reports if report.faults]
    first = next(iter(kinds))
    if first is None or None in kinds:
        raise RankError(faults)
    raise first(faults)


def together(work: Callable[[], T], *, has_collectives: bool = False) -> T:
    """What ``work`` returns on this rank; if it fails on any rank, in whatever way, it fails on all
    with one message.

    Args:
        has_collectives: it takes all ranks itself. An exception that is no ``ScalepetError`` may
            have left the others in one of these, where nobody can agree: it is raised at once, for
            ``engine.joined`` to tell them.

    Raises:
        Exception: as ``agree``.
    """
    fault: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as error:
        if has_collectives and not isinstance(error, ScalepetError):
            raise
        fault = error
    agree(fault)
    return result  # type: ignore[no-any-return]


class _Report(NamedTuple):
    """A fault in a form that always pickles; ``kind`` is None for what is not a ScalepetError."""

    kind: type[ScalepetError] | None
    faults: tuple[str, ...]

    @classmethod
    def of(cls, fault: Exception | None) -> _Report:
        if fault is None:
            return cls(None, ())
        return cls(type(fault) if isinstance(fault, ScalepetError) else None, in_words(fault))


def _merged(faults_by_rank: Sequence[tuple[str, ...]]) -> list[str]:
    ranks_of: dict[str, list[int]] = {}
    for one_rank, faults in enumerate(faults_by_rank):
        for fault in dict.fromkeys(faults):
            ranks_of.setdefault(fault, []).append(one_rank)
    return [_named(ranks, len(faults_by_rank)) + fault for fault, ranks in ranks_of.items()]


def _named(ranks: list[int], num_ranks: int) -> str:
    if len(ranks) == num_ranks:
        return ""
    return f"{some_ranks(ranks)}: "


def _has_group() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def _summed(value: Tensor) -> Tensor:
    total = value.detach().clone()
    if not _has_group():
        return total
    # NCCL reduces only what lies on its own device.
    if "nccl" in torch_dist.get_backend():
        total = total.to(torch.device("cuda", torch.cuda.current_device()))
    torch_dist.all_reduce(total)
    return total.to(value.device)
