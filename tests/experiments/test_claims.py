from __future__ import annotations

from pathlib import Path

import pytest
from study_folders import write_run

from scalepet.experiments.cells import CellScores, choose_cells
from scalepet.experiments.claims import gaps, spreads
from scalepet.experiments.costs import cost_of, loss_lines, shown_in_convergence
from scalepet.experiments.score_curves import curves
from scalepet.experiments.study_runs import read_studies
from scalepet.recipes.study import Cell


def cells_of(study: Path) -> tuple[CellScores, ...]:
    return choose_cells(read_studies([study]).runs)[0]


def write(
    study: Path,
    method: str,
    scores: dict[tuple[int, int], float],
    *,
    tuned: int = 100,
    budget: int | None = None,
    matches: str | None = None,
    kind: str | None = None,
    head: int = 0,
    majority: float | None = 0.25,
    metric: str = "accuracy",
    step_seconds: float = 0.01,
) -> None:
    """A cell with these test scores by (position seed, data seed)."""
    for (position, data), score in scores.items():
        cell = Cell(
            study="s", backbone="bert", task="news", method=method, budget=budget, matches=matches,
            position_seed=position, data_seed=data, learning_rate=0.1, factor=1.0,
        )  # fmt: skip
        write_run(
            study, cell, score=score, tuned=tuned, kind=kind, head=head, majority=majority,
            metric=metric, step_seconds=step_seconds,
        )  # fmt: skip


def test_the_spread_is_over_the_means_of_four_methods(tmp_path: Path) -> None:
    write(tmp_path, "lora", {(0, 0): 0.7, (0, 1): 0.9})
    write(tmp_path, "prompt", {(0, 0): 0.6})
    write(tmp_path, "adapter", {(0, 0): 0.7})
    write(tmp_path, "full", {(0, 0): 0.99})
    write(tmp_path, "apet", {(0, 0): 0.1}, budget=100)
    (spread,) = spreads(cells_of(tmp_path))
    assert spread.means == {"prompt": 0.6, "lora": pytest.approx(0.8), "adapter": 0.7}
    assert spread.value == pytest.approx(0.1)
    assert spread.backbone_size == 1_000_000


def test_of_two_loras_the_one_that_is_called_so_counts(tmp_path: Path) -> None:
    write(tmp_path, "a-lora", {(0, 0): 0.1}, kind="lora")
    write(tmp_path, "lora", {(0, 0): 0.8})
    (spread,) = spreads(cells_of(tmp_path))
    assert spread.means == {"lora": 0.8} and spread.value is None


def test_where_none_is_called_like_its_kind_the_largest_counts(tmp_path: Path) -> None:
    write(tmp_path, "a-lora", {(0, 0): 0.1}, kind="lora", tuned=10)
    write(tmp_path, "b-lora", {(0, 0): 0.8}, kind="lora", tuned=20)
    (spread,) = spreads(cells_of(tmp_path))
    assert spread.means == {"b-lora": 0.8}


def test_the_goal_is_the_method_called_full(tmp_path: Path) -> None:
    """Tuning all biases is of the same kind; a curve reaches it a hundred times sooner."""
    for size, score in ((1_000, 0.61), (100_000, 0.85)):
        write(tmp_path, "apet", {(0, 0): score}, tuned=size, budget=size)
    few = {(0, 0): 0.61, (0, 1): 0.60, (0, 2): 0.62}
    write(tmp_path, "all-biases", few, tuned=3_000, kind="full")
    write(tmp_path, "full", {(0, 0): 0.86, (0, 1): 0.84, (0, 2): 0.85}, tuned=1_000_000)
    (curve,) = curves(cells_of(tmp_path))
    goal = curve.other("full")
    assert goal is not None and goal.key.method == "full"
    assert curve.high.value == 100_000


def test_a_gap_is_over_position_seeds(tmp_path: Path) -> None:
    write(tmp_path, "lora", {(0, 0): 0.80, (0, 1): 0.70})
    scores = {(0, 0): 0.70, (1, 0): 0.72, (2, 0): 0.74}
    write(tmp_path, "apet", scores, budget=100, matches="lora")
    write(tmp_path, "apet", {(0, 0): 0.2}, budget=100)
    write(tmp_path, "apet", {(0, 0): 0.3}, budget=50, matches="bitfit")  # which is not there
    (gap,) = gaps(cells_of(tmp_path))
    assert gap.score == 0.80  # data seed 1 has other rows, which APET was not given
    assert gap.value == pytest.approx(0.08) and gap.deviation == pytest.approx(0.02)
    assert gap.data_seeds == (0,) and gap.is_paired


def test_data_seeds_are_averaged_before_positions_are_compared(tmp_path: Path) -> None:
    write(tmp_path, "lora", {(0, 0): 0.8, (0, 1): 0.6})
    scores = {(0, 0): 0.7, (0, 1): 0.5, (1, 0): 0.6, (1, 1): 0.6}
    write(tmp_path, "apet", scores, budget=100, matches="lora")
    (gap,) = gaps(cells_of(tmp_path))
    assert gap.by_position == {0: pytest.approx(0.6), 1: pytest.approx(0.6)}
    assert gap.value == pytest.approx(0.1)
    assert gap.deviation is None  # of two positions


