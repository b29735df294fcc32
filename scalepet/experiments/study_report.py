"""The report of a study: from run folders alone to tables, figures and one page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as RichTable
from rich.text import Text

from scalepet.experiments.cells import choose_cells
from scalepet.experiments.claims import gaps, spreads
from scalepet.experiments.costs import cost_of
from scalepet.experiments.overlap import Masks, looked_at, overlaps, placements
from scalepet.experiments.score_curves import Curve, curves
from scalepet.experiments.study_page import Section, render
from scalepet.experiments.study_runs import Studies, StudyRun, read_studies
from scalepet.experiments.study_sections import Findings, sections_of
from scalepet.experiments.study_tables import interval_text
from scalepet.experiments.style import drawing
from scalepet.experiments.table import NONE
from scalepet.experiments.thresholds import Threshold
from scalepet.files import unwritable
from scalepet.owned import RECORD, check_free, note_files, own_files

PAGE = "index.html"
DOTS_PER_INCH = 160
MAX_NAMED = 4


@dataclass(frozen=True)
class StudyReport:
    """What was found, and the page that shows it."""

    found: Findings
    page: Path


def report_studies(folders: Sequence[Path], output: Path) -> StudyReport:
    """Read all runs of these studies, and write tables (csv, markdown), figures (png, svg) and
    index.html. The same folders give the same bytes: what an earlier report has left in tables/ and
    figures/ goes.

    Args:
        folders: of studies.
        output: a folder, made when missing; what an earlier report has written there is replaced.

    Raises:
        ConfigError: if no run is whole.
        CheckpointError: the folder cannot be written, or has files of these names that are no
            report's.
    """
    own = _own_files(output)
    check_free(output, [PAGE, RECORD], own=own)
    studies = read_studies(folders)
    found = find(studies)
    origin = _origin(studies)
    sections = sections_of(found, origin=origin)
    names = ", ".join(Path(folder).resolve().name for folder in studies.folders)
    written = _names_of(sections)
    check_free(output, written, own=own)
    note_files(output, written | own)
    drawings = _write_figures(sections, output / "figures")
    page = render(f"Scaling study: {names}", sections, origin=origin, drawings=drawings)
    try:
        _write_tables(sections, output / "tables", origin=origin)
        (output / PAGE).write_text(page, encoding="utf-8")
        for name in own - written:
            (output / name).unlink(missing_ok=True)
        note_files(output, written)
    except OSError as error:
        raise unwritable(output, error) from error
    return StudyReport(found, output / PAGE)


def _names_of(sections: Sequence[Section]) -> set[str]:
    """All that a report writes, below its folder."""
    tables = [table.name for section in sections for table in section.tables]
    figures = [picture.name for section in sections for picture in section.pictures]
    return {
        PAGE,
        RECORD,
        *(f"tables/{name}.{suffix}" for name in tables for suffix in ("csv", "md")),
        *(f"figures/{name}.{suffix}" for name in figures for suffix in ("png", "svg")),
    }


def _own_files(output: Path) -> set[str]:
    """What an earlier report has written; 0.1 kept no record, but its page names it."""
    own = own_files(output)
    if own or not (output / PAGE).is_file():
        return own
    page = (output / PAGE).read_text(encoding="utf-8", errors="replace")
    if "<title>Scaling study: " not in page or '<p class="origin">commit ' not in page:
        return set()
    return {PAGE, *re.findall(r'<a href="((?:tables|figures)/[^"/]+)">', page)}


def find(studies: Studies) -> Findings:
    """All numbers of a report."""
    cells, again = choose_cells(studies.runs)
    masks = Masks()
    shared = overlaps(looked_at(cells), masks)
    return Findings(
        cells=cells,
        spreads=spreads(cells),
        gaps=gaps(cells),
        curves=curves(cells),
        placed=placements(cells),
        overlaps=shared,
        missing_masks=sorted(masks.missing),
        costs=[cost_of(cell) for cell in cells],
        left_out=[*studies.left_out, *again],
    )


def _origin(studies: Studies) -> str:
    """Commits, seeds and command, as they stand beside every figure and table."""
    runs = studies.runs
    commits = sorted({run.run.facts.git_commit or "unknown" for run in runs})
    positions = sorted({run.cell.position_seed for run in runs})
    data = sorted({run.cell.data_seed for run in runs})
    made = sorted({_made_by(run) for run in runs})
    command = shlex.join(["scalepet", "report", *studies.folders])
    return (
        f"commit {_few(commits)}; position seeds {_listed(positions)};"
        f" data seeds {_listed(data)}; {command}; runs made by {_few(made)}"
    )


def _few(words: Sequence[str]) -> str:
    """All of a few; of many processes with a command each the first ones."""
    shown = ", ".join(words[:MAX_NAMED])
    return shown + (f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else "")


def _made_by(run: StudyRun) -> str:
    """The command of a run without the folder of the program, which is this machine's."""
    command = run.run.facts.command
    words = shlex.split(command) if isinstance(command, str) else command
    if not words:
        return "unknown"
    program = Path(words[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *_without_share(words[1:])])


