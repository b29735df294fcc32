"""Ranks that are killed without warning, again and again: nothing that was saved is lost, and what
comes out is what an unbroken run gives, to the last bit.

In short: four moments. ``bash tests/run.sh -m slow tests/faults -s``: fifty.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from faults.launched import STRUCK
from running import check_same

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

END_SECONDS = 60.0
"""Within so many seconds after a rank was killed, all have ended."""

PLACES = ("step", "write", "tear", "batch", "load")


def kill_in_turn(
    struck: Any, config: Path, whole: Any, *, chance: random.Random, number: int, **options: Any
) -> float:
    """Kill so many times, each time a bit further on.

    Returns:
        The most seconds until the other rank had ended, too.
    """
    slowest = 0.0
    for index in range(number):
        place = PLACES[index % len(PLACES)]
        rank = 0 if place in ("write", "tear") else chance.randrange(2)
        most = max(1, whole.passed[str(rank)][place] // (number + 1))
        ended = struck(f"kill@{place}:{chance.randint(1, most)}@{rank}", config, **options)
        assert f"struck kill {rank}" in ended.said, ended.said
        assert not {0, 2} & set(ended.codes), ended.said
        assert ended.end_seconds < END_SECONDS, f"{ended.end_seconds:.1f} s to end"
        slowest = max(slowest, ended.end_seconds)
    return slowest


def test_killed_four_times_and_nothing_is_lost(struck, whole, write_broken, tmp_path):
    """No launcher ends the rank that is left: it notices by itself."""
    assert all(whole.passed["0"][place] > 0 for place in PLACES), whole.passed
    config = write_broken(tmp_path / "run")
    seconds = kill_in_turn(struck, config, whole, chance=random.Random(1), number=4)
    assert struck("none@", config).codes == [0, 0]
    check_same(whole.folder, tmp_path / "run")
    print(f"cases tried: 4, lost: 0; all ranks ended within {seconds:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_fifty_times_and_nothing_is_lost(struck, whole, write_broken, launch_two, tmp_path):
    """In chains of five; every other one under DeepSpeed's launcher, and its last kill at a moment
    of the clock, where it had not ended by then. Without a launcher, nobody misses a rank that was
    killed before they met.
    """
    tried, lost, slowest = 0, [], 0.0
    for chain in range(10):
        chance = random.Random(100 + chain)
        config, options, number = write_broken(tmp_path / f"run-{chain}"), {}, 5
        if chain % 2:
            options, number = {"launcher": launch_two(STRUCK)}, 4
        seconds = kill_in_turn(struck, config, whole, chance=chance, number=number, **options)
        slowest, tried = max(slowest, seconds), tried + number
        if chain % 2:
            moment = (chance.uniform(1.0, whole.seconds), chance.randrange(2))
            ended = struck("none@", config, kill_after=moment, **options)
            slowest, tried = max(slowest, ended.end_seconds), tried + (ended.codes != [0])
        done = struck("none@", config, **options)
        assert set(done.codes) == {0}, done.said
        try:
            check_same(whole.folder, tmp_path / f"run-{chain}")
        except AssertionError as error:
            lost.append(f"chain {chain}: {error}")
        print(
            f"tried: {tried}, lost: {len(lost)}; the slowest end after {slowest:.1f} s", flush=True
        )
    assert not lost
