"""Learning curves of runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from scalepet.experiments.runs import Run, check_metric
from scalepet.experiments.style import GREY, End, drawing, label_ends, look, short

WIDTH_INCHES, HEIGHT_INCHES = 12.0, 5.0


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
    with drawing(out_path, width=WIDTH_INCHES, height=HEIGHT_INCHES) as figure:
        left, right = figure.subplots(1, 2)
        _draw_loss(left, runs)
        _draw_metric(right, runs, metric)
        _draw_majority(right, runs, metric)
        _label_ends(figure, right, runs, metric)


def _draw_loss(axes: Axes, runs: Sequence[Run]) -> None:
    _frame(axes, "Training loss")
    for place, run in enumerate(runs):
        steps, losses = run.series("train", "loss")
        colour, dash = look(place)
        axes.plot(steps, losses, color=colour, alpha=0.22, linewidth=1)
        axes.plot(steps, _moving_mean(losses), color=colour, linestyle=dash, linewidth=2.2)


def _draw_metric(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    _frame(axes, metric.rsplit("/", 1)[-1].replace("_", " ").capitalize())
    for place, run in enumerate(runs):
        steps, values = run.series("eval", metric)
        colour, dash = look(place)
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
    ends = [
        End(
            text=f"{short(run.name)}  {run.result.metrics[metric]:.3f}",
            value=(run.series("eval", metric)[1] or [run.result.metrics[metric]])[-1],
            colour=look(place)[0],
        )
        for place, run in enumerate(runs)
    ]
    label_ends(figure, axes, ends)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _moving_mean(values: Sequence[float]) -> list[float]:
    """The mean over the last twentieth of all values, over fewer at the start."""
    window = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]
