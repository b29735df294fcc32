"""The tables of a study report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scalepet.experiments.cells import CellScores
from scalepet.experiments.claims import Gap, Spread, by_setting, is_plain
from scalepet.experiments.costs import Cost
from scalepet.experiments.logistic import Logistic
from scalepet.experiments.overlap import MaskOverlap, Placed
from scalepet.experiments.score_curves import Curve
from scalepet.experiments.study_runs import LeftOut
from scalepet.experiments.table import NONE, Column, Table, Value
from scalepet.experiments.thresholds import Threshold

SCORE, COUNT, PLAIN_COUNT = ".3f", ",", "d"
_SETTING = (Column("backbone"), Column("task"))
_TUNED, _HEAD = Column("tuned", COUNT), Column("head", COUNT)
_MEAN, _DEVIATION, _SEEDS = (
    Column("score", SCORE),
    Column("deviation", SCORE),
    Column("seeds", PLAIN_COUNT),
)


def cell_table(cells: Sequence[CellScores]) -> Table:
    """Every cell of the grid."""
    columns = (
        *_SETTING,
        Column("method"),
        _TUNED,
        _HEAD,
        Column("metric"),
        _MEAN,
        _DEVIATION,
        _SEEDS,
        Column("majority", SCORE),
        Column("eval score", SCORE),
        Column("learning rate", ".3g"),
        Column("factor", "g"),
        Column("tries", PLAIN_COUNT),
    )
    return Table(
        "cells",
        "Every cell",
        "A cell is a backbone, task, method and size, at the factor of its learning rate with the"
        " best score on the eval rows at the first seeds (eval score). The score is the mean over"
        " seeds on the test rows, which nothing was chosen by; the deviation is the sample standard"
        " deviation over all seeds. Tuned counts what the method trains, head what trains beside.",
        columns,
        [_cell_row(cell) for cell in cells],
    )


def _cell_row(cell: CellScores) -> list[Value]:
    first = cell.runs[0]
    return [
        cell.key.backbone,
        cell.key.task,
        cell.label,
        cell.tuned,
        cell.head,
        first.metric,
        cell.mean,
        cell.deviation,
        len(cell.runs),
        first.run.facts.test_majority,
        cell.tries[cell.factor],
        first.cell.learning_rate,
        cell.factor,
        len(cell.tries),
    ]


def method_table(cells: Sequence[CellScores], spreads: Sequence[Spread]) -> Table:
    """Scores by method with the spread beside them (C1)."""
    methods = sorted({cell.key.method for cell in cells if is_plain(cell)})
    known = {(spread.backbone, spread.task): spread for spread in spreads}
    rows: list[list[Value]] = []
    for (backbone, task), group in by_setting(cells).items():
        own = {cell.key.method: cell for cell in group if is_plain(cell)}
        if own:
            spread = known.get((backbone, task))
            scores = [_plus_minus(own[name]) if name in own else NONE for name in methods]
            over = NONE if spread is None else ", ".join(spread.means)
            size = group[0].backbone_size
            value = None if spread is None else spread.value
            rows.append([backbone, task, size, *scores, value, over])
    return Table(
        "c1_methods",
        "C1: scores by method",
        "Mean test score over seeds, ± the sample standard deviation where there are several. The"
        " spread is the sample standard deviation over the means of prompt, BitFit, LoRA and"
        " adapter, of those that the study has.",
        [
            *_SETTING,
            Column("backbone parameters", COUNT),
            *(Column(name) for name in methods),
            Column("spread", ".4f"),
            Column("spread over"),
        ],
        rows,
    )


def gap_table(gaps: Sequence[Gap]) -> Table:
    """Each method against APET at its count (C2)."""
    rows: list[list[Value]] = [
        [
            gap.backbone,
            gap.task,
            gap.matched,
            gap.apet,
            gap.tuned,
            gap.score,
            gap.score - gap.value,
            gap.value,
            gap.deviation,
            len(gap.by_position),
            ", ".join(f"{score:.3f}" for score in gap.by_position.values()),
            "the same" if gap.is_paired else "apart",
        ]
        for gap in gaps
    ]
    return Table(
        "c2_gaps",
        "C2: each method against APET at exactly its count",
        "Gap = score of the method - mean over position seeds of APET's score with as many"
        " parameters; above 0 the method is better. The deviation is that of APET over at least"
        " three position seeds (sample standard deviation); of fewer the scores are shown as they"
        " are. Both means are over the same data seeds where there are such.",
        [
            *_SETTING,
            Column("method"),
            Column("against"),
            _TUNED,
            _MEAN,
            Column("score of APET", SCORE),
            Column("gap", "+.3f"),
            _DEVIATION,
            Column("position seeds", PLAIN_COUNT),
            Column("APET by position seed"),
            Column("data seeds"),
        ],
        rows,
    )


def point_table(curves: Sequence[Curve]) -> Table:
    """Every point of every curve."""
    rows: list[list[Value]] = [
        [
            curve.backbone,
            curve.task,
            curve.method,
            point.tuned,
            curve.head_size,
            point.mean,
            ", ".join(f"{score:.3f}" for score in point.scores),
            _fitted(curve, point.tuned),
        ]
        for curve in curves
        for point in curve.points
    ]
    return Table(
        "c3_points",
        "C3, C4: score against number of tuned parameters",
        "Test scores of all seeds at each size, and the fitted logistic curve there.",
        [
            *_SETTING,
            Column("method"),
            _TUNED,
            _HEAD,
            _MEAN,
            Column("by seed"),
            Column("curve", SCORE),
        ],
        rows,
    )


def _fitted(curve: Curve, size: int) -> float | None:
    if not isinstance(curve.fit, Logistic):
        return None
    return float(curve.fit.at(np.array([size], dtype=float))[0])


def threshold_table(curves: Sequence[Curve]) -> Table:
    """Thresholds and fits of every curve (C3, C4)."""
    rows: list[list[Value]] = []
    for curve in curves:
        beaten = None if curve.baseline is None else curve.baseline.rate
        shared: list[Value] = [curve.backbone, curve.task, curve.method, curve.head_size]
        low, over, high = (_threshold_texts(t) for t in (curve.low, curve.over_head, curve.high))
        rows.append([*shared, beaten, *low, *over, *high, *_fit_texts(curve)])
    return Table(
        "c3_c4_thresholds",
        "C3, C4: how many parameters are enough",
        "Low: the smallest size at which every seed beats the majority guess (exact one-sided"
        " binomial test on the test rows, 5 %); in tasks of texts, the score before training,"
        " measured on the eval rows (Fisher's exact test). Size 0 is the head alone. Over the"
        " head: the same against the score of the head alone (Fisher's test, which ignores that the"
        " rows are the same: an upper bound). High: the smallest size whose mean is at least the"
        " mean of full tuning less its standard deviation."
        " Intervals: 95 % by the bootstrap over seeds and rows.",
        [
            *_SETTING,
            Column("method"),
            _HEAD,
            Column("to beat", SCORE),
            Column("low", COUNT),
            Column("low: 95 %"),
            Column("over the head", COUNT),
            Column("over the head: 95 %"),
            Column("high", COUNT),
            Column("high: 95 %"),
            Column("midpoint", COUNT),
            Column("midpoint: 95 %"),
            Column("slope", ".2f"),
            Column("ends of the curve"),
            Column("R²", ".2f"),
        ],
        rows,
    )


def _threshold_texts(threshold: Threshold) -> list[Value]:
    value: Value = threshold.value if threshold.value is not None else threshold.reason
    text = NONE if threshold.interval is None else interval_text(threshold.interval)
    if threshold.fails_at:
        text += f"; not at {', '.join(f'{size:,}' for size in threshold.fails_at)}"
    return [value, text]


def interval_text(interval: tuple[float, float]) -> str:
    """Both ends; where the threshold is not reached, that."""
    low, high = ("not reached" if math.isinf(end) else f"{end:,.0f}" for end in interval)
    return low if low == high else f"{low} to {high}"


def _fit_texts(curve: Curve) -> list[Value]:
    fit = curve.fit
    if not isinstance(fit, Logistic):
        return [fit.reason, NONE, None, NONE, None]
    midpoint: Value = round(10**fit.midpoint)
    if not fit.is_inside:
        is_below = fit.midpoint < math.log10(curve.points[-1].tuned) - 0.5
        midpoint = "below all sizes" if is_below else "above all sizes"
    interval = NONE if curve.interval is None else interval_text(curve.interval)
    return [midpoint, interval, fit.slope, f"{fit.low:.3f} to {fit.high:.3f}", fit.r_squared]


def position_table(placed: Sequence[Placed]) -> Table:
    """Equally many parameters in different places."""
    rows: list[list[Value]] = [
        [
            group.backbone,
            group.task,
            group.budget,
            cell.key.method,
            how(cell),
            cell.tuned,
            cell.mean,
            cell.deviation,
            len(cell.runs),
            ", ".join(f"{score:.3f}" for score in cell.scores),
        ]
        for group in placed
        for cell in group.cells
    ]
    return Table(
        "positions",
        "The same number of parameters in different places",
        "Mean and sample standard deviation of the test score over all seeds. The released rule"
        " picks whole tensors and does not hit a budget: tuned is what it came to.",
        [
            *_SETTING,
            Column("budget", COUNT),
            Column("method"),
            Column("how"),
            _TUNED,
            _MEAN,
            _DEVIATION,
            _SEEDS,
            Column("by seed"),
        ],
        rows,
    )


def how(cell: CellScores) -> str:
    """What the options of a method say about its positions."""
    if cell.kind != "apet":
        return f"the {cell.kind} rule"
    options = cell.runs[0].run.config["method"]
    words = [f"{options.get('select', 'random')} {options.get('unit', 'element')}s"]
    for name in ("operation", "parts", "include", "exclude", "kinds", "share", "move_every"):
        value = options.get(name)
        if value not in (None, [], ["*"], ["matrix"], "add", "uniform"):
            words.append(f"{name} {', '.join(value) if isinstance(value, list) else value}")
    return "; ".join(words)


def overlap_table(overlaps: Sequence[MaskOverlap]) -> Table:
    """Entries that masks share."""
    rows: list[list[Value]] = [
        [
            one.backbone,
            one.task,
            one.budget,
            one.first,
            "other seeds" if one.second == one.first else one.second,
            one.share,
            one.expected,
            one.num_pairs,
        ]
        for one in overlaps
    ]
    return Table(
        "overlap",
        "Overlap of masks",
        "Common entries as a part of a mask: of one method at different position seeds, and of two"
        " methods at the same seed. Expected: if each mask kept its number of entries in each"
        " tensor but drew them at random.",
        [
            *_SETTING,
            Column("budget", COUNT),
            Column("mask of"),
            Column("and of"),
            Column("overlap", ".4%"),
            Column("expected", ".4%"),
            Column("pairs", PLAIN_COUNT),
        ],
        rows,
    )


def cost_table(costs: Sequence[Cost]) -> Table:
    """Seconds and memory of every cell."""
    rows: list[list[Value]] = [
        [
            cost.cell.key.backbone,
            cost.cell.key.task,
            cost.cell.label,
            cost.cell.tuned,
            cost.cell.head,
            cost.cell.backbone_size,
            cost.step_seconds,
            None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 2**30,
        ]
        for cost in costs
    ]
    return Table(
        "costs",
        "Cost of a step",
        "Seconds: median over the logged steps, mean over seeds. Peak memory: of one rank, the"
        " least of all seeds; on a CPU it is that of the process, which may have trained a larger"
        " run before.",
        [
            *_SETTING,
            Column("method"),
            _TUNED,
            _HEAD,
            Column("backbone parameters", COUNT),
            Column("seconds a step", ".3f"),
            Column("peak memory, GiB", ".2f"),
        ],
        rows,
    )


def left_out_table(left_out: Sequence[LeftOut]) -> Table:
    """Run folders that no number comes from."""
    rows: list[list[Value]] = [[out.study, out.folder, out.reason] for out in left_out]
    return Table(
        "left_out",
        "Run folders that were left out",
        "No number of this report comes from them.",
        [Column("study"), Column("folder"), Column("why")],
        rows,
    )


def _plus_minus(cell: CellScores) -> str:
    spread = cell.deviation
    return f"{cell.mean:.3f}" if spread is None else f"{cell.mean:.3f} ± {spread:.3f}"
