"""Figures of continual learning: the accuracy matrix as a heat map, and curves over experiences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from scalepet.data.matrix import AccuracyMatrix, Results
from scalepet.errors import ConfigError
from scalepet.experiments.style import DASHES, End, drawing, label_ends, look, short

MAX_PANELS_A_ROW = 3
MAX_NUMBERED = 12  # experiences; with more, numbers in cells cannot be read
MAX_TICK_LENGTH = 14
PANEL_INCHES = 4.4
CURVES_INCHES = (9.0, 5.0)
Labelled = tuple[str, Sequence[Results]]


def draw_matrix(results: Results, path: Path) -> None:
    """Writes the accuracy matrix of every expert as a heat map, a panel each.

    A row is what is known after one experience; cells have their number where there are at most
    12 experiences. The same results give the same bytes.

    Args:
        results: at least one experience learnt.
        path: a .png or .svg file; its folder is made when missing.

    Raises:
        ConfigError: if the file is of another kind or cannot be written, or nothing is learnt yet.
    """
    if not results.experts:
        raise ConfigError(f"{path}: no experience is finished, there is nothing to draw")
    num_columns = min(MAX_PANELS_A_ROW, len(results.experts))
    num_rows = math.ceil(len(results.experts) / num_columns)
    width, height = PANEL_INCHES * num_columns + 1, PANEL_INCHES * num_rows
    with drawing(path, width=width, height=height) as figure:
        panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for place, (expert, matrix) in enumerate(results.experts.items()):
            is_named = place % num_columns == 0
            image = _draw_panel(panels[place], expert, matrix, is_named=is_named)
        for axes in panels[len(results.experts) :]:
            axes.set_axis_off()
        figure.colorbar(image, ax=panels, label="accuracy", shrink=0.8)


def draw_stream_curves(labelled: Sequence[Labelled], path: Path) -> None:
    """Writes the accuracy over all evaluation rows seen so far (micro) against experiences.

    One line an expert; of several runs, each has its colour and every expert its dash. Over
    several orders of the classes the line is their mean, in a band of one sample deviation. The
    same results give the same bytes.

    Args:
        labelled: a label and the results of each order (one or more, equally long), run by run.
        path: a .png (900 x 500 pixels) or .svg file; its folder is made when missing.

    Raises:
        ConfigError: if the file is of another kind or cannot be written, or there is no run.
    """
    if not labelled:
        raise ConfigError("no runs to show")
    experts = list(dict.fromkeys(expert for _, orders in labelled for expert in orders[0].experts))
    with drawing(path, width=CURVES_INCHES[0], height=CURVES_INCHES[1]) as figure:
        axes = figure.subplots()
        ends = []
        for run_place, (label, orders) in enumerate(labelled):
            for expert in orders[0].experts:
                place = experts.index(expert)
                colour = look(run_place if len(labelled) > 1 else place)[0]
                dash = DASHES[place % len(DASHES)]
                mean = _draw_line(axes, orders, expert, colour=colour, dash=dash)
                name = f"{label} {expert}" if len(labelled) > 1 else expert
                ends.append(End(f"{short(name)}  {mean:.3f}", mean, colour))
        _frame(figure, axes, labelled, ends)


def _draw_panel(axes: Axes, expert: str, matrix: AccuracyMatrix, *, is_named: bool) -> AxesImage:
    num_learnt = len(matrix.accuracies)
    cells = np.full((num_learnt, num_learnt), np.nan)
    for i, row in enumerate(matrix.accuracies):
        cells[i, : i + 1] = row
    image = axes.imshow(cells, vmin=0, vmax=1, cmap="viridis")
    axes.set_title(expert)
    axes.set_xlabel("accuracy on experience")
    axes.set_ylabel("after experience")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    every = 1 if num_learnt <= MAX_NUMBERED else math.ceil(num_learnt / MAX_NUMBERED)
    places = range(0, num_learnt, every)
    numbers = [str(place + 1) for place in places]
    axes.set_xticks(places, numbers)
    axes.set_yticks(places, numbers)
    if num_learnt <= MAX_NUMBERED:
        _write_numbers(axes, cells)
        if is_named:
            names = [short(name, at_most=MAX_TICK_LENGTH) for name in matrix.num_rows]
            labels = [f"{name}  {number}" for name, number in zip(names, numbers, strict=False)]
            axes.set_yticks(places, labels)
    return image


def _write_numbers(axes: Axes, cells: NDArray[np.float64]) -> None:
    for (i, j), accuracy in np.ndenumerate(cells):
        if j <= i:
            axes.text(
                j,
                i,
                f"{accuracy:.2f}",
                ha="center",
                va="center",
                color="black" if accuracy > 0.6 else "white",  # viridis is light from there on
                fontsize=11 if len(cells) <= 6 else 7,
            )


def _draw_line(
    axes: Axes, orders: Sequence[Results], expert: str, *, colour: str, dash: str
) -> float:
    """Draws mean and band over the orders; the mean at the last experience."""
    curves = np.array([order.experts[expert].micro_curve for order in orders])
    places, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
    if len(orders) > 1:
        deviation = curves.std(axis=0, ddof=1)
        axes.fill_between(
            places, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0
        )
    axes.plot(places, mean, color=colour, linestyle=dash, linewidth=2.2, marker="o", markersize=4)
    return float(mean[-1])


def _frame(figure: Figure, axes: Axes, labelled: Sequence[Labelled], ends: Sequence[End]) -> None:
    axes.set_title("Accuracy over all classes seen so far (micro)")
    counts = sorted({len(orders) for _, orders in labelled} - {1})
    bands = f"; bands: one deviation over {' and '.join(map(str, counts))} orders" if counts else ""
    axes.set_xlabel(f"experience{bands}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    label_ends(figure, axes, ends)
