"""Figures that hold methods against each other: scores, spread, gaps, positions, cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from scalepet.experiments.cells import CellScores
from scalepet.experiments.claims import Gap, Spread, is_plain
from scalepet.experiments.costs import Cost, Line, loss_lines
from scalepet.experiments.curve_figures import TUNED, ordered
from scalepet.experiments.marks import (
    MARKERS,
    Mark,
    colour_of,
    count_axis,
    counted,
    draw_marks,
    edge_ticks,
    edges,
    legend_above,
    name_rows,
    panels,
    shifts,
    sign,
)
from scalepet.experiments.overlap import Placed
from scalepet.experiments.style import COLOURS, DASHES, GREY, End, label_ends, short

SHADES = ("#7FB8DA", "#0072B2", "#00304D")
Looks = Mapping[str, tuple[str, str]]


def looks_of(cells: Sequence[CellScores]) -> dict[str, tuple[str, str]]:
    """Backbone -> its colour and marker in every figure, the smallest backbone first."""
    sizes: dict[str, int] = {}
    for cell in cells:
        name = cell.key.backbone
        sizes[name] = max(sizes.get(name, 0), cell.backbone_size)
    order = sorted(sizes, key=lambda backbone: (sizes[backbone], backbone))
    return {
        backbone: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for place, backbone in enumerate(order)
    }


def draw_methods(figure: Figure, cells: Sequence[CellScores], *, looks: Looks, origin: str) -> None:
    """C1: one panel a task, one row a method, one colour a backbone."""
    plain = ordered([cell for cell in cells if is_plain(cell)])
    rows = list(dict.fromkeys(cell.key.method for cell in plain))
    tasks = sorted({cell.key.task for cell in plain})

    def mark(cell: CellScores) -> tuple[str, str, Mark]:
        spread = cell.deviation
        interval = None if spread is None else (cell.mean - spread, cell.mean + spread)
        row = rows.index(cell.key.method)
        return (
            cell.key.task,
            cell.key.backbone,
            Mark(row, cell.mean, interval, is_hollow=spread is None),
        )

    _draw_rows(figure, tasks, rows, [mark(cell) for cell in plain], looks, label="test score")
    for axes, task in zip(figure.axes, tasks, strict=False):
        _draw_majority(axes, [cell for cell in plain if cell.key.task == task])
    sign(figure, origin)


def _draw_majority(axes: Axes, cells: Sequence[CellScores]) -> None:
    guesses = {cell.runs[0].run.facts.test_majority for cell in cells}
    for guess in sorted(guess for guess in guesses if guess is not None):
        axes.axvline(guess, color=GREY, linestyle=(0, (5, 4)), linewidth=1.4, zorder=1)
        axes.annotate(
            "majority guess",
            (guess, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 5),
            textcoords="offset points",
            color=GREY,
            fontsize=9.5,
        )


def draw_gaps(figure: Figure, gaps: Sequence[Gap], *, looks: Looks, origin: str) -> None:
    """C2: one panel a task, one row a method that APET matches; right of zero the method leads."""
    several = len({gap.apet for gap in gaps}) > 1
    names = {id(gap): gap.matched + (f" / {gap.apet}" if several else "") for gap in gaps}
    rows = sorted(set(names.values()))
    tasks = sorted({gap.task for gap in gaps})

    def mark(gap: Gap) -> tuple[str, str, Mark]:
        spread = gap.deviation
        interval = None if spread is None else (gap.value - spread, gap.value + spread)
        single = tuple(gap.score - score for score in gap.by_position.values())
        row = rows.index(names[id(gap)])
        seeds = single if len(single) > 1 else ()
        return (
            gap.task,
            gap.backbone,
            Mark(row, gap.value, interval, is_hollow=spread is None, seeds=seeds),
        )

    _draw_rows(
        figure, tasks, rows, [mark(gap) for gap in gaps], looks, label="score of method - APET"
    )
    for axes in figure.axes:
        axes.axvline(0, color=GREY, linewidth=1.4, zorder=1)
    ends = [axes.get_xlim() for axes in figure.axes]
    for axes in figure.axes:
        axes.set_xlim(min(left for left, _ in ends), max(right for _, right in ends))
    sign(figure, origin)


def _draw_rows(
    figure: Figure,
    tasks: Sequence[str],
    rows: Sequence[str],
    marks: Sequence[tuple[str, str, Mark]],
    looks: Looks,
    *,
    label: str,
) -> None:
    """Panels of rows; each mark comes with its task and its backbone."""
    shown = {name: look for name, look in looks.items() if name in {b for _, b, _ in marks}}
    for axes, task in zip(panels(figure, tasks, sharey=True), tasks, strict=True):
        for (backbone, (colour, marker)), shift in zip(
            shown.items(), shifts(len(shown)), strict=True
        ):
            own = [mark for where, who, mark in marks if (where, who) == (task, backbone)]
            draw_marks(axes, own, colour=colour, marker=marker, shift=shift, name=backbone)
        axes.set_xlabel(label)
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        name_rows(axes, rows)
    legend_above(figure, shown)


def draw_spreads(figure: Figure, spreads: Sequence[Spread], *, origin: str) -> None:
    """C1: the spread over methods against the size of the backbone, a line a task."""
    (axes,) = panels(figure, ["Spread over methods"])
    count_axis(axes, "backbone parameters")
    _name_sizes(axes, {spread.backbone_size: spread.backbone for spread in spreads})
    axes.set_ylabel("standard deviation of scores")
    ends = []
    for place, task in enumerate(sorted({spread.task for spread in spreads})):
        own = sorted(
            (s.backbone_size, s.value) for s in spreads if s.task == task and s.value is not None
        )
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(*zip(*own, strict=True), color=colour, marker="o", linewidth=2.2)
        ends.append(End(short(task), own[-1][1], colour))
    axes.set_ylim(bottom=0)
    sign(figure, origin)
    label_ends(figure, axes, ends)


def _name_sizes(axes: Axes, names: Mapping[int, str]) -> None:
    """Ticks at the backbones alone."""
    axes.xaxis.set_major_locator(FixedLocator(sorted(names)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{names.get(round(value), '')}\n{counted(value)}")
    )
    axes.margins(x=0.12)


def draw_positions(figure: Figure, placed: Sequence[Placed], *, looks: Looks, origin: str) -> None:
    """One panel a task and budget, one row a way to choose positions."""
    cells = [cell for group in placed for cell in group.cells]
    rows = list(dict.fromkeys(cell.key.method for cell in ordered(cells)))
    titles = list(dict.fromkeys(_title(group) for group in placed))
    marks = []
    for group in placed:
        for cell in group.cells:
            spread = cell.deviation
            interval = None if spread is None else (cell.mean - spread, cell.mean + spread)
            seeds = cell.scores if spread is not None else ()
            row = rows.index(cell.key.method)
            mark = Mark(row, cell.mean, interval, is_hollow=spread is None, seeds=seeds)
            marks.append((_title(group), cell.key.backbone, mark))
    _draw_rows(figure, titles, rows, marks, looks, label="test score")
    sign(figure, origin)


def _title(group: Placed) -> str:
    return f"{group.task}, {group.budget:,} entries"


def draw_convergence(figure: Figure, cells: Sequence[CellScores], *, origin: str) -> None:
    """Training loss of several methods, against steps and against seconds."""
    left, right = panels(figure, ["Loss against steps", "Loss against seconds"], sharey=True)
    left.set_xlabel("step")
    right.set_xlabel("seconds of training steps")
    left.set_ylabel("training loss")
    left.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ends = []
    for cell in ordered(cells):
        lines = loss_lines(cell)
        if lines is None:
            continue
        colour, dash = _line_look(cell, cells)
        for axes, line in zip((left, right), lines, strict=True):
            steps, losses = line[0], _smooth(line)
            axes.plot(steps, line[1], color=colour, alpha=0.15, linewidth=1)
            axes.plot(steps, losses, color=colour, linestyle=dash, linewidth=2)
        ends.append(End(short(cell.label), _smooth(lines[1])[-1], colour))
    sign(figure, origin)
    right.set_xscale("log")
    _plain_ticks(right.xaxis)
    label_ends(figure, left, ends)


def _plain_ticks(axis: Axis) -> None:
    """Of a logarithmic axis that may be shorter than a decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line_look(cell: CellScores, cells: Sequence[CellScores]) -> tuple[str, str]:
    """APET is the darker the larger; others of one kind share a colour, but not the dash."""
    alike = sorted((c for c in cells if c.kind == cell.kind), key=lambda other: other.tuned)
    place = alike.index(cell)
    if cell.kind == "apet" and 1 < len(alike) <= len(SHADES):
        return SHADES[place], "-"
    return colour_of(cell.kind), DASHES[place % len(DASHES)]


