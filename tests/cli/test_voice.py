"""The last words of a process, and its exit code."""

from __future__ import annotations

import socket

import pytest
import typer

from scalepet.cli import main
from scalepet.cli.app import app
from scalepet.signals import EXIT_STOPPED, Stopped


def last_words(
    error: BaseException,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    rank: str,
) -> tuple[object, list[str]]:
    """The exit code and stderr of a command that raises it on that rank."""

    def command() -> None:
        raise error

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(app, "registered_commands", [*app.registered_commands])
    app.command("raise")(command)
    with pytest.raises(SystemExit) as ended:
        main(["raise"])
    return ended.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("two\nlines"), "ValueError: two"),
        (KeyError("q"), "KeyError: 'q'"),
        (AssertionError(), "AssertionError: "),
        (typer.Abort(), "Abort: "),
    ],
)
def test_a_failure_ends_with_its_rank_and_host(error, words, capsys, monkeypatch):
    code, lines = last_words(error, capsys, monkeypatch, rank="3")
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1] == f"scalepet: rank 3 on {socket.gethostname()} failed: {words}"


@pytest.mark.parametrize(("rank", "lines"), [("0", ["scalepet: stopped at step 3"]), ("1", [])])
def test_a_stop_is_said_once(rank, lines, capsys, monkeypatch):
    stopped = Stopped("stopped at step 3")
    assert last_words(stopped, capsys, monkeypatch, rank=rank) == (EXIT_STOPPED, lines)


def test_a_neighbour_that_ended_before_is_named(capsys, monkeypatch):
    """It was killed and cannot say so; who is left sees a broken connection."""
    monkeypatch.setattr("scalepet.engine.processes.ended_neighbours", lambda: [1, 2])
    _, lines = last_words(RuntimeError("closed"), capsys, monkeypatch, rank="0")
    assert lines[-1].endswith("RuntimeError: closed; before that, ranks 1, 2 of this machine ended")
