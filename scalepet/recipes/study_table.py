"""A study as a person reads it: what there is, how far it is, what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from scalepet.planning import choose_machines
from scalepet.recipes.run_folder import say
from scalepet.recipes.study import CellPlan
from scalepet.recipes.study_costs import disk_bytes, gpu_here, measured_hours, planned_hours
from scalepet.recipes.sweep import STANDINGS, faults_of, runs_known, standing

_COLUMNS = ("cells", "runs", *STANDINGS)


def show_study(cells: Sequence[CellPlan], console: Console, *, gpu: str | None = None) -> None:
    """A row for each method with its cells and how far their runs are; then hours and disk.

    Args:
        gpu: the kind to count hours for; None for this machine's.

    Raises:
        ConfigError: no such kind.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    total: Counter[str] = Counter()
    for method in dict.fromkeys(cell.place.method for cell in cells):
        counts = _counts([cell for cell in cells if cell.place.method == method])
        total.update(counts)
        table.add_row(method, *(f"{counts[name]:,}" for name in _COLUMNS))
    table.add_row("all", *(f"{total[name]:,}" for name in _COLUMNS), style="bold")
    console.print(table)
    if total["finished"] < total["runs"]:
        for line in _hours(cells, gpu or gpu_here()):
            say(console, line)
    finished, states = (num_bytes / 1e6 for num_bytes in disk_bytes(cells))
    say(
        console,
        f"disk: about {finished:,.1f} MB for all runs, and {states:,.1f} MB while one goes on",
    )


def _counts(cells: Sequence[CellPlan]) -> Counter[str]:
    counts: Counter[str] = Counter(
        standing(run.folder) for cell in cells for run in runs_known(cell)
    )
    num_runs = sum(cell.num_runs for cell in cells)
    counts["to do"] += num_runs - counts.total()  # repeats whose rate the tries choose
    counts.update(cells=len(cells), runs=num_runs)
    return counts


def _hours(cells: Sequence[CellPlan], gpu: str | None) -> Iterator[str]:
    if gpu is not None:
        hours = planned_hours(cells, choose_machines(gpu=gpu))
        words = "not known for these backbones" if hours is None else f"about {_rounded(hours)}"
        yield f"GPU hours left: {words} ({gpu}, arithmetic and gathers alone, as in scalepet plan)"
    else:
        hours, unknown = measured_hours(cells)
        words = f"about {_rounded(hours)} of one process, by the median of finished runs"
        if unknown and not hours:
            yield "hours left: nothing is known before the first run ends; --gpu KIND estimates"
        else:
            without = f"; not counted, since no run is finished: {', '.join(unknown)}"
            yield f"hours left: {words}{without if unknown else ''}"


def _rounded(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def show_end(cells: Sequence[CellPlan], console: Console) -> bool:
    """Name every run that failed or is not finished; whether there is none."""
    is_whole = True
    for cell in cells:
        runs = list(runs_known(cell))
        for run in runs:
            how = standing(run.folder)
            if how == "failed":
                say(console, f"failed: {run.folder}: {'; '.join(faults_of(run.folder))}")
            elif how != "finished":
                say(console, f"not finished: {run.folder}")
            is_whole &= how == "finished"
    return is_whole
