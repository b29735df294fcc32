"""Ranks exchanging plain values before any process group stands."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import HashStore, PrefixStore, Store

from scalepet.errors import LaunchError, some_ranks
from scalepet.launch.loopback import open_store
from scalepet.launch.place import Place, own_place

FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.01, 0.5
"""Between two looks: short where all come at once, long where they wait for minutes."""


class Meeting:
    """All ranks of a launch, at the port where a run would meet.

    A process that no launcher has started meets itself.

    Args:
        timeout_seconds: when the meeting is over, from now; whoever waits then stops.

    Raises:
        LaunchError: the environment of the launcher is not whole; the port is taken (rank 0), or
            nobody is reached there in time (the others).
    """

    def __init__(
        self, *, timeout_seconds: float, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        self._timeout_seconds = timeout_seconds
        place = own_place(environment)
        self.rank = place.rank if place else 0
        self.local_rank = place.local_rank if place else 0
        self.world_size = place.world_size if place else 1
        self.host = socket.gethostname()
        self.store = self._meet(place, environment) if place else HashStore()

    def seconds_left(self) -> float:
        """At least one: less is no time to wait for anybody."""
        return max(1.0, self._deadline - time.monotonic())

    def gather(self, name: str, value: Any) -> list[Any]:
        """Every rank's value in the order of ranks, on every rank. Values must be JSON.

        Raises:
            LaunchError: some ranks have not come here in time; it names them.
        """
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], json.dumps(value))
        self._wait(keys, name)
        return [json.loads(self.store.get(key)) for key in keys]

    def is_there(self, keys: Sequence[str], *, seconds: float) -> bool:
        """Whether all these keys are set within so many seconds.

        Unlike a wait of the store it hears signals, and says nothing when the time is over.

        Raises:
            LaunchError: rank 0, who keeps them, is gone.
        """
        deadline, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
        try:
            while not self.store.check(list(keys)):
                if time.monotonic() > deadline:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
        except RuntimeError as error:
            raise LaunchError("has lost rank 0") from error
        return True

    def leave(self) -> None:
        """Rank 0, who keeps the values, leaves last.

        Raises:
            LaunchError: some ranks are still there when the meeting is over.
        """
        keys = [f"left/{rank}" for rank in range(self.world_size)]
        self.store.set(keys[self.rank], "")
        if self.rank == 0:
            self._wait(keys, "the end")

    def _wait(self, keys: list[str], name: str) -> None:
        try:
            self.store.wait(keys, timedelta(seconds=self.seconds_left()))
        except RuntimeError as error:
            raise LaunchError(self.who_lacks(keys, name)) from error

    def _meet(self, place: Place, environment: Mapping[str, str]) -> Store:
        """At a store which the group that is formed later takes, too."""
        # Where torchrun's agent keeps the store, rank 0 is a guest like the others.
        is_agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        is_ours = place.rank == 0 and not is_agents
        try:
            if not is_ours:
                self._reach(place)
            store = open_store(
                place.address,
                place.port,
                is_master=is_ours,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.seconds_left()),
                multi_tenant=True,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            if is_ours:
                raise LaunchError(
                    f"rank 0 cannot listen at port {place.port} of {self.host}: {reason};"
                    " allowed: a free port (MASTER_PORT, deepspeed --master_port)"
                ) from error
            raise LaunchError(
                f"cannot reach rank 0 at {place.address}:{place.port} within"
                f" {self._timeout_seconds:g} s: {reason}"
            ) from error
        # A start after a failure finds what the one before has left with the agent.
        return PrefixStore(f"scalepet/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def _reach(self, place: Place) -> None:
        """Returns once somebody listens there; torch's own wait for that is loud and deaf.

        Raises:
            OSError: nobody does when the meeting is over.
        """
        while True:
            try:
                socket.create_connection((place.address, place.port), self.seconds_left()).close()
                return
            except OSError:
                if time.monotonic() > self._deadline:
                    raise
                time.sleep(LAST_PAUSE_SECONDS / 5)

    def who_lacks(self, keys: list[str], name: str) -> str:
        """In words, who has not set its key; keys are in the order of ranks."""
        try:
            lacking = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:
            return f"has lost rank 0 before it knew all {name}"
        return (
            f"{some_ranks(lacking)} of {self.world_size} did not come within"
            f" {self._timeout_seconds:g} s ({name}); what the launcher printed before may say why"
        )
