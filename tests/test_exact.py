"""Numbers of a config are what was written, not the binary fractions beside them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from scalepet import build
from scalepet.config.models import TrainConfig
from scalepet.exact import exactly


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1.1, 110), (0.07, 7), (0.29, 29), (3.0, 300), (0.001, 1), (2.005, 201)]
)
def test_steps_of_parts_of_epochs(epochs: float, steps: int) -> None:
    assert build.num_steps_of(TrainConfig(epochs=epochs), 100) == steps


def test_steps_that_are_given_are_taken() -> None:
    assert build.num_steps_of(TrainConfig(steps=5), 100) == 5


def test_every_hundredth_of_an_epoch_is_as_many_steps() -> None:
    for hundredths in range(1, 1000):
        train = TrainConfig(epochs=float(f"{hundredths / 100:.2f}"))
        assert build.num_steps_of(train, 100) == hundredths


def test_a_warm_up_of_half_a_step_is_rounded_as_it_is_written() -> None:
    train = TrainConfig(steps=100, warmup=0.575, schedule="linear")  # .575 * 100 is below 57.5
    last, first = (build.learning_rate_factor(train, step, num_steps=100) for step in (57, 58))
    assert last < 1 == max(last, first)


def test_a_float_is_its_shortest_form() -> None:
    assert exactly(1.1) == Fraction(11, 10)
    assert exactly(1e-7) == Fraction(1, 10**7)
    assert exactly(3) == 3
