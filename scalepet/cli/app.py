"""The commands together, and what happens when one of them fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NoReturn

import typer

from scalepet.cli.answer import evaluate, predict
from scalepet.cli.bench import bench
from scalepet.cli.carry import export, import_
from scalepet.cli.continual import continual
from scalepet.cli.launch import launch
from scalepet.cli.look import assets, report
from scalepet.cli.plan import plan
from scalepet.cli.streams import be_patient
from scalepet.cli.sweep import sweep
from scalepet.cli.train import train
from scalepet.cli.voice import end, fail, refuse, stop
from scalepet.errors import (
    EXIT_FAILED,
    EXIT_REFUSED,
    PassingError,
    RankError,
    ScalepetError,
    mendable,
)
from scalepet.launch.parent import stop_with_launcher
from scalepet.signals import Stopped

app = typer.Typer(
    epilog="""\b
    One process:        scalepet train run.yaml
    Several:            deepspeed --module scalepet train run.yaml
    What is in a file:  scalepet train --help, then scalepet train --fields
    Real data, at once: bash launchers/quickstart.sh
    """,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain text keeps the lines of an example where they are.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
) -> None:
    """Train very large frozen models through very few parameters, on DeepSpeed."""
    if local_rank is not None:  # which the deepspeed launcher passes to every process
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_REFUSED)


_COMMANDS = (
    train,
    continual,
    evaluate,
    predict,
    export,
    plan,
    launch,
    sweep,
    report,
    bench,
    assets,
)
for _command in _COMMANDS:
    app.command()(_command)
app.command("import")(import_)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process.

    What the user can mend (a ``ScalepetError``, a wrong option) becomes one message and exit code 2
    on every rank, without a traceback. A run that was asked to stop and has saved its state ends
    with exit code 75, and all else with 1, a traceback and a line that names the rank; the other
    ranks end with the code of that one, and rank 0 says what it was.
    """
    be_patient()
    ending: Callable[[], NoReturn]
    stop_with_launcher()
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="scalepet",
            standalone_mode=False,
        )
        ending = partial(end, code or 0)
    except PassingError as error:
        ending = partial(refuse, error.faults, code=EXIT_FAILED)
    except ScalepetError as error:
        ending = partial(refuse, error.faults)
    except typer.TyperException as error:  # what typer itself finds wrong in the arguments
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "scalepet"
        ending = partial(refuse, [f"{error.format_message().rstrip('.')}; try: {command} --help"])
    except Stopped as stopped:
        ending = partial(stop, str(stopped))
    except RankError as error:
        ending = partial(refuse, error.faults, code=error.code)
    except Exception as error:
        plain = mendable(error)
        if not isinstance(plain, ScalepetError):
            fail(error)
        ending = partial(refuse, plain.faults)
    # Not above: an error holds on to a progress bar, which would hold on to the terminal.
    ending()
