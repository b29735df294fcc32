"""A rank that fails is heard by all others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from running import free_port
from torch.distributed import TCPStore

from scalepet.errors import RankError
from scalepet.launch import alarm
from scalepet.launch.alarm import Alarm

NUM_RANKS = 3


class Listening:
    """The alarms of all ranks, and those that have given up."""

    def __init__(self, port: int) -> None:
        self.store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        self.given_up: list[tuple[int, tuple[str, ...], int]] = []
        self.alarms = [self._listen(rank, port) for rank in range(NUM_RANKS)]

    def _listen(self, rank: int, port: int) -> Alarm:
        def give_up(failure: RankError) -> None:
            self.given_up.append((rank, failure.faults, failure.code))

        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        of_rank = {"RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS)}
        return Alarm(give_up, environment={**address, **of_rank})

    def end(self) -> None:
        for one in self.alarms:
            one.close()


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    monkeypatch.setattr(alarm, "HEARD_SECONDS", 2.0)
    monkeypatch.setattr(alarm, "GRACE_SECONDS", 0.5)
    found = Listening(free_port())
    yield found
    found.end()


def test_all_others_have_heard_when_one_has_told(listening: Listening) -> None:
    first, failing, last = listening.alarms
    failing.ring(RankError(["rank 1: a", "rank 1: b"], code=2))
    for other in (first, last):
        assert other.heard is not None
        assert (other.heard.faults, other.heard.code) == (("rank 1: a", "rank 1: b"), 2)
    assert failing.heard is None


def test_who_cannot_end_by_itself_is_ended(listening: Listening) -> None:
    first, failing, last = listening.alarms
    failing.ring(RankError("rank 1: no luck"))
    first.ring(RankError("rank 0: neither"))  # it does
    deadline = time.monotonic() + 10
    while not listening.given_up and time.monotonic() < deadline:
        time.sleep(0.02)
    assert listening.given_up == [(2, ("rank 1: no luck",), 1)]
    assert last.heard is not None


def test_ranks_that_fail_at_once_do_not_wait_for_each_other(listening: Listening) -> None:
    started = time.monotonic()
    threads = [
        threading.Thread(target=one.ring, args=(RankError(f"rank {rank}: too"),))
        for rank, one in enumerate(listening.alarms)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < alarm.HEARD_SECONDS
    assert not listening.given_up


def test_a_run_that_goes_well_ends_in_silence(
    listening: Listening, capfd: pytest.CaptureFixture[str]
) -> None:
    listening.end()
    del listening.store
    time.sleep(1.5 * alarm.GRACE_SECONDS)
    assert not listening.given_up and [one.heard for one in listening.alarms] == [None] * 3
    assert capfd.readouterr().err == ""
    listening.alarms.clear()
