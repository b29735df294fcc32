"""What the figures of a study have in common: panels, rows of points, colours of methods."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from scalepet.experiments.style import COLOURS, GREY

MAX_PANELS_A_ROW = 3
ORDER = ("prompt", "prefix", "bitfit", "ia3", "lora", "adapter", "apet", "released", "head", "full")
_OF_KIND = {
    "apet": "#0072B2",
    "lora": "#D55E00",
    "adapter": "#009E73",
    "bitfit": "#CC79A7",
    "prompt": "#E69F00",
    "prefix": "#8C564B",
    "ia3": "#56B4E9",
    "full": "#000000",
    "head": GREY,
}
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
SMALL_POINTS = 9.5
CHARACTERS_AN_INCH = 16
"""Of the smallest print."""


@dataclass(frozen=True)
class Mark:
    """A point in a row.

    Attributes:
        row: its place, from the top.
        interval: both ends of a whisker; None without one.
        is_hollow: where it is less sure than others.
        seeds: single values behind it, drawn faint.
        text: beside it.
    """

    row: int
    value: float
    interval: tuple[float, float] | None = None
    is_hollow: bool = False
    seeds: tuple[float, ...] = ()
    text: str = ""


def colour_of(kind: str) -> str:
    """The colour of a method, the same in every figure."""
    return _OF_KIND.get(kind, COLOURS[len(kind) % len(COLOURS)])


def method_order(name: str, kind: str) -> tuple[int, str]:
    """Where a method stands among others."""
    return ORDER.index(kind) if kind in ORDER else len(ORDER), name


def panels(figure: Figure, titles: Sequence[str], *, sharey: bool = False) -> list[Axes]:
    """One panel a title, at most three in a row, in the order of reading."""
    columns = min(len(titles), MAX_PANELS_A_ROW)
    rows = -(-len(titles) // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    axes = [axis for row in grid for axis in row]
    for left_over in axes[len(titles) :]:
        left_over.set_visible(False)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title)
        axis.set_axisbelow(True)
        axis.tick_params(length=0)
    return axes[: len(titles)]


def size_of(num_panels: int, *, width: float, height: float) -> tuple[float, float]:
    """Inches of a figure with so many panels of that size."""
    columns = min(num_panels, MAX_PANELS_A_ROW)
    return width * columns, height * -(-num_panels // columns)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Rows from the top, with a name each."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def draw_marks(
    axes: Axes, marks: Sequence[Mark], *, colour: str, marker: str, shift: float, name: str
) -> None:
    """Points with whiskers, moved down a little so that several series fit into a row."""
    for number, mark in enumerate(marks):
        height = mark.row + shift
        if mark.interval is not None:
            axes.plot(mark.interval, [height, height], color=colour, linewidth=2, alpha=0.55)
        if mark.seeds:
            axes.plot(
                mark.seeds, [height] * len(mark.seeds), "|", color=colour, alpha=0.45, markersize=9
            )
        axes.plot(
            mark.value,
            height,
            marker,
            markersize=8,
            markerfacecolor="white" if mark.is_hollow else colour,
            markeredgecolor=colour,
            markeredgewidth=1.6,
            label=name if number == 0 else "_",
            zorder=4,
        )
        if mark.text:
            beside(axes, mark.text, (mark.value, height), colour=colour)


def beside(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    *,
    colour: str,
    shift: tuple[float, float] = (9, 0),
    has_line: bool = False,
) -> None:
    """A small word next to a point, with a line to it where it is further away."""
    axes.annotate(
        text,
        place,
        xytext=shift,
        textcoords="offset points",
        va="center",
        ha="left" if shift[0] >= 0 else "right",
        color=colour,
        fontsize=SMALL_POINTS,
        zorder=5,
        arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5} if has_line else None,
    )


def shifts(num_series: int) -> list[float]:
    """Where the points of several series lie around the middle of a row."""
    return [float(shift) for shift in np.linspace(-0.2, 0.2, num_series)] if num_series > 1 else [0]


def count_axis(axes: Axes, label: str) -> None:
    """A logarithmic x axis for numbers of parameters, in words people use."""
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: counted(value)))


def edge_ticks(axes: Axes, *, smallest: float, largest: float, low: str, high: str = "") -> None:
    """Decades between the sizes, or the sizes where there is none, and words at their edges, see
    ``edges``; for what has no size.
    """
    left, right = edges(smallest, largest)
    first, last = math.ceil(math.log10(smallest)), math.floor(math.log10(largest))
    decades = [10.0**n for n in range(first, last + 1)]
    sizes = decades[:: -(-len(decades) // 6)] if decades else [smallest, largest]
    ticks = {left: low, **{size: counted(size) for size in sizes}}
    if high:
        ticks[right] = high
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _at(ticks, value)))
    axes.set_xlim(left / 2.5, right * 2.5 if high else largest * 2.5)


def edges(smallest: float, largest: float) -> tuple[float, float]:
    """Where on the axis what is below the smallest or above the largest size lies."""
    return smallest / 6, largest * 6


def _at(ticks: Mapping[float, str], value: float) -> str:
    return next((text for tick, text in ticks.items() if math.isclose(tick, value)), "")


def counted(value: float) -> str:
    """10, 1k, 100k, 1M, 11B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def legend_above(figure: Figure, series: Mapping[str, tuple[str, str]]) -> None:
    """Names of series over the panels; nothing where there is one."""
    if len(series) < 2:
        return
    handles = [
        _handle(colour=colour, marker=marker, name=name)
        for name, (colour, marker) in series.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(len(series), 6),
        frameon=False,
        handletextpad=0.2,
    )


def _handle(*, colour: str, marker: str, name: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=8, label=name)


def sign(figure: Figure, origin: str) -> None:
    """Where the numbers come from, small, below all."""
    width = int(CHARACTERS_AN_INCH * figure.get_figwidth())
    figure.supxlabel(textwrap.fill(origin, width), x=0.01, ha="left", fontsize=7.5, color=GREY)