def _without_share(words: Sequence[str]) -> list[str]:
    """The command of a whole sweep, whichever of its cells this process had."""
    kept = [word for word in words if word != "--worker"]
    while "--only" in kept:
        place = kept.index("--only")
        del kept[place : place + 2]
    return kept


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _write_figures(sections: Sequence[Section], folder: Path) -> dict[str, bytes]:
    drawings = {}
    for picture in (picture for section in sections for picture in section.pictures):
        assert picture.name not in drawings, picture.name
        png, svg = folder / f"{picture.name}.png", folder / f"{picture.name}.svg"
        width, height = picture.inches
        with drawing(png, svg, width=width, height=height, dots_per_inch=DOTS_PER_INCH) as figure:
            picture.draw(figure)
        drawings[picture.name] = svg.read_bytes()
    return drawings


def _write_tables(sections: Sequence[Section], folder: Path, *, origin: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for table in (table for section in sections for table in section.tables):
        for suffix, text in (
            ("csv", table.as_csv(origin=origin)),
            ("md", table.as_markdown(origin=origin)),
        ):
            (folder / f"{table.name}.{suffix}").write_text(text, encoding="utf-8")


def summary(found: Findings) -> RichTable:
    """One row a backbone and task: the claims in short, for a terminal."""
    table = RichTable(
        "backbone",
        "task",
        caption="Spread over methods (C1); mean |gap| to APET at the same count (C2); tuned"
        " parameters that beat the guess (low) and reach full tuning (high), 95 % intervals.",
        caption_justify="left",
    )
    for heading in ("spread", "|gap|", "low", "high"):
        table.add_column(heading, justify="right")
    settings = dict.fromkeys((cell.key.backbone, cell.key.task) for cell in found.cells)
    for backbone, task in settings:
        spread = [s.value for s in found.spreads if (s.backbone, s.task) == (backbone, task)]
        own_gaps = [abs(g.value) for g in found.gaps if (g.backbone, g.task) == (backbone, task)]
        own = [c for c in found.curves if (c.backbone, c.task) == (backbone, task)]
        table.add_row(
            Text(backbone),
            Text(task),
            NONE if not spread or spread[0] is None else f"{spread[0]:.3f}",
            f"{sum(own_gaps) / len(own_gaps):.3f}" if own_gaps else NONE,
            _thresholds(own, [curve.low for curve in own]),
            _thresholds(own, [curve.high for curve in own]),
        )
    return table


def _thresholds(curves: Sequence[Curve], thresholds: Sequence[Threshold]) -> str:
    """One a method that has a curve."""
    return (
        "\n".join(
            ("" if len(curves) == 1 else f"{curve.method}: ") + _short(threshold)
            for curve, threshold in zip(curves, thresholds, strict=True)
        )
        or NONE
    )


def _short(threshold: Threshold) -> str:
    if threshold.value is None:
        return "not reached" if threshold.interval is not None else NONE
    if threshold.interval is None:
        return f"{threshold.value:,}"
    return f"{threshold.value:,} ({interval_text(threshold.interval)})"
