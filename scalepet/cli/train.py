"""``scalepet train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalepet.cli.arguments import Accept, Overrides
from scalepet.cli.streams import check_answered
from scalepet.cli.voice import is_main, quiet_libraries, say_device
from scalepet.errors import ConfigError
from scalepet.signals import StopRequest


def train(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="The YAML file of the run.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the run in the output folder stopped; start where there is none.",
        ),
    ] = False,
    accept: Accept = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="Show every field of a config, ready to copy, and stop."),
    ] = False,
) -> None:
    """Train a method on a task and keep the best adapter.

    \b
    A small CONFIG; its two csv files have the columns text and label:

    \b
        output: runs/first
        backbone: {path: google/flan-t5-small}
        task:
          kind: classification
          source:
            path: csv
            files: {train: train.csv, validation: held_out.csv}
          template: "Input: {text} Output: "
          target: label
        method: {name: apet, budget: 4096}
        train: {epochs: 3}

    On SIGTERM or SIGUSR1, to any rank, all ranks save the run after the step
    or the batch of an evaluation that they are in, and end with exit code 75:
    --resume goes on. Exit code 2 is a mistake to mend, and 1 a failure.
    """
    if fields:
        _show_fields()
        return
    if config is None:
        raise ConfigError(
            "CONFIG is missing; allowed: scalepet train RUN.yaml, or scalepet train --fields"
        )
    with StopRequest() as stop:
        from rich.console import Console

        from scalepet.config import read_config
        from scalepet.engine import joined
        from scalepet.recipes import finetune

        run = read_config(config, overrides or ())
        quiet_libraries()
        with joined():
            say_device()
            finetune(run, resume=resume, console=Console(), stop=stop, accept=accept or ())


def _show_fields() -> None:
    from scalepet.config import fields_as_yaml

    if is_main():
        typer.echo(fields_as_yaml(), nl=False)
        check_answered()
