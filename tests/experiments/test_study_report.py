from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from study_folders import SEALED, write_cell, write_study

from scalepet.cli.look import report
from scalepet.errors import CheckpointError, ConfigError
from scalepet.experiments import study_report
from scalepet.experiments.study_report import StudyReport, report_studies, summary
from scalepet.experiments.table import Column, Table
from scalepet.tracking import seal

PARTS = ("overview", "methods", "same-count", "curves", "positions", "convergence", "cost")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "demo", factors=(0.5, 1.0))


@pytest.fixture(scope="module")
def whole(study: Path) -> StudyReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_report, "DOTS_PER_INCH", 30)
        patch.chdir(study.parent)
        return report_studies([study], study / "report")


def written_in(path: Path) -> str:
    """The words of a file; matplotlib notes each line of a text in an SVG as a comment."""
    text = path.read_text()
    if path.suffix == ".svg":
        text = " ".join(re.findall(r"<!-- (.*?) -->", text, re.DOTALL))
    return " ".join(text.split())


def rows(report: StudyReport, name: str) -> list[dict[str, str]]:
    lines = (report.page.parent / "tables" / f"{name}.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def test_the_curves_give_back_what_the_scores_were_made_of(whole: StudyReport) -> None:
    by_backbone = {row["backbone"]: row for row in rows(whole, "c3_c4_thresholds")}
    for backbone, midpoint in (("small", 3.5), ("large", 2.5)):
        row = by_backbone[backbone]
        assert float(row["midpoint"]) == pytest.approx(10**midpoint, rel=0.3)
        assert float(row["slope"]) == pytest.approx(3.0, rel=0.25)
        assert float(row["R²"]) > 0.99
        assert row["to beat"] == "0.25" and row["low"] == "0"  # the head scores .3
    assert float(by_backbone["large"]["high"]) <= float(by_backbone["small"]["high"])


def test_the_tables_hold_what_was_run(whole: StudyReport) -> None:
    small, large = sorted(rows(whole, "c1_methods"), key=lambda row: -float(row["spread"]))
    assert (small["backbone"], large["backbone"]) == ("small", "large")
    assert small["spread over"] == "prompt, bitfit, lora, adapter"
    gaps = rows(whole, "c2_gaps")
    assert len(gaps) == 8 and {row["position seeds"] for row in gaps} == {"3"}
    mean = sum(float(row["gap"]) for row in gaps if row["backbone"] == "small") / 4
    assert mean == pytest.approx(0.02, abs=0.012)
    cells = rows(whole, "cells")
    assert {row["factor"] for row in cells} == {"1"} and {row["tries"] for row in cells} == {"2"}
    assert len(rows(whole, "positions")) == 8
    assert len(rows(whole, "costs")) == len(cells) == 38


def test_the_page_needs_nothing_but_itself(whole: StudyReport) -> None:
    page = whole.page.read_text()
    for part in PARTS:
        assert f'<section id="{part}">' in page and f'href="#{part}"' in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == len(list((whole.page.parent / "figures").glob("*.svg"))) == 10
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page) and "<script" not in page
    for link in re.findall(r'href="([^#"][^"]*)"', page):
        assert (whole.page.parent / link).is_file(), link


def test_every_table_and_figure_says_where_it_comes_from(whole: StudyReport) -> None:
    origin = (
        "commit abcdef012345; position seeds 0, 1, 2; data seeds 0, 1, 2; scalepet report demo;"
        " runs made by scalepet sweep study.yaml"
    )
    folder = whole.page.parent
    files = [*(folder / "tables").iterdir(), *(folder / "figures").glob("*.svg")]
    assert len(files) == 2 * 7 + 10
    for path in files:
        assert origin in written_in(path), path
    figures = (folder / "figures").glob("*.png")
    assert all(path.with_suffix(".svg").exists() for path in figures)
    assert whole.page.read_text().count(origin) == 1 + 7 + 10


def test_two_reports_are_the_same_to_the_last_byte(
    study: Path, whole: StudyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    monkeypatch.chdir(study.parent)
    report_studies([Path("demo"), study / ".." / "demo"], tmp_path / "again")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (whole.page.parent, tmp_path / "again")
    )
    assert first.keys() == second.keys() and len(first) == 36
    assert [name for name in first if first[name] != second[name]] == []


def test_a_terminal_sees_the_claims_in_short(whole: StudyReport) -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(summary(whole.found))
    lines = capture.get().splitlines()
    assert all(word in lines[1] for word in ("spread", "|gap|", "low", "high"))
    assert "small" in lines[4] and "0 (0 to" in lines[4]


