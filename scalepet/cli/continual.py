"""``scalepet continual``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalepet.cli.arguments import Accept, Overrides
from scalepet.cli.streams import check_answered
from scalepet.cli.voice import is_main, quiet_libraries, say_device
from scalepet.errors import ConfigError
from scalepet.signals import StopRequest

if TYPE_CHECKING:
    from scalepet.config import StreamConfig
    from scalepet.recipes import Learnt


def continual(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="The YAML file of the stream.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the stream in the output folder stopped, also within an experience;"
            " start where there is none.",
        ),
    ] = False,
    orders: Annotated[
        int,
        typer.Option(
            min=1,
            help="Learn the stream in so many orders of its classes, drawn by stream.seed and the"
            " numbers after it, into order-0, order-1 and so on.",
        ),
    ] = 1,
    accept: Accept = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="Show every field of a config, ready to copy, and stop."),
    ] = False,
) -> None:
    """Learn a stream of tasks, one after the other (LAE).

    An online method learns on the device, offline copies follow it slowly in
    host memory, and all vote. Nothing tells the model which task an example is
    of. The matrix of accuracies is written after every task.

    \b
    A small CONFIG; its two csv files have the columns text and label:

    \b
        output: runs/stream
        backbone: {path: google-bert/bert-base-uncased}
        stream:
          num_tasks: 5
          task:
            kind: classification
            source:
              path: csv
              files: {train: train.csv, validation: held_out.csv}
            template: "{text}"
            target: label
        method: {name: lora, parts: [k, v], calibrated: true}
        lae: {freeze_epochs: 2, offline: [{travel: 0.1}]}

    On SIGTERM or SIGUSR1, to any rank, all ranks save the stream after the step
    or the batch of an evaluation that they are in, and end with exit code 75:
    --resume goes on. Exit code 2 is a mistake to mend, and 1 a failure.
    """
    if fields:
        _show_fields()
        return
    if config is None:
        raise ConfigError(
            "CONFIG is missing; allowed: scalepet continual STREAM.yaml, or scalepet continual"
            " --fields"
        )
    with StopRequest() as stop:
        from rich.console import Console

        from scalepet.config import read_stream_config
        from scalepet.engine import joined, on_main
        from scalepet.recipes import learn_stream

        stream = read_stream_config(config, overrides or ())
        quiet_libraries()
        with joined():
            say_device()
            for one in _in_orders(stream, orders):
                for learnt in learn_stream(
                    one, resume=resume, console=Console(), stop=stop, accept=accept or ()
                ):
                    on_main(partial(_draw, learnt))


def _in_orders(config: StreamConfig, num_orders: int) -> list[StreamConfig]:
    """The same stream in several orders, each with a folder of its own."""
    if num_orders == 1:
        return [config]
    if config.stream.class_order or not config.stream.num_portions:
        raise ConfigError(
            f"--orders {num_orders}: the order of this stream is given; allowed: 1, or classes of"
            " one data set in portions without stream.class_order"
        )
    from dataclasses import replace

    return [
        config.model_copy(
            update={
                "output": config.output / f"order-{number}",
                "stream": replace(config.stream, seed=config.stream.seed + number),
            }
        )
        for number in range(num_orders)
    ]


def _draw(learnt: Learnt) -> None:
    """The figures of what is known by now, in the run folder and in wandb."""
    from scalepet.experiments import draw_matrix, draw_stream_curves

    matrix, curves = learnt.folder / "matrix.png", learnt.folder / "curves.png"
    draw_matrix(learnt.results, matrix)
    draw_stream_curves([(learnt.folder.name, [learnt.results])], curves)
    learnt.trackers.picture(learnt.num_steps, "matrix", matrix)
    learnt.trackers.picture(learnt.num_steps, "curves", curves)


def _show_fields() -> None:
    from scalepet.config import StreamConfig, fields_as_yaml

    if is_main():
        typer.echo(fields_as_yaml(StreamConfig), nl=False)
        check_answered()
