"""The last words of a process, and its exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import typer
from forks import run_python
from running import environments_of, free_port

from scalepet.cli import main
from scalepet.cli.app import app
from scalepet.errors import ConfigError
from scalepet.signals import EXIT_STOPPED, Stopped
from scalepet.tracking.rank_log import log_apart


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
    place_among_two(monkeypatch)
    stopped = Stopped("stopped at step 3")
    assert last_words(stopped, capsys, monkeypatch, rank=rank) == (EXIT_STOPPED, lines)


def place_among_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the rank that a launcher sets; the other one never comes."""
    place = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**place, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("scalepet.cli.voice.SECONDS_TO_MEET", 0.1)
    for name, value in {"PATIENCE_SECONDS": 0.1, "_meeting": None, "_found": None}.items():
        monkeypatch.setattr(f"scalepet.launch.arrival.{name}", value)


def test_a_rank_without_a_launcher_speaks(capsys, monkeypatch):
    """It is alone, whatever number its environment has."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = last_words(ConfigError(["no file", "no folder"]), capsys, monkeypatch, rank="1")
    assert found == (2, ["scalepet: no file", "scalepet: no folder"])
    stopped = Stopped("stopped at step 3")
    found = last_words(stopped, capsys, monkeypatch, rank="1")
    assert found == (EXIT_STOPPED, ["scalepet: stopped at step 3"])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_that_nobody_hears_speaks(rank, capsys, monkeypatch):
    place_among_two(monkeypatch)
    prefix = f"rank 1 on {socket.gethostname()}: " if rank == "1" else ""
    found = last_words(ConfigError("no file"), capsys, monkeypatch, rank=rank)
    assert found == (2, [f"scalepet: {prefix}no file"])


@pytest.mark.distributed
@pytest.mark.parametrize("command", [["trian"], ["plan", "nofile.yaml"], ["train", "nofile.yaml"]])
def test_ranks_that_refuse_alike_speak_once(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = run_python(["-m", "scalepet", *command], environments_of(2), timeout_seconds=100)
    assert [done.code for done in ended] == [2, 2]
    first, other = (done.err.splitlines() for done in ended)
    assert len(first) == 1 and first[0].startswith("scalepet: ")
    assert other == []


def test_a_neighbour_that_ended_before_is_named(capsys, monkeypatch):
    """It was killed and cannot say so; who is left sees a broken connection."""
    monkeypatch.setattr("scalepet.engine.processes.ended_neighbours", lambda: [1, 2])
    _, lines = last_words(RuntimeError("closed"), capsys, monkeypatch, rank="0")
    assert lines[-1].endswith("RuntimeError: closed; before that, ranks 1, 2 of this machine ended")


LOGGING = """
import os
from pathlib import Path
from scalepet.cli.voice import fail
from scalepet.tracking.rank_log import log_apart

log_apart(Path("run"), rank=int(os.environ["RANK"]))
print("a note")
os.write(1, b"of a library\\n")
fail(ValueError("no luck"))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_speaks_and_another_writes_a_log(rank, tmp_path):
    """Its last line stands at both places: who looks at the terminal has to know."""
    environment = {**os.environ, "RANK": str(rank)}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", LOGGING],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
    last = f"scalepet: rank {rank} on {socket.gethostname()} failed: ValueError: no luck"
    assert done.stderr.splitlines()[-1] == last
    log = tmp_path / "run" / "logs" / "rank-1.log"
    if rank == 0:
        assert {*done.stdout.splitlines()} == {"a note", "of a library"}
        assert not log.exists()
        return
    assert (done.stdout, done.stderr) == ("", last + "\n")
    for start in log.read_text().split("--- ")[1:]:
        heading, *lines = start.splitlines()
        assert heading.endswith(f" rank 1 on {socket.gethostname()}")
        assert {"a note", "of a library", "ValueError: no luck", last} <= set(lines)
    assert log.read_text().count("--- ") == 2


def test_a_log_that_cannot_be_written_is_none(tmp_path, capfd):
    (tmp_path / "run").touch()
    log_apart(tmp_path / "run", rank=1)
    os.write(1, b"here")
    assert capfd.readouterr().out == "here"
