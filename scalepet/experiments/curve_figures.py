"""Figures over the number of parameters: scores, and thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalepet.experiments.cells import FULL, HEAD, CellScores, deviation
from scalepet.experiments.logistic import Logistic
from scalepet.experiments.marks import (
    MARKERS,
    Mark,
    beside,
    colour_of,
    count_axis,
    counted,
    draw_marks,
    edge_ticks,
    edges,
    legend_above,
    method_order,
    name_rows,
    panels,
    shifts,
    sign,
)
from scalepet.experiments.score_curves import Curve
from scalepet.experiments.style import COLOURS, GREY, LABEL_POINTS, End, label_ends
from scalepet.experiments.thresholds import Threshold

BLUE = COLOURS[0]
TUNED = "tuned parameters"

_NAME_SHIFT = 11.0
"""Points between a diamond and its name."""
_POINTS_A_LETTER = 5.5


def draw_curves_of(figure: Figure, curves: Sequence[Curve], *, origin: str) -> None:
    """One panel a task: scores of one backbone against the number of tuned parameters."""
    axes = panels(figure, [curve.task for curve in curves])
    ends = []
    for axis, curve in zip(axes, curves, strict=True):
        _draw_points(axis, curve)
        _draw_others(axis, curve)
        ends.append(_draw_levels(axis, curve))
        count_axis(axis, TUNED)
        axis.set_ylabel(curve.metric.replace("_", " "))
        _draw_thresholds(axis, curve)
    sign(figure, origin)
    for axis, own, curve in zip(axes, ends, curves, strict=True):
        label_ends(figure, axis, own)
        _name_others(axis, curve)


def _draw_points(axes: Axes, curve: Curve) -> None:
    sizes = [point.tuned for point in curve.points]
    for point in curve.points:
        axes.plot([point.tuned] * len(point.scores), point.scores, "o", color=BLUE, alpha=0.3, ms=4)
    means = [point.mean for point in curve.points]
    spreads = [deviation(point.scores) or 0.0 for point in curve.points]
    axes.errorbar(sizes, means, yerr=spreads, fmt="o", color=BLUE, ms=6.5, lw=1.6, zorder=4)
    if isinstance(curve.fit, Logistic):
        fine = np.logspace(math.log10(sizes[0]), math.log10(sizes[-1]), 200)
        axes.plot(fine, curve.fit.at(fine), color=BLUE, linewidth=2.2, alpha=0.8)
        text = f"logistic, R² {curve.fit.r_squared:.2f}"
    else:
        axes.plot(sizes, means, color=BLUE, linewidth=1.2, alpha=0.5)
        text = "no fit"
    axes.set_title(text, loc="right", color=BLUE, fontsize=10, fontweight="normal")


def _draw_others(axes: Axes, curve: Curve) -> None:
    """Methods with a size of their own, as diamonds."""
    for cell in _with_size(curve):
        axes.errorbar(
            cell.tuned, cell.mean, yerr=cell.deviation or 0.0, fmt="D", color=colour_of(cell.kind),
            ms=6.5, lw=1.6, markeredgecolor="white", zorder=5,
        )  # fmt: skip


def _with_size(curve: Curve) -> list[CellScores]:
    """All but the head alone, which tunes nothing beside it, and full tuning, which is a line."""
    full = curve.other(FULL)
    shown = [cell for cell in curve.others if cell.tuned and cell is not full]
    return sorted(shown, key=lambda cell: -cell.tuned)


def _name_others(axes: Axes, curve: Curve) -> None:
    """Names below and to the right, where a rising curve leaves room, each below those that it
    would hide; when the panel has its final height.
    """
    named: list[tuple[float, float, float]] = []
    for cell in _with_size(curve):
        place = (cell.tuned, cell.mean)
        x, y = axes.transData.transform(place) * 72 / axes.figure.dpi
        left, right = x, x + _NAME_SHIFT + _POINTS_A_LETTER * len(cell.key.method)
        height = y - LABEL_POINTS
        for other_left, other_right, other in sorted(named, key=lambda name: -name[2]):
            if left < other_right and other_left < right and abs(height - other) < LABEL_POINTS:
                height = other - LABEL_POINTS
        named.append((left, right, height))
        shift = (_NAME_SHIFT, height - y)
        colour = colour_of(cell.kind)
        beside(axes, cell.key.method, place, colour=colour, shift=shift, has_line=True)


def _draw_levels(axes: Axes, curve: Curve) -> list[End]:
    """What has no size on this axis, or every size: lines from side to side."""
    ends = []
    if curve.baseline is not None:
        axes.axhline(curve.baseline.rate, color=GREY, linestyle=(0, (5, 4)), lw=1.4, zorder=1)
        name = curve.baseline.name.removeprefix("the ").removeprefix("score ")
        ends.append(End(f"{name} {curve.baseline.rate:.3f}", curve.baseline.rate, GREY))
    head, full = curve.other(HEAD), curve.other(FULL)
    if head is not None and head.head:
        axes.axhline(head.mean, color=GREY, linestyle=":", lw=1.6, zorder=1)
        ends.append(End(f"head alone {head.mean:.3f}", head.mean, GREY))
    if full is not None:
        axes.axhline(full.mean, color="black", lw=1.4, zorder=1)
        spread = full.deviation
        text = f"full {full.mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        if spread is not None:
            axes.axhspan(full.mean - spread, full.mean + spread, color="black", alpha=0.08, lw=0)
        ends.append(End(text, full.mean, "black"))
    return ends


def _draw_thresholds(axes: Axes, curve: Curve) -> None:
    """Along the bottom: low hollow, high filled, with their intervals."""
    sizes = [point.tuned for point in curve.points] + [cell.tuned for cell in _with_size(curve)]
    smallest, largest = min(sizes), max(sizes)
    axes.set_xlim(smallest / 2, largest * 2)
    bottom, top = axes.get_ylim()
    bottom -= 0.24 * (top - bottom)
    # The room for the marks may lie below what a score can be.
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])
    axes.set_ylim(bottom, top)
    for place, (name, threshold) in enumerate((("low", curve.low), ("high", curve.high))):
        height = bottom + (0.035 + 0.09 * place) * (top - bottom)
        _draw_threshold(axes, name, threshold, height, smallest=smallest, largest=largest)


def _draw_threshold(
    axes: Axes, name: str, threshold: Threshold, height: float, *, smallest: int, largest: int
) -> None:
    value = threshold.value
    if value is None:
        return
    if threshold.interval is not None:
        ends = np.clip(threshold.interval, smallest / 1.6, largest * 1.6)
        axes.plot(ends, [height, height], color=GREY, linewidth=3, alpha=0.45, zorder=2)
    face = "white" if name == "low" else "#333333"
    place = max(value, smallest / 1.6)
    axes.plot(place, height, "^", color="#333333", markerfacecolor=face, ms=7.5, zorder=4)
    text = f"{name}: the head alone" if value == 0 else f"{name} {counted(value)}"
    sideways = -6.0 if place < math.sqrt(smallest * largest) else 6.0
    beside(axes, text, (place, height), colour="#333333", shift=(-sideways, 10.0))


def draw_thresholds(figure: Figure, curves: Sequence[Curve], *, origin: str) -> None:
    """Rows of tasks, a panel a threshold, one colour a backbone; the threshold over the head alone
    is shown where there is a head.
    """
    shown: dict[str, Callable[[Curve], Threshold]] = {"Low: beats the guess": lambda c: c.low}
    if any(curve.over_head.interval for curve in curves):
        shown["Beats the head alone"] = lambda curve: curve.over_head
    shown["High: as full tuning"] = lambda curve: curve.high
    rows = sorted({_row_name(curve, curves) for curve in curves})
    smallest = min(curve.points[0].tuned for curve in curves)
    largest = max(curve.points[-1].tuned for curve in curves)
    outside = edges(smallest, largest)
    backbones = _by_size(curves)
    series = {
        backbone: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for place, backbone in enumerate(backbones)
    }
    for axis, of in zip(panels(figure, list(shown), sharey=True), shown.values(), strict=True):
        for backbone, shift in zip(backbones, shifts(len(backbones)), strict=True):
            own = [curve for curve in curves if curve.backbone == backbone]
            marks = [
                _threshold_mark(rows.index(_row_name(curve, curves)), of(curve), outside)
                for curve in own
            ]
            drawn = [mark for mark in marks if mark is not None]
            colour, marker = series[backbone]
            draw_marks(axis, drawn, colour=colour, marker=marker, shift=shift, name=backbone)
        count_axis(axis, TUNED)
        edge_ticks(axis, smallest=smallest, largest=largest, low="head", high="not\nreached")
        name_rows(axis, rows)
    legend_above(figure, series)
    sign(figure, origin)


def _threshold_mark(row: int, threshold: Threshold, outside: tuple[float, float]) -> Mark | None:
    """Outside of the sizes that were trained there is a hollow point."""
    low, high = outside
    interval = threshold.interval
    ends = None if interval is None else (max(interval[0], low), min(interval[1], high))
    if threshold.value is None:
        return None if interval is None else Mark(row, high, ends, is_hollow=True)
    if threshold.value == 0:
        return Mark(row, low, ends, is_hollow=True)
    return Mark(row, float(threshold.value), ends)


def _row_name(curve: Curve, curves: Sequence[Curve]) -> str:
    methods = {other.method for other in curves}
    return curve.task if len(methods) == 1 else f"{curve.task}, {curve.method}"


def _by_size(curves: Sequence[Curve]) -> list[str]:
    sizes = {curve.backbone: curve.backbone_size for curve in curves}
    return sorted(sizes, key=lambda backbone: (sizes[backbone], backbone))


def ordered(cells: Sequence[CellScores]) -> list[CellScores]:
    """Methods as they stand in every figure."""
    return sorted(cells, key=lambda cell: method_order(cell.key.method, cell.kind))
