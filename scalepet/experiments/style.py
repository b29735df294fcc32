"""How every figure looks, and how it is written: the same drawing gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from scalepet.errors import ConfigError

# Okabe and Ito: told apart with every kind of colour blindness. Repeats get another dash.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
GREY = "#767676"
DOTS_PER_INCH = 100
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
    "text.parse_math": False,  # a dollar in a name is no formula
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
# Without these a file would carry the date and the version of matplotlib.
NO_METADATA = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


class End(NamedTuple):
    """The right end of a line: what is written there, at which value, in the line's colour."""

    text: str
    value: float
    colour: str


@contextmanager
def drawing(
    *paths: Path, width: float, height: float, dots_per_inch: int = DOTS_PER_INCH
) -> Iterator[Figure]:
    """A figure of so many inches to draw on, written to the files when all is drawn.

    Args:
        paths: .png or .svg files; their folders are made when missing.

    Raises:
        ConfigError: if a file is of another kind or cannot be written.
    """
    for path in paths:
        if path.suffix not in NO_METADATA:
            raise ConfigError(f"{path}: a figure is one of {sorted(NO_METADATA)}")
    with matplotlib.style.context(["default", STYLE]):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.06)
        figure = Figure((width, height), dpi=dots_per_inch, layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        for path in paths:
            _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=NO_METADATA[path.suffix])
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error


def look(place: int) -> tuple[str, str]:
    """Colour and dash of the line at that place."""
    rounds, colour = divmod(place, len(COLOURS))
    return COLOURS[colour], DASHES[rounds % len(DASHES)]


def short(name: str, at_most: int = 32) -> str:
    """The name, cut where it is too long to stand beside a line."""
    return name if len(name) <= at_most else name[: at_most - 1] + "…"


def label_ends(figure: Figure, axes: Axes, ends: Sequence[End]) -> None:
    """Names every line at its right end, moved apart where they would overlap."""
    figure.draw_without_rendering()
    to_points = 72 / figure.dpi
    heights = (
        axes.transData.transform([(0, end.value) for end in ends])[:, 1] - axes.bbox.y0
    ) * to_points
    places = apart(np.nan_to_num(heights), gap=LABEL_POINTS, top=axes.bbox.height * to_points)
    for end, height in zip(ends, places, strict=True):
        axes.annotate(
            end.text,
            (1, 0),
            xycoords="axes fraction",
            xytext=(8, height),
            textcoords="offset points",
            va="center",
            color=end.colour,
            fontsize=11,
        )


def apart(heights: Sequence[float], *, gap: float, top: float) -> list[float]:
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
