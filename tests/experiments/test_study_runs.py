from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from study_folders import SEALED, write_cell, write_run

from scalepet.errors import ConfigError, DataError
from scalepet.experiments.cells import choose_cells
from scalepet.experiments.runs import is_study
from scalepet.experiments.study_runs import Studies, read_studies
from scalepet.recipes.study import Cell
from scalepet.tracking import seal

SEEDS = [(0, 0), (1, 0)]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two cells, each with tries at factors .3 and 1 and a repeat at 1."""
    folder = tmp_path / "demo"
    for method, tuned in (("lora", 100), ("bitfit", 50)):
        write_cell(
            folder, "bert", "news", method, score=0.5, tuned=tuned, seeds=SEEDS, factors=(0.3, 1.0)
        )
    (folder / "study.yaml").write_text("output: demo\n")
    return folder


def runs_of(study: Path, method: str) -> list[Path]:
    return sorted((study / "runs" / "bert" / "news" / method).iterdir())


def reasons(studies: Studies) -> dict[str, str]:
    return {Path(out.folder).parent.name: out.reason for out in studies.left_out}


def test_all_runs_come_back(study: Path) -> None:
    studies = read_studies([study])
    assert is_study(study) and not is_study(study / "runs")
    assert len(studies.runs) == 6 and not studies.left_out
    run = next(run for run in studies.runs if run.cell.method == "lora" and run.cell.factor == 1)
    assert (run.metric, run.score, run.eval_score, run.kind) == ("accuracy", 0.5, 0.5, "lora")
    assert run.run.facts.counts.masked == 100


def test_a_study_given_twice_counts_once(study: Path) -> None:
    again = study.parent / "demo" / ".." / "demo"
    assert len(read_studies([study, again]).runs) == 6


def test_what_was_tampered_with_is_named(study: Path) -> None:
    (folder, other, third) = runs_of(study, "lora")
    result = json.loads((folder / "result.json").read_text())
    result["metrics"]["test/accuracy"] = 0.99
    (folder / "result.json").write_text(json.dumps(result))
    # A seal that was made anew over less than all of it, and none at all.
    seal(other, [name for name in SEALED if name != "cell.json"])
    (third / "seal.json").unlink()
    studies = read_studies([study])
    assert [run.cell.method for run in studies.runs] == ["bitfit"] * 3
    assert [out.reason for out in studies.left_out] == [
        "result.json: changed after the run had ended",
        "cell.json: not under the seal of the run",
        "seal.json: missing; the run has not ended",
    ]
    assert [out.folder for out in studies.left_out] == [
        f"runs/bert/news/lora/{path.name}" for path in (folder, other, third)
    ]


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (lambda path: (path / "result.json").unlink(), "result.json: missing"),
        (lambda path: (path / "cell.json").unlink(), "cell.json: missing; no run of a study"),
        (lambda path: (path / "seal.json").write_text("{"), "seal.json: cannot be read"),
        (
            lambda path: (path / "failed.json").write_text('{"faults": ["no rows", "no label"]}'),
            "failed: no rows; no label",
        ),
        (lambda path: (path / "failed.json").write_text("{"), "failed: failed.json cannot be read"),
        (
            lambda path: [shutil.rmtree(path), path.mkdir()],
            "cell.json: missing; no run of a study",
        ),
    ],
)
def test_what_is_half_written_or_failed_is_named(study: Path, breaks: object, reason: str) -> None:
    breaks(runs_of(study, "lora")[0])  # type: ignore[operator]
    studies = read_studies([study])
    assert len(studies.runs) == 5
    (found,) = studies.left_out
    assert reason in found.reason


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("cell.json", {"study": "demo"}, "it holds no cell"),
        ("result.json", {"best_step": 1, "metrics": {"eval/accuracy": 0.5}}, "test/accuracy"),
        (
            "result.json",
            {"best_step": 1, "metrics": {"eval/accuracy": 0.5, "test/accuracy": float("nan")}},
            "test score is nan",
        ),
        ("run.json", {}, "counts: Field required"),
    ],
)
def test_what_is_whole_and_says_too_little_is_named(
    study: Path, file: str, content: object, reason: str
) -> None:
    folder = runs_of(study, "lora")[0]
    (folder / file).write_text(json.dumps(content))
    seal(folder, SEALED)
    (found,) = read_studies([study]).left_out
    assert reason in found.reason
    assert str(study) not in found.reason


def test_nothing_whole_is_refused_with_all_reasons(study: Path) -> None:
    for method in ("lora", "bitfit"):
        for folder in runs_of(study, method):
            (folder / "seal.json").unlink()
    with pytest.raises(ConfigError) as caught:
        read_studies([study])
    assert len(caught.value.faults) == 7
    shutil.rmtree(study / "runs")
    with pytest.raises(ConfigError, match="no finished run"):
        read_studies([study])


def test_two_studies_of_one_grid_are_kept_apart(study: Path) -> None:
    for name, backbone in (("more", "bert"), ("t5", "t5")):
        write_cell(study.parent / name, backbone, "news", "lora", score=0.7, tuned=9, seeds=SEEDS)
    studies = read_studies([study, study.parent / "more", study.parent / "t5"])
    assert {run.backbone for run in studies.runs} == {"bert (demo)", "bert (more)", "t5"}


def test_two_backbones_of_one_name_are_kept_apart(study: Path) -> None:
    """They have other tasks, so no grid is shared; a study with the same backbone mixes nothing."""
    (other, same) = (study.parent / name for name in ("other", "same"))
    write_cell(
        other, "bert", "mood", "lora", score=0.7, tuned=9, seeds=SEEDS,
        path="assets/large", backbone_size=30_000_000,
    )  # fmt: skip
    write_cell(same, "bert", "kind", "lora", score=0.7, tuned=9, seeds=SEEDS)
    assert {run.backbone for run in read_studies([study, same]).runs} == {"bert"}
    studies = read_studies([study, other])
    assert {run.backbone for run in studies.runs} == {"bert (demo)", "bert (other)"}
    cells, _ = choose_cells(studies.runs)
    assert {(cell.key.task, cell.backbone_size) for cell in cells} == {
        ("news", 1_000_000),
        ("mood", 30_000_000),
    }


def test_the_rate_is_chosen_on_eval_at_the_first_seeds(study: Path) -> None:
    cells, left_out = choose_cells(read_studies([study]).runs)
    assert [cell.key.method for cell in cells] == ["bitfit", "lora"] and not left_out
    for cell in cells:
        assert cell.factor == 1.0  # .3 is better on test
        assert cell.tries == {0.3: pytest.approx(0.4), 1.0: 0.5}
        assert cell.seeds == ((0, 0), (1, 0)) and cell.mean == 0.5


@pytest.mark.parametrize(
    ("study_file", "factor"),
    [
        ("position_seeds: [1, 0]\ndata_seeds: [0]\n", 3.0),
        ("position_seeds: [0, 1]\ndata_seeds: [0]\n", 1.0),
        (
            "position_seeds: [0, 1]\ndata_seeds: [0]\n"
            "methods: {lora: {position_seeds: [1, 0], data_seeds: null}}\n",
            3.0,
        ),
        ("output: here\n", 1.0),
    ],
)
def test_the_first_seeds_are_those_that_the_study_names_first(
    tmp_path: Path, study_file: str, factor: float
) -> None:
    """A study that grew from one factor to two may have tried both at every seed."""
    scores = {(1, 1.0): 0.5, (1, 3.0): 0.7, (0, 1.0): 0.6, (0, 3.0): 0.55}
    for (seed, tried), score in scores.items():
        cell = cell_of(factor=tried, learning_rate=tried, position_seed=seed)
        write_run(tmp_path / "s", cell, score=score, tuned=5)
    (tmp_path / "s" / "study.yaml").write_text(study_file)
    ((cell_scores,), _) = choose_cells(read_studies([tmp_path / "s"]).runs)
    assert cell_scores.factor == factor
    assert cell_scores.seeds == ((0, 0), (1, 0))


def test_a_study_file_that_holds_no_seeds_is_refused(study: Path) -> None:
    (study / "study.yaml").write_text("position_seeds: few\n")
    with pytest.raises(DataError, match=r"study.yaml: no study \(position_seeds\)"):
        read_studies([study])


def test_of_equal_tries_the_one_nearest_to_one_is_taken(tmp_path: Path) -> None:
    for factor in (0.25, 3.0, 10.0):
        cell = cell_of(factor=factor, learning_rate=factor)
        write_run(tmp_path / "s", cell, score=factor / 20, eval_score=0.5, tuned=5)
    ((cell_scores,), _) = choose_cells(read_studies([tmp_path / "s"]).runs)
    assert cell_scores.factor == 3.0
    assert cell_scores.deviation is None and cell_scores.scores == (0.15,)


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        write_run(tmp_path / "s", cell_of(factor=1.0, learning_rate=rate), score=rate, tuned=5)
    cells, (again,) = choose_cells(read_studies([tmp_path / "s"]).runs)
    assert cells[0].scores == (0.1,)
    assert again.folder == "runs/bert/news/lora/lr0.2-p0-d0"
    assert again.reason == "the same cell, rate and seeds as lr0.1-p0-d0 beside it"


def cell_of(*, factor: float, learning_rate: float, position_seed: int = 0) -> Cell:
    return Cell(
        study="s", backbone="bert", task="news", method="lora", budget=None, matches=None,
        position_seed=position_seed, data_seed=0, learning_rate=learning_rate, factor=factor,
    )  # fmt: skip
