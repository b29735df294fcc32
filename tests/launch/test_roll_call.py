"""Who is missing after a collective has broken."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from running import free_port
from torch.distributed import TCPStore

from scalepet.launch import roll_call


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 0.5)


def call(rank: int, *, port: int, num_ranks: int = 3) -> list[int]:
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return roll_call.missing_ranks(environment=environment)


def answers(*ranks: int) -> list[list[int]]:
    port = free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(len(ranks)) as threads:
        found = list(threads.map(lambda rank: call(rank, port=port), ranks))
    del store
    return sorted(found)


def test_one_of_those_that_failed_is_told_who_is_missing() -> None:
    assert answers(0, 2) == [[], [1]]
    assert answers(1) == [[0, 2]]


def test_nobody_waits_where_all_have_failed() -> None:
    started = time.monotonic()
    assert answers(0, 1, 2) == [[], [], []]
    assert time.monotonic() - started < roll_call.ANSWER_SECONDS


def test_a_store_that_is_gone_was_kept_by_rank_0() -> None:
    assert call(1, port=free_port()) == [0]


def test_a_store_that_is_silent_is_kept_by_rank_0() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert call(1, port=silent.getsockname()[1]) == [0]
    assert time.monotonic() - started < 4 * roll_call.ANSWER_SECONDS
