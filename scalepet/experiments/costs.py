"""What a step of a cell costs, and how its loss falls with steps and with time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalepet.experiments.cells import CellScores
from scalepet.experiments.claims import is_plain, the_one_of_kind
from scalepet.experiments.runs import Run

Line = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Cost:
    """Of one cell.

    Attributes:
        step_seconds: median over the logged steps but the first, mean over seeds; None where it is
            not logged.
        peak_memory_bytes: of one rank, the least of all seeds: on a CPU some of the run before may
            still be there.
    """

    cell: CellScores
    step_seconds: float | None
    peak_memory_bytes: int | None

    @property
    def is_measured(self) -> bool:
        return self.step_seconds is not None or self.peak_memory_bytes is not None


def cost_of(cell: CellScores) -> Cost:
    """What a cell costs, from the logs of all of its runs."""
    seconds = [value for run in cell.runs if (value := _step_seconds(run.run)) is not None]
    peaks = [p for run in cell.runs if (p := run.run.peak_memory_bytes) is not None]
    return Cost(cell, statistics.fmean(seconds) if seconds else None, min(peaks, default=None))


def _step_seconds(run: Run) -> float | None:
    _, seconds = run.series("train", "step_seconds")
    return statistics.median(seconds[1:] or seconds) if seconds else None


def loss_lines(cell: CellScores) -> tuple[Line, Line] | None:
    """Training loss against steps, and against seconds of training steps (evaluations left out):
    means over seeds at the steps that all of them logged. None where no loss is logged.
    """
    runs = [_by_step(run.run) for run in cell.runs]
    common = sorted(set(runs[0]).intersection(*runs[1:]))
    if not common:
        return None
    losses = [statistics.fmean(run[step][0] for run in runs) for step in common]
    seconds = [statistics.fmean(run[step][1] for run in runs) for step in common]
    return ([float(step) for step in common], losses), (seconds, losses)


def _by_step(run: Run) -> dict[int, tuple[float, float]]:
    """Step -> loss, and the seconds of all steps up to it; a logged step stands for those since the
    last one.
    """
    steps, losses = run.series("train", "loss")
    timed_steps, seconds = run.series("train", "step_seconds")
    if timed_steps != steps:
        own = [r["seconds"] for r in run.records if r["kind"] == "train" and "loss" in r]
        return dict(zip(steps, zip(losses, own, strict=True), strict=True))
    elapsed = np.cumsum(np.diff(steps, prepend=0) * np.array(seconds)).tolist()
    return dict(zip(steps, zip(losses, elapsed, strict=True), strict=True))


def shown_in_convergence(cells: Sequence[CellScores]) -> list[CellScores]:
    """Every method with a size of its own, and of those with several sizes the smallest, the one
    nearest to LoRA's (else the middle one) and the largest: more lines cannot be told apart.
    """
    plain = [cell for cell in cells if is_plain(cell)]
    lora = the_one_of_kind(plain, "lora")
    kept = list(plain)
    for method in sorted({cell.key.method for cell in cells if cell.key.budget is not None}):
        own = sorted(
            (c for c in cells if c.key.method == method and c.key.budget is not None),
            key=lambda cell: (cell.tuned, cell.key.matches or ""),
        )
        if len(own) == 1:  # of a position study, which has a figure of its own
            continue
        middle = own[len(own) // 2]
        if lora is not None and lora.tuned:
            near = lora.tuned
            middle = min(own, key=lambda cell: abs(np.log((cell.tuned or 1) / near)))
        kept += {id(cell): cell for cell in (own[0], middle, own[-1])}.values()
    return kept
