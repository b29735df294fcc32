"""A request to stop: at once where nothing is lost, else when it is looked at."""

from __future__ import annotations

import os
import signal

import pytest

from scalepet.signals import STOP_SIGNALS, Stopped, StopRequest


@pytest.fixture(autouse=True)
def bystander():
    """Handlers that were there before, and are so afterwards."""
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda n, _: heard.append(n))
        for n in STOP_SIGNALS
        for number in (n,)
    }
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_with_nothing_to_save_it_stops_at_once(number, bystander):
    stop = StopRequest()
    with pytest.raises(Stopped, match=f"stopped by {number.name}, with nothing to save"), stop:
        send(number)
    assert stop.is_made
    send(number)
    assert bystander == [number]


def test_it_waits_where_it_is_postponed_however_often_it_comes(bystander):
    stop = StopRequest()
    with stop, stop.postponed():
        assert not stop.is_made
        for number in STOP_SIGNALS * 2:
            send(number)
            assert stop.is_made
    assert bystander == []


def test_after_the_work_it_stops_at_once_again():
    stop = StopRequest()
    with pytest.raises(Stopped), stop:
        with stop.postponed():
            pass
        send(signal.SIGTERM)


def test_a_second_one_does_not_disturb_the_first():
    with pytest.raises(Stopped), StopRequest():
        try:
            send(signal.SIGUSR1)
        finally:
            send(signal.SIGTERM)


def test_what_guards_against_failures_lets_it_pass():
    with pytest.raises(Stopped), StopRequest():
        try:
            send(signal.SIGTERM)
        except Exception:
            pytest.fail("it is no failure")


def test_a_request_that_nobody_listens_for_is_never_made(bystander):
    stop = StopRequest()
    send(signal.SIGUSR1)
    assert not stop.is_made
    assert bystander == [signal.SIGUSR1]
