"""Score against number of tuned parameters: the curves behind claims C3 and C4."""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from scalepet.experiments.cells import FULL, HEAD, CellScores
from scalepet.experiments.claims import by_setting, is_plain, the_one_of_kind
from scalepet.experiments.logistic import Logistic, NoFit, fit_logistic
from scalepet.experiments.thresholds import (
    Baseline,
    Point,
    Threshold,
    high_threshold,
    low_threshold,
    midpoint_interval,
)

MIN_NUM_POINTS = 2
MEANS_OVER_ROWS = ("accuracy", "exact_match", "token_f1", "rouge_l")
"""Metrics whose rows score 0 to 1, so that the variance of a mean is at most that of right and
wrong rows."""


@dataclass(frozen=True)
class Curve:
    """One method of a study over all sizes that it was given, on one backbone and task.

    Attributes:
        points: sizes rising; the head is trained at every one where there is a head.
        num_rows: of the scores, None where the runs do not tell.
        baseline: what the low threshold beats, None where nothing can be tested.
        interval: of the midpoint of the fit, in parameters.
        low, high, over_head: thresholds; the last one beats the head alone.
        others: methods with a size of their own, the head alone and full tuning among them.
    """

    backbone: str
    task: str
    method: str
    metric: str
    backbone_size: int
    head_size: int
    points: tuple[Point, ...]
    num_rows: int | None
    baseline: Baseline | None
    fit: Logistic | NoFit
    interval: tuple[float, float] | None
    low: Threshold
    high: Threshold
    over_head: Threshold
    others: tuple[CellScores, ...]

    def other(self, kind: str) -> CellScores | None:
        """What the curve is held against, of the methods of that kind beside it."""
        return the_one_of_kind(self.others, kind)


def curves(cells: Sequence[CellScores]) -> list[Curve]:
    """One for each backbone, task and method with at least two sizes above 0: a budget that came
    to nothing, as it may by the released rule, has no place on a logarithmic axis.
    """
    found = []
    for group in by_setting(cells).values():
        plain = [cell for cell in group if is_plain(cell)]
        methods = sorted({cell.key.method for cell in group if not is_plain(cell)})
        for method in methods:
            own = [c for c in group if c.key.method == method and not is_plain(c) and c.tuned]
            if len({cell.tuned for cell in own}) >= MIN_NUM_POINTS:
                found.append(_curve(own, plain))
    return found


def _curve(own: Sequence[CellScores], plain: Sequence[CellScores]) -> Curve:
    """A size that was asked for and matches a method, too, is there twice: the first counts."""
    by_size: dict[int, CellScores] = {}
    for cell in sorted(own, key=lambda cell: (cell.tuned, cell.key.matches or "")):
        by_size.setdefault(cell.tuned, cell)
    points = tuple(Point(size, cell.scores) for size, cell in by_size.items())
    first = own[0]
    metric = first.runs[0].metric
    num_rows = _rows(own, "test") if metric in MEANS_OVER_ROWS else None
    # Seeded by what it is of: a curve more in the report leaves the others as they are.
    seed = zlib.crc32("/".join(first.key[:3]).encode())
    fit = fit_logistic(tuple(by_size), [point.mean for point in points])
    interval = None
    if isinstance(fit, Logistic) and fit.is_inside:
        interval = midpoint_interval(points, fit, num_rows=num_rows, seed=seed)
    head = the_one_of_kind((cell for cell in plain if cell.head), HEAD)
    full = the_one_of_kind(plain, FULL)
    baseline = _baseline(own, metric)
    with_head = points if head is None else (Point(0, head.scores), *points)
    return Curve(
        backbone=first.key.backbone,
        task=first.key.task,
        method=first.key.method,
        metric=metric,
        backbone_size=first.backbone_size,
        head_size=first.head,
        points=points,
        num_rows=num_rows,
        baseline=baseline,
        fit=fit,
        interval=interval,
        low=_beats(with_head, baseline, metric, num_rows, seed),
        high=_reaches(points, full, num_rows, seed),
        over_head=_beats(points, _head_baseline(head, num_rows), metric, num_rows, seed),
        others=tuple(plain),
    )


def _beats(
    points: Sequence[Point],
    baseline: Baseline | None,
    metric: str,
    num_rows: int | None,
    seed: int,
) -> Threshold:
    if metric not in MEANS_OVER_ROWS:
        return Threshold(None, f"{metric} is no mean over rows, which the test counts")
    if num_rows is None:
        return Threshold(None, "run.json does not tell the number of test rows")
    if baseline is None:
        return Threshold(None, "nothing to beat was measured")
    return low_threshold(points, baseline=baseline, num_rows=num_rows, seed=seed)


def _reaches(
    points: Sequence[Point], full: CellScores | None, num_rows: int | None, seed: int
) -> Threshold:
    if full is None:
        return Threshold(None, "the study has no full tuning here")
    return high_threshold(points, full=full.scores, num_rows=num_rows, seed=seed)


def _rows(cells: Sequence[CellScores], split: str) -> int | None:
    """The fewest of all seeds."""
    found = [run.run.facts.rows.get(split, 0) for cell in cells for run in cell.runs]
    return min(found) or None


def _baseline(cells: Sequence[CellScores], metric: str) -> Baseline | None:
    """The majority guess on the test rows, the largest of all seeds; where there are no classes,
    the score before training, which is known on the eval rows.
    """
    facts = [run.run.facts for cell in cells for run in cell.runs]
    guesses = [fact.test_majority for fact in facts if fact.test_majority is not None]
    if guesses and metric == "accuracy":
        return Baseline("the majority guess", max(guesses))
    scores = [
        dict(zip(*run.run.series("eval", f"eval/{metric}"), strict=True)).get(0)
        for cell in cells
        for run in cell.runs
    ]
    known = [score for score in scores if score is not None]
    num_rows = _rows(cells, "eval")
    if guesses or not known or num_rows is None:
        return None
    return Baseline("the score before training", statistics.fmean(known), num_rows)


def _head_baseline(head: CellScores | None, num_rows: int | None) -> Baseline | None:
    return None if head is None else Baseline("the head alone", head.mean, num_rows)
