"""Ranks come together before their group is formed, and leave together.

One that cannot take part comes, too, and says why: so no other waits for it, all end with the same
words, and rank 0 says them. This process comes once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import NamedTuple

from scalepet.errors import LaunchError, some_ranks
from scalepet.launch.facts import named
from scalepet.launch.meeting import Meeting
from scalepet.launch.place import is_placed

PATIENCE_SECONDS = 3.0
"""For ranks that have not come when one has said that it cannot take part: they may have ended."""

_meeting: Meeting | None = None
"""Where this process has met the others, kept while they work: rank 0 has its store."""

_found: Found | None = None
"""What came out of it."""


class Arrival(NamedTuple):
    """What a rank brings; plain values, to be sent as JSON.

    Attributes:
        device: the type that it would work on; "" where it cannot take part.
        gpu: its GPU, told from all others of the world; "" where it has none.
        faults: why it cannot.
    """

    host: str
    device: str
    gpu: str
    faults: list[str]


class Fault(NamedTuple):
    """Of some ranks, whom ``text`` names, unless all that have come have it."""

    words: str
    text: str


class Found(NamedTuple):
    """By rank 0, for all.

    Attributes:
        ranks: those that have come.
    """

    ranks: list[int]
    faults: list[Fault]


def come(*, device: str, gpu: str = "", faults: Sequence[str] = (), timeout_seconds: float) -> None:
    """Returns once all ranks have come and can work together; at once where they have before.

    Args:
        device, gpu, faults: of this rank, as in ``Arrival``.

    Raises:
        LaunchError: a rank cannot take part, two share a GPU, or devices are of several types; with
            the faults of all, on every rank alike. Or the others have not come in time.
    """
    if _meeting is not None:
        return
    found = _come(device, gpu, faults, timeout_seconds)
    if found.faults:
        raise LaunchError([fault.text for fault in found.faults])


def refuse(faults: Sequence[str], *, timeout_seconds: float) -> list[str]:
    """Tell the others that this rank cannot take part, where it has not come to them before.

    Returns:
        What other ranks have besides, if they were met.
    """
    if _found is not None or not is_placed():
        return []
    try:
        found = _come("", "", faults, timeout_seconds)
    except LaunchError:
        return []
    return [fault.text for fault in found.faults if fault.words not in faults]


def leave(*, timeout_seconds: float) -> bool:
    """Whether all that have come end together with this rank; True at once where it is alone.

    A process that ends while others still need it breaks what they do: NCCL then aborts them, and
    a launcher kills them. Rank 0, who keeps the store, leaves last.
    """
    if _meeting is None or _found is None:
        return not is_placed()
    own, store = _meeting.rank, _meeting.store
    others = [rank for rank in _found.ranks if rank != 0]
    try:
        if own != 0:
            store.set(f"leaving/{own}", "")
            all_leave = _meeting.is_there(["all leave"], seconds=timeout_seconds)
            store.set(f"left/{own}", "")
            return all_leave
        all_leave = _meeting.is_there(
            [f"leaving/{rank}" for rank in others], seconds=timeout_seconds
        )
        if all_leave:
            store.set("all leave", "")
            _meeting.is_there([f"left/{rank}" for rank in others], seconds=timeout_seconds)
    except (LaunchError, RuntimeError):
        return own != 0  # rank 0 has ended before
    return all_leave


def forget() -> None:
    """Give the store back, once the group that was formed there is gone."""
    global _meeting
    _meeting = None


def _come(device: str, gpu: str, faults: Sequence[str], timeout_seconds: float) -> Found:
    global _meeting, _found
    meeting = Meeting(timeout_seconds=timeout_seconds)
    own = Arrival(meeting.host, device, gpu, list(faults))
    meeting.store.set(f"arrival/{meeting.rank}", json.dumps(own))
    if faults:
        meeting.store.set("refused", "")
    if meeting.rank == 0:
        arrivals = _arrivals(meeting)
        found = Found([*arrivals], _faults_of(arrivals))
        meeting.store.set("found", json.dumps(found))
    elif not meeting.is_there(["found"], seconds=meeting.seconds_left()):
        raise LaunchError(meeting.who_lacks(["found"], "arrival"))
    ranks, texts = json.loads(meeting.store.get("found"))
    _meeting, _found = meeting, Found(ranks, [Fault(*text) for text in texts])
    return _found


def _arrivals(meeting: Meeting) -> dict[int, Arrival]:
    """Of all ranks, or of those that have come a little after one that cannot take part.

    Raises:
        LaunchError: some have not come in time.
    """
    keys = [f"arrival/{rank}" for rank in range(meeting.world_size)]
    deadline = time.monotonic() + meeting.seconds_left()
    is_refused = False
    while not meeting.is_there(keys, seconds=1.0):
        if not is_refused and meeting.store.check(["refused"]):
            is_refused = True
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
        if time.monotonic() > deadline:
            break
    there = [rank for rank, key in enumerate(keys) if meeting.store.check([key])]
    if len(there) < len(keys) and not is_refused:
        raise LaunchError(meeting.who_lacks(keys, "arrival"))
    return {rank: Arrival(*json.loads(meeting.store.get(keys[rank]))) for rank in there}


def _faults_of(arrivals: dict[int, Arrival]) -> list[Fault]:
    ranks_of: dict[str, list[int]] = {}
    for rank, arrival in arrivals.items():
        for words in dict.fromkeys(arrival.faults):
            ranks_of.setdefault(words, []).append(rank)
    if ranks_of:
        return [Fault(words, _text(words, ranks, arrivals)) for words, ranks in ranks_of.items()]
    of_all = [*_unlike_devices(arrivals), *_shared_gpus(arrivals)]
    return [Fault(fault, fault) for fault in of_all]


def _unlike_devices(arrivals: dict[int, Arrival]) -> list[str]:
    first_of = {arrival.device: rank for rank, arrival in reversed(arrivals.items())}
    if len(first_of) == 1:
        return []
    each = " and ".join(
        f"rank {rank} on {arrivals[rank].host} has {device}" for device, rank in first_of.items()
    )
    return [f"{each}; allowed: one type of device on all ranks"]


def _shared_gpus(arrivals: dict[int, Arrival]) -> list[str]:
    ranks_of: dict[str, list[int]] = {}
    for rank, arrival in arrivals.items():
        if arrival.gpu:
            ranks_of.setdefault(arrival.gpu, []).append(rank)
    return [
        f"{some_ranks(ranks)} on {arrivals[ranks[0]].host} share the GPU {gpu}; allowed: one"
        " process a GPU (LOCAL_RANK, CUDA_VISIBLE_DEVICES)"
        for gpu, ranks in ranks_of.items()
        if len(ranks) > 1
    ]


def _text(words: str, ranks: list[int], arrivals: dict[int, Arrival]) -> str:
    if len(ranks) == len(arrivals):
        return words
    hosts = dict.fromkeys(arrivals[rank].host for rank in ranks)
    return f"{some_ranks(ranks)} on {named([*hosts])}: {words}"
