"""``scalepet evaluate`` and ``scalepet predict``: what a saved adapter is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalepet.cli.arguments import Adapter, Also, OtherWeights, Overrides, Overwrite, Together
from scalepet.cli.streams import check_answered
from scalepet.cli.voice import is_main, quiet_libraries, say_device
from scalepet.errors import ConfigError
from scalepet.owned import check_new_file


def evaluate(
    adapter: Adapter,
    overrides: Overrides = None,
    also: Also = None,
    vote: Together = None,
    other_weights: OtherWeights = False,
) -> None:
    """Score a saved adapter on the evaluation rows of its task.

    \b
    scalepet evaluate runs/first
    scalepet evaluate runs/first --also runs/second
    scalepet evaluate runs/stream --also runs/stream/adapter-offline --vote max
    scalepet evaluate runs/first task.source.files.validation=other.csv
    """
    from scalepet.config import read_overrides
    from scalepet.recipes import evaluate_adapters

    changes = read_overrides(overrides or ())
    quiet_libraries()
    say_device(err=True)
    folders = [adapter, *(also or ())]
    scores = evaluate_adapters(folders, overrides=changes, other_weights=other_weights, vote=vote)
    if not is_main():
        return
    if len(scores) > 1:
        typer.echo("\t".join(["metric", *map(str, folders)]))
    for name in dict.fromkeys(name for one in scores for name in one):
        values = [f"{one[name]:.6g}" if name in one else "-" for one in scores]
        typer.echo("\t".join([name, *values]))
    check_answered()


def predict(
    adapter: Adapter,
    overrides: Overrides = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text to answer; may be given often.", show_default=False),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="A csv, jsonl or parquet file with the columns of the template.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Write the answers here, one JSON line a row, and not to the screen.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    also: Also = None,
    vote: Together = None,
    other_weights: OtherWeights = False,
) -> None:
    """Answer texts with a saved adapter.

    With several, each has a column. One process needs no DeepSpeed.

    \b
    scalepet predict runs/first --text "what a film" --text "never again"
    scalepet predict runs/first --input new.csv --output answers.jsonl
    """
    if bool(text) == bool(rows):
        given = "both of them" if text else "neither"
        raise ConfigError(f"--text and --input: {given}; allowed: one of the two")
    folders = [adapter, *(also or ())]
    _check_files(rows, output)
    if output is not None:
        _check_output(output, rows, folders, overwrite=overwrite)
    from scalepet.config import read_overrides
    from scalepet.recipes import predict as predict_rows

    changes = read_overrides(overrides or ())
    quiet_libraries()
    say_device(err=True)
    answers = predict_rows(
        folders,
        texts=text or (),
        file=rows,
        into=output,
        overrides=changes,
        other_weights=other_weights,
        vote=vote,
    )
    if not is_main() or output is not None:
        return
    for row in zip(*answers, strict=True):
        typer.echo("\t".join(row))
    check_answered()


def _check_output(output: Path, rows: Path | None, folders: list[Path], *, overwrite: bool) -> None:
    """Refuses what is read, with --overwrite, too."""
    from scalepet.recipes import read_files

    if output.exists():
        for path in (*([rows] if rows else ()), *read_files(folders)):
            if output.samefile(path):
                raise ConfigError(f"--output {output} is read; allowed: another file")
    check_new_file("--output", output, overwrite=overwrite)


def _check_files(rows: Path | None, output: Path | None) -> None:
    """Before the backbone is loaded, which can take minutes."""
    faults = []
    if rows is not None and not rows.is_file():
        faults.append(f"--input {rows} does not exist; allowed: a csv, jsonl or parquet file")
    if output is not None and not output.parent.is_dir():
        faults.append(
            f"--output {output}: there is no folder {output.parent}; allowed: one that is"
        )
    if faults:
        raise ConfigError(faults)
