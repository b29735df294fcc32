"""One voice: of all ranks the first one speaks."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from scalepet.errors import some_ranks
from scalepet.signals import EXIT_STOPPED

EXIT_FAILED = 1
EXIT_REFUSED = 2
"""The user can mend it, and starting again does not."""

OF_THE_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG})
"""Failures of files and paths that are the user's to mend, wherever they happen."""

SECONDS_TO_SPEAK = 5.0
"""Launchers kill all ranks once one has ended, and the one that speaks may be the slowest."""


def is_main() -> bool:
    """Whether this process is the one that prints, as its launcher says."""
    return os.environ.get("RANK", "0") == "0"


def refuse(faults: Sequence[str], *, code: int = EXIT_REFUSED) -> NoReturn:
    """Say every fault on a line of its own, and end this rank."""
    if is_main():
        for fault in faults:
            typer.echo(_without_secrets(f"scalepet: {fault}"), err=True)
    else:
        time.sleep(SECONDS_TO_SPEAK)
    end(code)


def stop(words: str) -> NoReturn:
    """Say why this process ends before its work is done, with a code that asks for it to go on."""
    if is_main():
        typer.echo(f"scalepet: {words}", err=True)
    end(EXIT_STOPPED)


def fail(error: Exception) -> NoReturn:
    """Show our own mistake or the machine's; the last line names the rank and its host."""
    typer.echo(_without_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    first_line = next(iter(str(error).splitlines()), "")
    line = (
        f"scalepet: rank {os.environ.get('RANK', '0')} on {socket.gethostname()} failed:"
        f" {type(error).__name__}: {first_line}{_whose_fault(error)}"
    )
    line = _without_secrets(line)
    typer.echo(line, err=True)
    rank_log = sys.modules.get("scalepet.tracking.rank_log")
    if rank_log is not None:
        rank_log.tell_terminal(line)
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


def quiet_libraries() -> None:
    """Notes and progress bars of transformers come from the first rank at most, where one looks."""
    from scalepet.backbones import quiet_transformers

    quiet_transformers(show_progress=is_main() and sys.stderr.isatty())
