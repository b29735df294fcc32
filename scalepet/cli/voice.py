"""One voice: the first rank speaks, and another one where it alone knows."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from scalepet.errors import EXIT_FAILED, EXIT_REFUSED, in_words, some_ranks
from scalepet.launch.place import is_placed
from scalepet.signals import EXIT_STOPPED

SECONDS_TO_MEET = 5.0
"""How long a rank that ends waits for the others. Launchers kill all ranks once one has ended, and
the one that speaks may be the slowest.
"""


def is_main() -> bool:
    """Whether this process is the one that prints, as its launcher says; without a whole launcher
    it is alone.
    """
    return os.environ.get("RANK", "0") == "0" or not is_placed()


def refuse(faults: Sequence[str], *, code: int = EXIT_REFUSED) -> NoReturn:
    """Say every fault on a line of its own, and end this rank.

    The first rank speaks for all that refuse with it, also for the faults that it does not share;
    another one speaks where the first one goes on without it.
    """
    if is_main():
        _say(faults)
    if is_placed() and os.environ["WORLD_SIZE"] != "1":
        from scalepet.launch import arrival

        others = arrival.refuse(faults, timeout_seconds=SECONDS_TO_MEET)
        if is_main():
            _say(others)
        if not arrival.leave(timeout_seconds=SECONDS_TO_MEET) and not is_main():
            _say([f"rank {os.environ['RANK']} on {socket.gethostname()}: {f}" for f in faults])
    end(code)


def stop(words: str) -> NoReturn:
    """Say why this process ends before its work is done, with a code that asks for it to go on."""
    if is_main():
        _say([words])
    _leave(seconds=SECONDS_TO_MEET)
    end(EXIT_STOPPED)


def _leave(*, seconds: float) -> None:
    """Where this process has met others, let them come to their end, too: one that still works
    would be aborted.
    """
    arrival = sys.modules.get("scalepet.launch.arrival")
    if arrival is not None:
        arrival.leave(timeout_seconds=seconds)


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        _say_line(f"scalepet: {line}")


def _say_line(line: str) -> None:
    """Also where someone looks, if this process writes to a log of its own."""
    line = _without_secrets(line)
    typer.echo(line, err=True)
    rank_log = sys.modules.get("scalepet.tracking.rank_log")
    if rank_log is not None:
        rank_log.tell_terminal(line)


def fail(error: Exception) -> NoReturn:
    """Show our own mistake or the machine's; the last line names the rank and its host."""
    typer.echo(_without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    (words,) = in_words(error)
    _say_line(
        f"scalepet: rank {os.environ.get('RANK', '0')} on {socket.gethostname()} failed:"
        f" {words}{_whose_fault(error)}"
    )
    _leave(seconds=0.0)
    end(EXIT_FAILED)


def _without_secrets(text: str) -> str:
    """What a library says may quote a token or a login."""
    from scalepet.tracking.redact import without_secrets

    return without_secrets(text)


def _whose_fault(error: Exception) -> str:
    """A rank that was killed or hangs says nothing itself: its neighbours see a broken connection,
    or wait in vain.
    """
    processes = sys.modules.get("scalepet.engine.processes")
    if processes is None:
        return ""
    ended = processes.ended_neighbours()
    silent = [rank for rank in processes.silent_ranks(error) if rank not in ended]
    words = ""
    if ended:
        words += f"; before that, {some_ranks(ended)} of this machine ended"
    if silent:
        words += f"; {some_ranks(silent)} did not answer: ended or hanging"
    return words


def end(code: int) -> NoReturn:
    """End this process, which may have worked in a group of processes."""
    # Looked up, not imported: commands that need no engine end without its seconds of imports.
    processes = sys.modules.get("scalepet.engine.processes")
    if processes is not None:
        processes.end_process(code)
    sys.exit(code)


def say_device(*, err: bool = False) -> None:
    """That GPUs of this machine are hidden, where they are; to stderr where stdout is an answer."""
    from scalepet.launch.gpus import why_cpu

    words = why_cpu() if is_main() else ""
    if words:
        typer.echo(words, err=err)


def quiet_libraries() -> None:
    """Notes and progress bars of transformers come from the first rank at most, where one looks."""
    from scalepet.backbones import quiet_transformers

    quiet_transformers(show_progress=is_main() and sys.stderr.isatty())
