from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scalepet.errors import ConfigError
from scalepet.experiments import compare_table, read_run
from scalepet.experiments.compare import _duration, _memory

MakeRun = Callable[..., Path]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_one_row_a_run_in_the_order_given(make_run: MakeRun) -> None:
    runs = [
        read_run(make_run("b", name="masked [20k]", score=0.7261)),
        read_run(make_run("a", score=0.5, method="head", majority=None)),
    ]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(compare_table(runs, metric="eval/accuracy"))
    lines = capture.get().splitlines()
    assert "accuracy" in lines[1]
    assert [cells(line) for line in lines[3:5]] == [
        ["masked [20k]", "apet", "27,700", "0.726", "0.250", "20.0s", "-"],
        ["a", "head", "27,700", "0.500", "-", "20.0s", "-"],
    ]


def test_an_unknown_metric_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="rouge"):
        compare_table([read_run(make_run("a"))], metric="eval/rouge")


def test_costs_are_readable() -> None:
    seconds = (None, 59.94, 60, 131, 3599.6, 90_061)
    assert [_duration(s) for s in seconds] == ["-", "59.9s", "1m00s", "2m11s", "1h00m", "25h01m"]
    num_bytes = (None, 5 * 2**20, 2**30, int(78.25 * 2**30))
    assert [_memory(b) for b in num_bytes] == ["-", "5 MiB", "1.0 GiB", "78.2 GiB"]
