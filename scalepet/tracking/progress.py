"""How far a run is, for the person who watches it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
Describe = Callable[[T], Mapping[str, float]]

NUM_PLAIN_LINES = 10
PLAIN_LINE_SECONDS = 300.0  # in a log file a long run shows that it lives
REFRESH_SECONDS = 0.5  # describing a step may copy its loss from a device


def track_steps(
    steps: Iterable[T],
    *,
    total: int,
    start: int = 0,
    describe: Describe[T] | None = None,
    shown: bool = True,
    console: Console | None = None,
) -> Iterator[T]:
    """The same steps, with a progress bar; plain lines every tenth where stdout is no terminal.

    Args:
        steps: what is gone through; it may end early.
        total: the number of the last step.
        start: how many steps were done before (a resumed run).
        describe: the numbers to show beside a step, such as its loss and "tokens_per_second";
            called now and then after a step was worked on, on the shown rank alone: no collectives.
        shown: False on ranks other than 0, which stay silent.
        console: where to; stdout by default.
    """
    if not shown:
        yield from steps
        return
    console = console or Console()
    track = _with_bar if console.is_terminal else _with_lines
    yield from track(steps, total, start, describe or (lambda _: {}), console)


def _with_bar(
    steps: Iterable[T], total: int, start: int, describe: Describe[T], console: Console
) -> Iterator[T]:
    columns = [
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(start),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, completed=start, values="")
        next_seconds = 0.0
        for step in steps:
            yield step
            progress.advance(task)
            if time.monotonic() >= next_seconds:
                progress.update(task, values=format_values(describe(step)))
                next_seconds = time.monotonic() + REFRESH_SECONDS


def _with_lines(
    steps: Iterable[T], total: int, start: int, describe: Describe[T], console: Console
) -> Iterator[T]:
    began_seconds = last_seconds = time.monotonic()
    done = last_done = start
    for step in steps:
        yield step
        done += 1
        now = time.monotonic()
        is_tenth = done * NUM_PLAIN_LINES // total > last_done * NUM_PLAIN_LINES // total
        if is_tenth or now - last_seconds >= PLAIN_LINE_SECONDS:
            rate = format_rate((done - start) / max(now - began_seconds, 1e-9))
            parts = [f"step {done}/{total}", rate, format_values(describe(step))]
            console.print("  ".join(filter(None, parts)), highlight=False, soft_wrap=True)
            last_done, last_seconds = done, now


def format_values(values: Mapping[str, float]) -> str:
    """``{"loss": 0.61, "tokens_per_second": 1234.5}`` -> ``loss 0.6100  1,234 tokens/s``."""
    parts = []
    for name, value in values.items():
        if name.endswith("_per_second"):
            parts.append(f"{value:,.0f} {name.removesuffix('_per_second')}/s")
        else:
            parts.append(f"{name} {_number(value)}")
    return "  ".join(parts)


def format_rate(steps_per_second: float) -> str:
    """Steps a second, or seconds a step where that is the larger number."""
    if steps_per_second >= 1:
        return f"{steps_per_second:.1f} steps/s"
    return f"{1 / steps_per_second:.1f} s/step"


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.2e}"


class _RateColumn(ProgressColumn):
    """Steps a second since this process began; rich's own speed looks at the last moments only."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self._start = start

    def render(self, task: Task) -> Text:
        done, seconds = task.completed - self._start, task.elapsed
        return Text(format_rate(done / seconds) if done > 0 and seconds else "")