def test_without_common_data_seeds_each_has_its_own(tmp_path: Path) -> None:
    write(tmp_path, "lora", {(0, 5): 0.8, (0, 6): 0.6})
    write(tmp_path, "apet", {(0, 0): 0.5}, budget=100, matches="lora")
    (gap,) = gaps(cells_of(tmp_path))
    assert gap.value == pytest.approx(0.2) and not gap.is_paired


def test_a_curve_has_every_size_once_and_the_head_at_zero(tmp_path: Path) -> None:
    """Of 400 rows at .25, 115 right ones beat the guess and 114 do not."""
    write(tmp_path, "head", {(0, 0): 114 / 400}, tuned=0, head=7)
    write(tmp_path, "full", {(0, 0): 0.88, (0, 1): 0.92}, tuned=1_000_000, head=7)
    for size, right in ((10, 114), (100, 115), (1_000, 347)):
        write(tmp_path, "apet", {(0, 0): right / 400}, tuned=size, budget=size, head=7)
    write(tmp_path, "apet", {(0, 0): 0.1}, tuned=100, budget=100, matches="lora", head=7)
    (curve,) = curves(cells_of(tmp_path))
    assert [point.tuned for point in curve.points] == [10, 100, 1_000]
    assert curve.points[1].mean == 115 / 400
    assert curve.low.value == 100 and curve.head_size == 7
    assert curve.backbone_size == 1_000_000  # of which full tuning has frozen nothing
    # 144 of 400 are the fewest that beat 114 of 400 in Fisher's test.
    assert curve.over_head.value == 1_000
    # .90 - .0283 = .8717; 347 / 400 = .8675.
    assert curve.high.value is None and curve.high.reason == "not reached by 1,000"
    assert curve.interval is None


def test_a_budget_that_came_to_nothing_is_no_point_of_a_curve(tmp_path: Path) -> None:
    for budget, tuned in ((100, 0), (1_000, 700), (10_000, 9_000)):
        scores = {(0, 0): tuned / 10_000}
        write(tmp_path, "released", scores, tuned=tuned, budget=budget)
    (curve,) = curves(cells_of(tmp_path))
    assert [point.tuned for point in curve.points] == [700, 9_000]


def test_texts_are_held_against_the_score_before_training(tmp_path: Path) -> None:
    """The fixture scores .05 at step 0: 20 of 400 rows, beaten by 33 and not by 32."""
    for size, right in ((10, 32), (100, 33), (1_000, 200)):
        write(
            tmp_path, "apet", {(0, 0): right / 400}, tuned=size, budget=size,
            majority=None, metric="exact_match",
        )  # fmt: skip
    (curve,) = curves(cells_of(tmp_path))
    assert curve.baseline is not None
    assert (curve.baseline.rate, curve.baseline.num_rows) == (pytest.approx(0.05), 400)
    assert curve.low.value == 100
    assert curve.high.reason == "the study has no full tuning here"
    assert curve.over_head.value is None


def test_a_metric_that_is_no_mean_over_rows_is_not_tested(tmp_path: Path) -> None:
    for size in (10, 100):
        write(tmp_path, "apet", {(0, 0): 0.9}, tuned=size, budget=size, metric="matthews")
    (curve,) = curves(cells_of(tmp_path))
    assert curve.low.value is None
    assert curve.low.reason == "matthews is no mean over rows, which the test counts"


def test_costs_and_lines_are_means_over_seeds(tmp_path: Path) -> None:
    write(tmp_path, "lora", {(0, 0): 0.8, (0, 1): 0.6}, step_seconds=0.02)
    (cell,) = cells_of(tmp_path)
    cost = cost_of(cell)
    assert cost.step_seconds == pytest.approx(0.02)
    assert cost.peak_memory_bytes == 8 * 1_000_000 + 16 * 100 + 2**28
    lines = loss_lines(cell)
    assert lines is not None
    (steps, losses), (seconds, same) = lines
    assert steps == [float(step) for step in range(2, 21, 2)] and losses == same
    assert seconds == pytest.approx([0.02 * step for step in steps])
    single = [run.run.series("train", "loss")[1][0] for run in cell.runs]
    assert losses[0] == pytest.approx(sum(single) / 2)


def test_of_many_sizes_three_are_drawn(tmp_path: Path) -> None:
    write(tmp_path, "lora", {(0, 0): 0.8}, tuned=900)
    for size in (10, 100, 1_000, 10_000):
        write(tmp_path, "apet", {(0, 0): 0.5}, tuned=size, budget=size)
    write(tmp_path, "rows", {(0, 0): 0.5}, tuned=100, budget=100, kind="apet")
    shown = shown_in_convergence(cells_of(tmp_path))
    assert [cell.label for cell in shown] == ["lora", "apet 10", "apet 1,000", "apet 10,000"]
