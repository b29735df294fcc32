from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from study_folders import write_cell

from scalepet.experiments.cells import choose_cells
from scalepet.experiments.curve_figures import draw_curves_of
from scalepet.experiments.score_curves import curves
from scalepet.experiments.study_runs import read_studies


def test_a_method_larger_than_all_budgets_or_smaller_is_inside_of_the_panel(tmp_path: Path) -> None:
    sizes = {"bitfit": 10, "lora": 90_000, "all-biases": 3_000, "full": 1_000_000}
    for method, tuned in sizes.items():
        kind = "full" if method == "all-biases" else None
        write_cell(
            tmp_path, "bert", "news", method, score=0.8, tuned=tuned, kind=kind, seeds=[(0, 0)]
        )
    for budget in (100, 1_000):
        write_cell(
            tmp_path, "bert", "news", "apet",
            score=0.6, tuned=budget, budget=budget, seeds=[(0, 0)],
        )  # fmt: skip
    figure = Figure()
    draw_curves_of(figure, curves(choose_cells(read_studies([tmp_path]).runs)[0]), origin="here")
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    # Full tuning is a line from side to side; what else is of its kind has a size.
    assert left < 10 and 90_000 < right < 1_000_000
    assert {"bitfit", "lora", "all-biases"} <= {text.get_text() for text in axes.texts}
    assert "full" not in {text.get_text() for text in axes.texts}
