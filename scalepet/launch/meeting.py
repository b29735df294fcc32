"""Ranks exchanging plain values before any process group stands."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import HashStore, Store, TCPStore

from scalepet.errors import LaunchError, some_ranks

SET_BY_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
        there = [name for name in SET_BY_LAUNCHERS if name in environment]
        lacking = [name for name in SET_BY_LAUNCHERS if name not in environment]
        if there and lacking:
            raise LaunchError(f"the environment has {', '.join(there)}, not {', '.join(lacking)}")
        self.rank = int(environment.get("RANK", "0"))
        self.local_rank = int(environment.get("LOCAL_RANK", "0"))
        self.world_size = int(environment.get("WORLD_SIZE", "1"))
        self.host = socket.gethostname()
        self.store = self._meet(environment) if there else HashStore()

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
            raise LaunchError(self._who_lacks(keys, name)) from error

    def _meet(self, environment: Mapping[str, str]) -> Store:
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        try:
            return TCPStore(
                address,
                port,
                is_master=self.rank == 0,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.seconds_left()),
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            if self.rank == 0:
                raise LaunchError(
                    f"rank 0 cannot listen at port {port} of {self.host}: {reason};"
                    " allowed: a free port (MASTER_PORT, deepspeed --master_port)"
                ) from error
            raise LaunchError(
                f"rank {self.rank} on {self.host} cannot reach rank 0 at {address}:{port} within"
                f" {self._timeout_seconds:g} s: {reason}"
            ) from error

    def _who_lacks(self, keys: list[str], name: str) -> str:
        try:
            lacking = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:
            return f"rank {self.rank} on {self.host} has lost rank 0 before it knew all {name}"
        return (
            f"{some_ranks(lacking)} of {self.world_size} did not come within"
            f" {self._timeout_seconds:g} s ({name}); what the launcher printed before may say why"
        )
