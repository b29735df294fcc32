"""Learning curves of runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

from scalepet.errors import ConfigError
from scalepet.experiments.runs import Run, check_metric

# Okabe and Ito: told apart with every kind of colour blindness. Repeats get another dash.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
GREY = "#767676"
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 12.0, 5.0, 100
MAX_NAME_LENGTH = 32
LABEL_POINTS = 15.0  # the height of one label at a line's end

STYLE = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "font.size": 12,
    "grid.color": "#E6E6E6",
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "scalepet",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
# Without these a file would carry the date and the version of matplotlib.
NO_METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def draw_curves(runs: Sequence[Run], out_path: Path, metric: str) -> None:
    """Writes one figure: training loss against steps, and beside it a metric against steps.

    Faint lines are single records, strong ones their moving mean; the best step of a run has a
    ring. Where the metric is an accuracy, the majority guess is a dashed line. The same runs give
    the same bytes.

    Args:
        runs: finished runs; each has one colour in both halves.
        out_path: a .png (1200 x 500 pixels) or .svg file; its folder is made when missing.
        metric: what the right half shows, as in the eval records ("eval/accuracy").

    Raises:
        ConfigError: if a run lacks the metric, there is no run, or the file is of another kind
            or cannot be written.
    """
    check_metric(runs, metric)
    if out_path.suffix not in NO_METADATA:
        raise ConfigError(f"{out_path}: a figure is one of {sorted(NO_METADATA)}")
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.06)
        figure = Figure((WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH, layout=layout)
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _draw_loss(left, runs)
        _draw_metric(right, runs, metric)
        _draw_majority(right, runs, metric)
        _label_ends(figure, right, runs, metric)
        try:
            out_path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(out_path, metadata=NO_METADATA[out_path.suffix])
        except OSError as error:
            raise ConfigError(f"{out_path} cannot be written ({error.strerror})") from error


def _draw_loss(axes: Axes, runs: Sequence[Run]) -> None:
    _frame(axes, "Training loss")
    for place, run in enumerate(runs):
        steps, losses = run.series("train", "loss")
        colour, dash = _look(place)
        axes.plot(steps, losses, color=colour, alpha=0.22, linewidth=1)
        axes.plot(steps, _moving_mean(losses), color=colour, linestyle=dash, linewidth=2.2)


def _draw_metric(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    _frame(axes, metric.rsplit("/", 1)[-1].replace("_", " ").capitalize())
    for place, run in enumerate(runs):
        steps, values = run.series("eval", metric)
        colour, dash = _look(place)
        axes.plot(
            steps, values, color=colour, linestyle=dash, linewidth=2.2, marker="o", markersize=4
        )
        if run.result.best_step in steps:
            axes.plot(
                run.result.best_step,
                values[steps.index(run.result.best_step)],
                marker="o",
                markersize=10,
                markeredgewidth=1.8,
                markeredgecolor=colour,
                markerfacecolor="none",
            )


def _draw_majority(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    if not metric.endswith("accuracy"):
        return
    for guess in sorted({run.facts.majority for run in runs if run.facts.majority is not None}):
        axes.axhline(guess, color=GREY, linestyle=(0, (5, 4)), linewidth=1.4, zorder=1)
        axes.annotate(
            f"majority guess {guess:.3f}",
            (1, guess),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            color=GREY,
            fontsize=11,
        )


def _label_ends(figure: Figure, axes: Axes, runs: Sequence[Run], metric: str) -> None:
    """Names every line at its right end, moved apart where they would overlap."""
    ends = [(run.series("eval", metric)[1] or [run.result.metrics[metric]])[-1] for run in runs]
    figure.draw_without_rendering()
    to_points = 72 / figure.dpi
    heights = (
        axes.transData.transform([(0, end) for end in ends])[:, 1] - axes.bbox.y0
    ) * to_points
    places = _apart(np.nan_to_num(heights), gap=LABEL_POINTS, top=axes.bbox.height * to_points)
    for place, (run, height) in enumerate(zip(runs, places, strict=True)):
        axes.annotate(
            f"{_short(run.name)}  {run.result.metrics[metric]:.3f}",
            (1, 0),
            xycoords="axes fraction",
            xytext=(8, height),
            textcoords="offset points",
            va="center",
            color=_look(place)[0],
            fontsize=11,
            parse_math=False,  # a dollar in a name is no formula
        )


def _apart(heights: Sequence[float], *, gap: float, top: float) -> list[float]:
    """The heights moved as little as their order allows: ``gap`` apart, between 0 and ``top``."""
    order = np.argsort(heights, kind="stable")

    def bottom(group: list[float]) -> float:
        room = gap * (len(group) - 1)
        return max(0.0, min(float(np.mean(group)) - room / 2, top - room))

    groups: list[list[float]] = []
    for place in order:
        groups.append([heights[place]])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = np.concatenate([bottom(group) + gap * np.arange(len(group)) for group in groups])
    return [float(height) for height in moved[np.argsort(order)]]


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _look(place: int) -> tuple[str, str]:
    rounds, colour = divmod(place, len(COLOURS))
    return COLOURS[colour], DASHES[rounds % len(DASHES)]


def _moving_mean(values: Sequence[float]) -> list[float]:
    """The mean over the last twentieth of all values, over fewer at the start."""
    window = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"
