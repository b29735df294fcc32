"""``scalepet export`` and ``scalepet import``: adapters between scalepet and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalepet.cli.arguments import Adapter, OtherWeights, Overrides
from scalepet.cli.voice import is_main, quiet_libraries, say_device


def export(
    adapter: Adapter,
    into: Annotated[Path, typer.Argument(metavar="FOLDER", help="The new folder.")],
    overrides: Overrides = None,
    peft: Annotated[
        bool,
        typer.Option(
            "--peft",
            help="As an adapter of PEFT: lora, ia3, prompt (T5), prefix (BERT), apet as SHiRA.",
        ),
    ] = False,
    other_weights: OtherWeights = False,
) -> None:
    """Write an adapter for other programs.

    Merged: a folder that from_pretrained of transformers reads, and that computes
    what the backbone does with the adapter on. Under a launcher and ZeRO-3 no
    rank holds the whole model. Or, with --peft, an adapter of PEFT.

    \b
    scalepet export runs/first merged
    scalepet export runs/first merged precision=fp32
    scalepet export runs/first for-peft --peft
    """
    from scalepet.config import read_overrides
    from scalepet.recipes import export_merged, export_peft

    changes = read_overrides(overrides or ())
    quiet_libraries()
    say_device(err=True)
    write = export_peft if peft else export_merged
    write(adapter, into, overrides=changes, other_weights=other_weights)
    if is_main():
        typer.echo(f"written {into}")


def import_(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="The YAML file of the run that would have trained it."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What PEFT has saved.")],
    overrides: Overrides = None,
) -> None:
    """Take in an adapter of PEFT.

    It can then be evaluated, merged and switched as one of scalepet's own.

    \b
    scalepet import run.yaml for-peft
    """
    from scalepet.config import read_config
    from scalepet.recipes import import_peft

    run = read_config(config, overrides or ())
    quiet_libraries()
    typer.echo(f"adapter {import_peft(run, folder)}")