def _smooth(line: Line) -> list[float]:
    """The mean over the last tenth of all records, over fewer at the start."""
    losses, window = line[1], max(1, len(line[1]) // 10)
    return [float(np.mean(losses[max(0, end - window) : end])) for end in range(1, len(losses) + 1)]


Measure = Callable[[Cost], float | None]


def draw_costs(figure: Figure, costs: Sequence[Cost], *, looks: Looks, origin: str) -> None:
    """Seconds a step and peak memory, against tuned parameters and against the backbone's size."""
    measures: dict[str, Measure] = {
        "seconds a step": lambda cost: cost.step_seconds,
        "peak memory, GiB": lambda cost: (
            None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 2**30
        ),
    }
    kinds = list(dict.fromkeys(cell.kind for cell in ordered([cost.cell for cost in costs])))
    markers = {kind: MARKERS[place % len(MARKERS)] for place, kind in enumerate(kinds)}
    sizes = {cost.cell.backbone_size for cost in costs}
    titles = [f"{name[0].upper()}{name[1:]}" for name in measures]
    axes = panels(figure, titles if len(sizes) == 1 else [*titles, "Against the backbone"])
    tuned = [cost.cell.tuned for cost in costs if cost.cell.tuned] or [1]
    smallest, largest = min(tuned), max(tuned)
    for axis, (name, measure) in zip(axes, measures.items(), strict=False):
        for cost in costs:
            value = measure(cost)
            if value is not None:
                colour = looks[cost.cell.key.backbone][0]
                size = cost.cell.tuned or edges(smallest, largest)[0]
                axis.plot(size, value, markers[cost.cell.kind], color=colour, ms=6, alpha=0.75)
        count_axis(axis, f"{TUNED} (head apart)")
        edge_ticks(axis, smallest=smallest, largest=largest, low="0")
        axis.set_ylabel(name)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.04)
    if len(sizes) > 1:
        _draw_against_backbone(axes[2], costs, markers, looks)
    legend = {kind: ("#555555", marker) for kind, marker in markers.items()}
    shown = {name: (colour, "o") for name, (colour, _) in looks.items()}
    legend_above(figure, {**shown, **legend} if len(shown) > 1 else legend)
    sign(figure, origin)


def _draw_against_backbone(
    axes: Axes, costs: Sequence[Cost], markers: Mapping[str, str], looks: Looks
) -> None:
    for cost in costs:
        if cost.step_seconds is not None:
            axes.plot(
                cost.cell.backbone_size,
                cost.step_seconds,
                markers[cost.cell.kind],
                color=looks[cost.cell.key.backbone][0],
                ms=6,
                alpha=0.75,
            )
    count_axis(axes, "backbone parameters")
    _name_sizes(axes, {cost.cell.backbone_size: cost.cell.key.backbone for cost in costs})
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    axes.set_ylabel("seconds a step")
