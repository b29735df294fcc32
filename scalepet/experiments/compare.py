"""Runs side by side in a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from scalepet.experiments.runs import Run, check_metric


def compare_table(runs: Sequence[Run], *, metric: str) -> Table:
    """One row a run, in the order given: its method, size, score, and what it cost.

    Args:
        runs: finished runs.
        metric: what they are compared by, as in result.json ("eval/accuracy").

    Returns:
        A table with the trained parameters (all that trained, the head included), the metric at the
        best step, the accuracy of the majority guess, working time, and peak memory of one rank;
        "-" where a run did not measure it.

    Raises:
        ConfigError: if a run lacks the metric, or there is none.
    """
    check_metric(runs, metric)
    table = Table("run", "method")
    score = metric.rsplit("/", 1)[-1]
    for heading in ("trained", score, "majority guess", "time", "peak memory"):
        table.add_column(heading, justify="right", min_width=8)
    for run in runs:
        table.add_row(
            Text(run.name),  # not a string: a bracket in a name is no markup
            Text(run.facts.method),
            f"{run.facts.counts.trained:,}",
            _score(run.result.metrics[metric]),
            _score(run.facts.majority),
            _duration(run.seconds),
            _memory(run.peak_memory_bytes),
        )
    return table


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{whole_seconds:02}s"


def _memory(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "-"
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"
