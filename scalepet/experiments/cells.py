"""The cells of a study at their best learning rate: chosen on one split, reported on another."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scalepet.experiments.study_runs import LeftOut, StudyRun
from scalepet.recipes.study import best_factor

HEAD, FULL = "head", "full"
"""Kinds of methods that the others are held against."""


class Key(NamedTuple):
    """What makes runs one cell."""

    backbone: str
    task: str
    method: str
    budget: int | None
    matches: str | None


Seeds = tuple[int, int]
"""Position seed and data seed."""


@dataclass(frozen=True)
class CellScores:
    """One cell at its best learning rate.

    Attributes:
        factor: the chosen factor of the learning rate.
        tries: every factor at the first seeds, and its score on the rows that choose.
        runs: at the chosen factor, in the order of their seeds; at least one.
        backbone_size: parameters of the backbone, trained or not.
    """

    key: Key
    factor: float
    tries: Mapping[float, float]
    runs: tuple[StudyRun, ...]
    backbone_size: int

    @property
    def kind(self) -> str:
        return self.runs[0].kind

    @property
    def scores(self) -> tuple[float, ...]:
        """Of every seed, on the rows that nothing was chosen by."""
        return tuple(run.score for run in self.runs)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over all seeds; None of one."""
        return deviation(self.scores)

    @property
    def tuned(self) -> int:
        """Trained parameters without the head; the mean where the seeds differ."""
        return round(statistics.fmean(run.run.facts.counts.masked for run in self.runs))

    @property
    def head(self) -> int:
        return self.runs[0].run.facts.counts.head

    @property
    def seeds(self) -> tuple[Seeds, ...]:
        return tuple(seeds_of(run) for run in self.runs)

    @property
    def label(self) -> str:
        """The method as people read it: ``apet 1,000``, ``apet as lora``."""
        if self.key.matches is not None:
            return f"{self.key.method} as {self.key.matches}"
        budget = "" if self.key.budget is None else f" {self.key.budget:,}"
        return f"{self.key.method}{budget}"


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None where it is not defined."""
    return statistics.stdev(values) if len(values) > 1 else None


def seeds_of(run: StudyRun) -> Seeds:
    return run.cell.position_seed, run.cell.data_seed


def choose_cells(runs: Sequence[StudyRun]) -> tuple[tuple[CellScores, ...], tuple[LeftOut, ...]]:
    """Every cell at the factor with the best score on eval at its first seeds; test is not looked
    at. The first seeds are those of the study, as the sweep takes them; where they are not known,
    those that most factors were tried at.

    Returns:
        The cells in the order of their keys, and runs that say the same as another one.
    """
    grouped: dict[Key, list[StudyRun]] = {}
    for run in runs:
        cell = run.cell
        key = Key(run.backbone, cell.task, cell.method, cell.budget, cell.matches)
        grouped.setdefault(key, []).append(run)
    sizes = _backbone_sizes(runs)
    cells, left_out = [], []
    for key in sorted(grouped, key=_order):
        unique, again = _unique(grouped[key])
        left_out += again
        cells.append(_choose(key, unique, backbone_size=sizes[key.backbone]))
    return tuple(cells), tuple(left_out)


def _order(key: Key) -> tuple[str, str, str, str, int]:
    return key.backbone, key.task, key.method, key.matches or "", key.budget or 0


def _unique(runs: Iterable[StudyRun]) -> tuple[list[StudyRun], list[LeftOut]]:
    kept: dict[tuple[float, Seeds], StudyRun] = {}
    again = []
    for run in runs:
        first = kept.setdefault((run.cell.factor, seeds_of(run)), run)
        if first is not run:
            folder, other = run.run.folder, first.run.folder
            reason = f"the same cell, rate and seeds as {other.name} beside it"
            where = "/".join(folder.parts[folder.parts.index("runs") :])
            again.append(LeftOut(run.cell.study, where, reason))
    return list(kept.values()), again


def _backbone_sizes(runs: Sequence[StudyRun]) -> dict[str, int]:
    """The most that any run has frozen of a backbone; full tuning freezes only a rest of it."""
    sizes: dict[str, int] = {}
    for run in runs:
        counts = run.run.facts.counts
        whole = counts.backbone + (counts.masked if run.kind == FULL else 0)
        sizes[run.backbone] = max(whole, sizes.get(run.backbone, 0))
    return sizes


def _choose(key: Key, runs: Sequence[StudyRun], *, backbone_size: int) -> CellScores:
    tries: dict[Seeds, dict[float, float]] = {}
    for run in runs:
        tries.setdefault(seeds_of(run), {})[run.cell.factor] = run.eval_score
    firsts = {seeds_of(run) for run in runs if run.is_at_first_seeds}
    first = min(tries, key=lambda seeds: (seeds not in firsts, -len(tries[seeds]), seeds))
    factor = best_factor(tries[first])
    chosen = sorted((run for run in runs if run.cell.factor == factor), key=seeds_of)
    return CellScores(key, factor, dict(sorted(tries[first].items())), tuple(chosen), backbone_size)
