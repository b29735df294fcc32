"""A rank that fails wakes the others, which may wait for it in a collective for half an hour."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

from torch.distributed import TCPStore

from scalepet.errors import RankError

HEARD_SECONDS = 5.0
"""So long one that fails stays until all others have heard of it; it may keep their store."""

GRACE_SECONDS = 10.0
"""For what a rank closes once it has heard: most see a broken connection and end by themselves."""

_FOREVER = timedelta(days=20)
"""In milliseconds it must fit into 31 bits."""


class Alarm:
    """Listens, in a thread, for the failure of another rank. Not a collective, nor is any method.

    All ranks meet at the store that the run's group was formed at, each over a connection of its
    own.

    Args:
        give_up: ends this process; called where it still waits ``GRACE_SECONDS`` after it has
            heard, since nothing else wakes a rank that waits for a GPU or for a new group.
        environment: as launchers make it.

    Attributes:
        heard: what the other rank has said; None so far.
    """

    def __init__(
        self,
        give_up: Callable[[RankError], None],
        *,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.heard: RankError | None = None
        self._give_up = give_up
        self._environment = dict(environment)
        self._rank = int(environment["RANK"])
        self._world_size = int(environment["WORLD_SIZE"])
        self._is_off = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="alarm", daemon=True)
        self._thread.start()

    def ring(self, failure: RankError) -> None:
        """Tell all others, and listen no more. Returns once they have heard it.

        Nothing is told where another rank was faster: its store may have gone by now.
        """
        self._is_off.set()
        if self.heard is not None:
            return
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        with contextlib.suppress(RuntimeError):  # rank 0, which keeps the store, has ended
            store = self._store(HEARD_SECONDS)
            for rank in (*others, self._rank):
                store.compare_set(_key(rank), "", failure.as_text())
            store.wait([f"{_key(rank)}/heard" for rank in others])

    def close(self) -> None:
        """Listen no more; the run has gone well."""
        self._is_off.set()
        with contextlib.suppress(RuntimeError):
            self._store(HEARD_SECONDS).compare_set(_key(self._rank), "", _NOTHING)
        self._thread.join(HEARD_SECONDS)

    def _listen(self) -> None:
        try:
            store, key = self._store(_FOREVER.total_seconds()), _key(self._rank)
            store.wait([key], _FOREVER)
            text = store.get(key).decode()
            if text != _NOTHING and not self._is_off.is_set():  # else it is this rank's own
                self.heard = RankError.of_text(text)
            store.set(f"{key}/heard", "")
        except RuntimeError:  # the store has gone: whoever keeps it has ended
            return
        if self.heard is not None and not self._is_off.wait(GRACE_SECONDS):
            self._give_up(self.heard)

    def _store(self, seconds: float) -> TCPStore:
        return TCPStore(
            self._environment["MASTER_ADDR"],
            int(self._environment["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )


_NOTHING = "-"


def _key(rank: int) -> str:
    return f"scalepet/alarm/{rank}"
