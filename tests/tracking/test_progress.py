from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from scalepet.tracking import progress, track_steps
from scalepet.tracking.progress import format_rate, format_values


def a_console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=is_terminal, width=120), screen


def describe(step: int) -> dict[str, float]:
    return {"loss": step / 100, "tokens_per_second": 1234.5}


def test_plain_lines_come_every_tenth() -> None:
    console, screen = a_console(is_terminal=False)
    steps = track_steps(range(1, 101), total=100, describe=describe, console=console)
    assert list(steps) == list(range(1, 101))
    lines = screen.getvalue().splitlines()
    assert [re.match(r"step (\d+)/100  ", line)[1] for line in lines] == [  # type: ignore[index]
        str(step) for step in range(10, 101, 10)
    ]
    assert lines[2].endswith("  loss 0.3000  1,234 tokens/s")
    assert re.search(r"  [\d.]+ steps/s  ", lines[2])


def test_a_resumed_run_counts_on() -> None:
    console, screen = a_console(is_terminal=False)
    list(track_steps(range(96, 101), total=100, start=95, console=console))
    assert [line.split()[1] for line in screen.getvalue().splitlines()] == ["100/100"]


def test_a_short_run_shows_every_step() -> None:
    console, screen = a_console(is_terminal=False)
    list(track_steps(range(3), total=3, console=console))
    assert len(screen.getvalue().splitlines()) == 3


def test_a_slow_run_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    console, screen = a_console(is_terminal=False)
    list(track_steps(range(5), total=10_000, console=console))
    assert len(screen.getvalue().splitlines()) == 5


def test_a_terminal_gets_a_bar() -> None:
    console, screen = a_console(is_terminal=True)
    assert list(track_steps(range(4), total=4, describe=describe, console=console)) == [0, 1, 2, 3]
    assert "4/4" in screen.getvalue() and "tokens/s" in screen.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_step_is_described_after_it_was_worked_on(is_terminal: bool) -> None:
    console, screen = a_console(is_terminal=is_terminal)
    logged: dict[str, float] = {}
    for step in track_steps(range(1), total=1, describe=lambda _: logged, console=console):
        logged["loss"] = step + 0.5
    assert "loss 0.5000" in screen.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_leaving_early_closes_the_source(is_terminal: bool) -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            closed.append(True)

    console, _ = a_console(is_terminal=is_terminal)
    for _ in track_steps(source(), total=10, console=console):
        break
    assert closed == [True]


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: int) -> dict[str, float]:
        raise AssertionError("described on a silent rank")

    assert list(track_steps(range(5), total=5, describe=refuse, shown=False)) == list(range(5))
    assert capsys.readouterr().out == ""


def test_stdout_is_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    list(track_steps(range(2), total=2))
    assert "step 2/2" in capsys.readouterr().out


def test_numbers_are_readable() -> None:
    assert format_values({"loss": 0.0, "lr": 3e-5, "big": 2.5e7}) == (
        "loss 0.0000  lr 3.00e-05  big 2.50e+07"
    )
    assert format_rate(12.34) == "12.3 steps/s"
    assert format_rate(0.25) == "4.0 s/step"
