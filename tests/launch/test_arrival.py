"""Ranks that come together, and what one hears of another. This file is also the rank.

As a script it plays every scene on two ranks, one after the other, each with a port of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scalepet.errors import LaunchError
from scalepet.launch import arrival
from scalepet.launch.arrival import Arrival

HOST = socket.gethostname()
NO_GPU = "local rank 1 has no GPU"
CPU, FIRST, SECOND = (
    {"device": "cpu"},
    {"device": "cuda", "gpu": "a"},
    {"device": "cuda", "gpu": "b"},
)

# what each of two ranks does -> what it hears, and whether both end together
SCENES: dict[str, tuple[list[Any], list[Any]]] = {
    "all is well": ([CPU, CPU], [None, None]),
    "a GPU each": ([FIRST, SECOND], [None, None]),
    "one cannot": (
        [FIRST, {"device": "cpu", "faults": [NO_GPU]}],
        [[f"rank 1 on {HOST}: {NO_GPU}"]] * 2,
    ),
    "neither can": (
        [{"device": "cpu", "faults": ["no driver"]}] * 2,
        [["no driver"]] * 2,
    ),
    "devices differ": (
        [CPU, FIRST],
        [[f"rank 1 on {HOST} has cuda and rank 0 on {HOST} has cpu; allowed: one type of device"]]
        * 2,
    ),
    "a GPU is shared": (
        [FIRST, FIRST],
        [[f"ranks 0, 1 on {HOST} share the GPU a; allowed: one process a GPU"]] * 2,
    ),
    "one has refused before": ([CPU, ["no file"]], [[f"rank 1 on {HOST}: no file"], []]),
    "the first one has refused before": ([["no file"], CPU], [[], [f"rank 0 on {HOST}: no file"]]),
    "both have refused alike": ([["no file"], ["no file"]], [[], []]),
    "both have refused": (
        [["no file"], ["no folder"]],
        [[f"rank 1 on {HOST}: no folder"], [f"rank 0 on {HOST}: no file"]],
    ),
}


def play(act: dict[str, Any] | list[str]) -> list[str] | None:
    """What this rank hears."""
    if isinstance(act, list):
        return arrival.refuse(act, timeout_seconds=30)
    try:
        arrival.come(timeout_seconds=30, **act)
    except LaunchError as error:
        return [*error.faults]
    return None


def main(ports: list[int]) -> None:
    rank = int(os.environ["RANK"])
    for port, (acts, _) in zip(ports, SCENES.values(), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        importlib.reload(arrival)  # a process comes once
        heard = play(acts[rank])
        print(json.dumps([heard, arrival.leave(timeout_seconds=30)]), flush=True)
        arrival.forget()


@pytest.mark.distributed
def test_what_ranks_hear_of_each_other(run_ranks: Any) -> None:
    from running import free_port  # not there where this file is a rank

    ports = [free_port() for _ in SCENES]
    outputs = run_ranks(Path(__file__), ports, num_ranks=2, timeout_seconds=100)
    for name, *lines in zip(SCENES, *(output.splitlines() for output in outputs), strict=True):
        for line, expected in zip(lines, SCENES[name][1], strict=True):
            heard, leave_together = json.loads(line)
            assert leave_together, name
            if expected:
                assert [h[: len(e)] for h, e in zip(heard, expected, strict=True)] == expected, name
            else:
                assert heard == expected, name


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Rank 1 of two, whose other one never comes."""
    from running import free_port

    place = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {"RANK": "1", **place, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(arrival, "_meeting", None)
    monkeypatch.setattr(arrival, "_found", None)
    return monkeypatch


@pytest.mark.parametrize("rank", ["0", "1"])
def test_nobody_else_comes(rank: str, alone: pytest.MonkeyPatch) -> None:
    alone.setenv("RANK", rank)
    alone.setattr(arrival, "PATIENCE_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(LaunchError, match=f"rank {1 - int(rank)}"):
        arrival.come(device="cpu", timeout_seconds=0.5)
    assert arrival.refuse(["no file"], timeout_seconds=0.5) == []
    assert arrival.leave(timeout_seconds=0.5) is (rank == "0")
    assert time.monotonic() - started < 10


def test_a_process_without_a_launcher_is_alone(alone: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        alone.delenv(name)
    assert arrival.refuse(["no file"], timeout_seconds=30) == []
    assert arrival.leave(timeout_seconds=30)


def test_many_ranks_are_named_with_their_hosts() -> None:
    arrivals = {
        rank: Arrival(f"node{rank // 2}", "cuda", "", ["old driver"] if rank in (2, 3, 5) else [])
        for rank in range(6)
    }
    [fault] = arrival._faults_of(arrivals)
    assert fault == ("old driver", "ranks 2, 3, 5 on node1, node2: old driver")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
