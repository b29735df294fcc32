"""Who is missing, asked by the ranks that a broken collective has let go."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import TCPStore

ANSWER_SECONDS = 5.0
"""Ranks that wait in the same collective give up within so many seconds of each other."""


def missing_ranks(*, environment: Mapping[str, str] = os.environ) -> list[int]:
    """Ranks that do not answer here: they have ended, or hang where nothing wakes them.

    Every rank calls this once it has failed in a collective, and they meet at the store that the
    run's group was formed at. The first one to come is told; the others wait until it knows, since
    a launcher may kill all once one has ended, and get nothing.

    Returns:
        Ranks in their order; rank 0 where the store, which it keeps, does not answer.
    """
    answer: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    # A store whose process is stopped takes the connection and then never says a word.
    threading.Thread(target=lambda: answer.put(_call_all(environment)), daemon=True).start()
    try:
        return answer.get(timeout=3 * ANSWER_SECONDS)
    except queue.Empty:
        return [0]


def _call_all(environment: Mapping[str, str]) -> list[int]:
    seconds = timedelta(seconds=ANSWER_SECONDS)
    keys = [f"scalepet/failed/{rank}" for rank in range(int(environment["WORLD_SIZE"]))]
    try:
        store = TCPStore(
            environment["MASTER_ADDR"],
            int(environment["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=seconds,
        )
        store.set(keys[int(environment["RANK"])], "")
        is_first = store.add("scalepet/failures", 1) == 1
    except RuntimeError:
        return [0]
    missing = _missing(store, keys, seconds) if is_first else []
    _tell(store, seconds, is_first=is_first)
    return missing


def _missing(store: TCPStore, keys: list[str], seconds: timedelta) -> list[int]:
    try:
        store.wait(keys, seconds)
    except RuntimeError:
        try:
            return [rank for rank, key in enumerate(keys) if not store.check([key])]
        except RuntimeError:
            return [0]
    return []


def _tell(store: TCPStore, seconds: timedelta, *, is_first: bool) -> None:
    try:
        if is_first:
            store.set("scalepet/told", "")
        else:
            store.wait(["scalepet/told"], 2 * seconds)
    except RuntimeError:
        pass