def test_a_poor_study_makes_a_short_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One method, one seed, one size; beside it a run that failed and one that was changed."""
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    study = tmp_path / "poor"
    write_cell(
        study, "bert", "a < b", "lora", score=0.5, tuned=344, seeds=[(0, 0)], factors=(0.3, 1, 3)
    )
    (study / "study.yaml").write_text("output: poor\n")
    tried, changed, _ = sorted((study / "runs/bert/a < b/lora").iterdir())
    (tried / "failed.json").write_text(json.dumps({"faults": ["the loss is nan"]}))
    (changed / "metrics.jsonl").write_text("")
    report([study], output=tmp_path / "out")
    said = capsys.readouterr()
    assert f"left out: poor/runs/bert/a < b/lora/{tried.name}: failed: the loss is nan" in said.err
    assert "metrics.jsonl: changed after the run had ended" in said.err
    assert f"page {tmp_path / 'out' / 'index.html'}" in said.out
    page = (tmp_path / "out" / "index.html").read_text()
    for sentence in (
        "2 run folders left out",
        "No cell of this study matches the count of another method.",
        "No method was run at two or more sizes.",
        "how the spread changes with scale is not shown",
        "One size of backbone",
        "failed: the loss is nan",
        "a &lt; b",
    ):
        assert sentence in page, sentence
    names = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert names == {"c1_methods", "convergence_bert_a___b", "costs"}


def test_what_an_earlier_report_has_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is missing at first; later a method is there no more."""
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    study, out = tmp_path / "s", tmp_path / "out"
    write_cell(study, "bert", "a.b", "lora", score=0.5, tuned=100, seeds=[(0, 0)])
    broken = study / "runs/bert/mood/lora/lr1-p0-d0"
    broken.mkdir(parents=True)
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "mine.csv").write_text("of somebody else")
    report_studies([study], out)
    assert (out / "tables" / "left_out.md").exists() and (out / "tables" / "mine.csv").exists()
    (out / "tables" / "notes.txt").write_text("kept")
    (out / "figures" / "mine.png").write_text("of somebody else")
    assert (out / "figures" / "c1_methods.svg").exists()
    shutil.rmtree(study / "runs/bert/mood")
    report_studies([study], out)
    tables = {path.name for path in (out / "tables").iterdir()}
    names = ("c1_methods", "cells", "costs")
    mine = {"notes.txt", "mine.csv"}
    assert tables == {f"{n}.{kind}" for n in names for kind in ("csv", "md")} | mine
    figures = {path.name for path in (out / "figures").iterdir()}
    names = ("c1_methods", "convergence_bert_a.b", "costs")
    assert figures == {f"{n}.{kind}" for n in names for kind in ("png", "svg")} | {"mine.png"}


@pytest.mark.parametrize("name", ["index.html", "tables/costs.md", "figures/costs.png"])
def test_a_file_of_somebody_else_is_not_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    study, out = tmp_path / "s", tmp_path / "out"
    write_cell(study, "bert", "news", "lora", score=0.5, tuned=100, seeds=[(0, 0)])
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(CheckpointError, match="which this command would write"):
        report_studies([study], out)
    assert [path for path in out.rglob("*") if path.is_file()] == [out / name]
    assert (out / name).read_text() == "mine"


def test_a_report_of_0_1_which_kept_no_record_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    study, out = tmp_path / "s", tmp_path / "out"
    write_cell(study, "bert", "news", "lora", score=0.5, tuned=100, seeds=[(0, 0)])
    (study / "runs/bert/mood/lora/lr1-p0-d0").mkdir(parents=True)
    report_studies([study], out)
    (out / "scalepet-files.json").unlink()
    (out / "tables" / "mine.csv").write_text("of somebody else")
    assert (out / "tables" / "left_out.csv").exists()
    shutil.rmtree(study / "runs/bert/mood")
    report_studies([study], out)
    assert not (out / "tables" / "left_out.csv").exists()
    assert (out / "tables" / "mine.csv").read_text() == "of somebody else"


def test_what_has_no_measured_cost_is_not_in_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    study = tmp_path / "s"
    for method in ("bitfit", "lora"):
        write_cell(study, "bert", "news", method, score=0.5, tuned=100, seeds=[(0, 0)])
    forget_costs(study / "runs/bert/news/lora")
    found = report_studies([study], tmp_path / "out")
    assert [row["method"] for row in rows(found, "costs")] == ["bitfit"]
    forget_costs(study / "runs/bert/news/bitfit")
    found = report_studies([study], tmp_path / "out")
    assert "No run has measured its cost." in found.page.read_text()
    assert not (tmp_path / "out" / "tables" / "costs.csv").exists()


