"""Claims C1 and C2 of the paper as numbers.

Source: "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language
Models" (arXiv 2306.02320).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scalepet.experiments.cells import CellScores, deviation

SPREAD_METHODS = ("prompt", "bitfit", "lora", "adapter")
MIN_POSITION_SEEDS = 3
"""Fewer are shown as what they are, not as a deviation."""


@dataclass(frozen=True)
class Spread:
    """How far methods are apart on one backbone and task (C1).

    Attributes:
        means: method of the study -> mean score over its seeds.
        value: sample standard deviation over these means; None of fewer than two.
    """

    backbone: str
    task: str
    backbone_size: int
    means: Mapping[str, float]
    value: float | None


@dataclass(frozen=True)
class Gap:
    """A method against APET at exactly its count (C2).

    Attributes:
        matched: the method.
        tuned: parameters of either.
        score: mean of the method over its seeds.
        by_position: APET's position seed -> mean over data seeds.
        data_seeds: that the means are over.
        is_paired: whether both have these data seeds; else each has its own.
    """

    backbone: str
    task: str
    matched: str
    apet: str
    tuned: int
    score: float
    by_position: Mapping[int, float]
    data_seeds: tuple[int, ...]
    is_paired: bool

    @property
    def value(self) -> float:
        """score(method) - mean over position seeds of score(APET); above 0 the method is better."""
        return self.score - statistics.fmean(self.by_position.values())

    @property
    def deviation(self) -> float | None:
        """Of APET over position seeds; None of fewer than ``MIN_POSITION_SEEDS``."""
        values = tuple(self.by_position.values())
        return deviation(values) if len(values) >= MIN_POSITION_SEEDS else None


def by_setting(cells: Iterable[CellScores]) -> dict[tuple[str, str], list[CellScores]]:
    """(backbone, task) -> its cells, in their order."""
    found: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        found.setdefault((cell.key.backbone, cell.key.task), []).append(cell)
    return found


def is_plain(cell: CellScores) -> bool:
    """Whether the method has a size of its own, and was given none."""
    return cell.key.budget is None and cell.key.matches is None


def the_one_of_kind(cells: Iterable[CellScores], kind: str) -> CellScores | None:
    """Of methods of a kind, each with a size of its own, the one that is called like the kind, else
    the one with most tuned parameters; None where there is none.
    """
    alike = [cell for cell in cells if is_plain(cell) and cell.kind == kind]
    return min(
        alike,
        key=lambda cell: (cell.key.method != kind, -cell.tuned, cell.key.method),
        default=None,
    )


def spreads(cells: Sequence[CellScores]) -> list[Spread]:
    """One for each backbone and task: over those of ``SPREAD_METHODS`` that are there."""
    found = []
    for (backbone, task), group in by_setting(cells).items():
        means = {}
        for kind in SPREAD_METHODS:
            cell = the_one_of_kind(group, kind)
            if cell is not None:
                means[cell.key.method] = cell.mean
        if means:
            size = group[0].backbone_size
            found.append(Spread(backbone, task, size, means, deviation(tuple(means.values()))))
    return found


def gaps(cells: Sequence[CellScores]) -> list[Gap]:
    """One for each cell that matches a method which is there, too."""
    plain = {cell.key[:3]: cell for cell in cells if is_plain(cell)}
    found = []
    for cell in cells:
        if cell.key.matches is None:
            continue
        other = plain.get((cell.key.backbone, cell.key.task, cell.key.matches))
        if other is not None:
            found.append(_gap(other, cell))
    return found


def _gap(method: CellScores, apet: CellScores) -> Gap:
    """Rows are drawn by the data seed, so means are over the data seeds that both have."""
    ours, theirs = ({data for _, data in cell.seeds} for cell in (apet, method))
    common = ours & theirs
    kept = common or ours
    by_position: dict[int, list[float]] = {}
    for run in apet.runs:
        if run.cell.data_seed in kept:
            by_position.setdefault(run.cell.position_seed, []).append(run.score)
    scores = [run.score for run in method.runs if run.cell.data_seed in (common or theirs)]
    return Gap(
        backbone=apet.key.backbone,
        task=apet.key.task,
        matched=method.key.method,
        apet=apet.key.method,
        tuned=apet.tuned,
        score=statistics.fmean(scores),
        by_position={seed: statistics.fmean(own) for seed, own in sorted(by_position.items())},
        data_seeds=tuple(sorted(kept)),
        is_paired=bool(common),
    )
