"""Learning rates over a run: hand-computed values, and what holds for every schedule."""

from __future__ import annotations

import itertools

import pytest

from scalepet.engine import SCHEDULES, Schedule, learning_rate_factor

RUNS = list(itertools.product([1, 2, 7, 100], [0, 1, 3, 100, 130]))
"""(steps, warm-up steps); a warm-up may be as long as the run, or longer."""


def factors(schedule: Schedule, num_steps: int, num_warmup_steps: int = 0) -> list[float]:
    return [
        learning_rate_factor(schedule, step, num_steps=num_steps, num_warmup_steps=num_warmup_steps)
        for step in range(num_steps)
    ]


def test_there_are_three() -> None:
    assert SCHEDULES == ("constant", "linear", "cosine")


@pytest.mark.parametrize(
    ("schedule", "num_warmup_steps", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        # cos of 0, 30, 60, 90, 120 and 150 degrees
        ("cosine", 0, [1, (2 + 3**0.5) / 4, 3 / 4, 1 / 2, 1 / 4, (2 - 3**0.5) / 4]),
        ("cosine", 3, [1 / 4, 2 / 4, 3 / 4, 1, 3 / 4, 1 / 4]),
        ("linear", 6, [1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7]),
    ],
)
def test_six_steps_by_hand(
    schedule: Schedule, num_warmup_steps: int, expected: list[float]
) -> None:
    assert factors(schedule, 6, num_warmup_steps) == pytest.approx(expected, abs=1e-12)


def test_there_is_no_warm_up_unless_asked_for() -> None:
    assert learning_rate_factor("linear", 0, num_steps=10) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_steps", "num_warmup_steps"), RUNS)
class TestEverySchedule:
    def test_stays_in_range_and_learns_in_every_step(
        self, schedule: Schedule, num_steps: int, num_warmup_steps: int
    ) -> None:
        found = factors(schedule, num_steps, num_warmup_steps)
        assert len(found) == num_steps
        assert all(0 < factor <= 1 for factor in found)

    def test_warm_up_rises_in_equal_steps_and_reaches_1(
        self, schedule: Schedule, num_steps: int, num_warmup_steps: int
    ) -> None:
        rising = [
            learning_rate_factor(
                schedule, step, num_steps=num_steps, num_warmup_steps=num_warmup_steps
            )
            for step in range(num_warmup_steps + 1)
        ]
        expected = [(step + 1) / (num_warmup_steps + 1) for step in range(num_warmup_steps + 1)]
        assert rising == pytest.approx(expected)
        assert rising[-1] == 1

    def test_never_rises_after_warm_up(
        self, schedule: Schedule, num_steps: int, num_warmup_steps: int
    ) -> None:
        falling = factors(schedule, num_steps, num_warmup_steps)[num_warmup_steps:]
        assert falling == sorted(falling, reverse=True)

    def test_its_end(self, schedule: Schedule, num_steps: int, num_warmup_steps: int) -> None:
        for step in (max(num_steps, num_warmup_steps + 1), 10 * (num_steps + num_warmup_steps)):
            factor = learning_rate_factor(
                schedule, step, num_steps=num_steps, num_warmup_steps=num_warmup_steps
            )
            assert factor >= 0
            assert factor == pytest.approx(1 if schedule == "constant" else 0, abs=1e-12)