def forget_costs(runs: Path) -> None:
    for folder in runs.iterdir():
        result = json.loads((folder / "result.json").read_text())
        del result["peak_memory_bytes"]
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "metrics.jsonl").write_text("")
        seal(folder, SEALED)


def test_studies_may_lie_here_and_be_called_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two dollars in a name are no formula, in a legend and at a tick as elsewhere."""
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    for name, size in (("one$^$", 1_000_000), ("two$^$", 30_000_000)):
        for method in ("bitfit", "lora"):
            write_cell(
                tmp_path / name, "bert", "news", method,
                score=0.5, tuned=100, seeds=[(0, 0)], backbone_size=size,
            )  # fmt: skip
    monkeypatch.chdir(tmp_path / "one$^$")
    made = report_studies([Path(), Path("../two$^$")], tmp_path / "out")
    assert "<h1>Scaling study: one$^$, two$^$</h1>" in made.page.read_text()
    shown = written_in(tmp_path / "out" / "figures" / "c1_spread.svg")
    assert "bert (one$^$)" in shown and "bert (two$^$)" in shown


def test_no_two_figures_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_report, "DOTS_PER_INCH", 30)
    for backbone, method, score in (("bert", "tiny_apet", 0.3), ("bert_tiny", "apet", 0.6)):
        for budget in (10, 100):
            write_cell(
                tmp_path / "s", backbone, "news", method, kind="apet",
                score=score, tuned=budget, budget=budget, seeds=[(0, 0)],
            )  # fmt: skip
    made = report_studies([tmp_path / "s"], tmp_path / "out")
    page = made.page.read_text()
    name = "c3_curve_bert_tiny_apet"
    for one in (name, f"{name}-2"):
        assert f'id="figure-{one}"' in page and f'href="figures/{one}.svg"' in page
    first, second = (tmp_path / "out" / "figures" / f"{n}.svg" for n in (name, f"{name}-2"))
    assert first.read_bytes() != second.read_bytes()


def test_studies_and_runs_are_not_mixed(study: Path, tmp_path: Path) -> None:
    run = next((study / "runs").rglob("cell.json")).parent
    with pytest.raises(ConfigError) as caught:
        report([study, run], metric="eval/f1", figure=tmp_path / "x.png")
    assert len(caught.value.faults) == 3
    assert "allowed: studies alone, or runs alone" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="--output .* goes with folders of studies"):
        report([run], output=tmp_path)


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "s"
    write_cell(study, "bert", "news", "lora", score=0.5, tuned=100, seeds=[(0, 0)])
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        report_studies([study], tmp_path / "file")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["/x/bin/scalepet", "sweep", "s.yaml"], "scalepet sweep s.yaml"),
        (["/x/scalepet/__main__.py", "sweep", "a b.yaml"], "scalepet sweep 'a b.yaml'"),
        ("/x/bin/scalepet train run.yaml", "scalepet train run.yaml"),
        ("scalepet sweep s.yaml --worker --only a/b/c --only a/b/d", "scalepet sweep s.yaml"),
        ([], "unknown"),
    ],
)
def test_a_command_is_shown_without_its_machine_and_its_share_of_cells(
    command: str | list[str], shown: str, whole: StudyReport
) -> None:
    run = whole.found.cells[0].runs[0]
    facts = run.run.facts.model_copy(update={"command": command})
    moved = dataclasses.replace(run, run=dataclasses.replace(run.run, facts=facts))
    assert study_report._made_by(moved) == shown


def test_a_table_is_three_texts() -> None:
    table = Table(
        "t",
        "Title",
        "About.",
        [Column("a|b"), Column("n", ","), Column("x", ".2f")],
        [["p|q", 1234, 1 / 3], ["<r>", None, None]],
    )
    assert table.as_csv(origin="from") == "# Title\n# from\na|b,n,x\np|q,1234,0.333333\n<r>,,\n"
    assert table.as_markdown(origin="from").splitlines()[4:8] == [
        "| a\\|b | n | x |",
        "| --- | ---: | ---: |",
        "| p\\|q | 1,234 | 0.33 |",
        "| <r> | - | - |",
    ]
    assert "<td>&lt;r&gt;</td>" in table.as_html()
    assert '<td class="number">1,234</td>' in table.as_html()
