"""Run scalepet as a user does, and read what it left behind."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import typer.main
from forks import run_python

SCALEPET = [sys.executable, "-m", "scalepet"]
SECONDS_TO_END = 240.0
SPEEDS = ("seconds", "step_seconds", "tokens_per_second")


def run(
    command: list[Any],
    *,
    num_ranks: int = 1,
    code: int = 0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run Python to the end and return stdout (stderr where it is to fail), of all ranks.

    Args:
        command: begins as ``SCALEPET`` does, or with the interpreter and a script.
        num_ranks: several are started as a launcher starts them, and nobody looks after them.
        code: how each of them must end.
        environment: of each, but for what makes it a rank; this process's own if None.
    """
    interpreter, *arguments = (str(part) for part in command)
    assert interpreter == sys.executable
    alone = dict(environment or one_core())
    environments = environments_of(num_ranks, environment) if num_ranks > 1 else [alone]
    ended = run_python(arguments, environments, timeout_seconds=SECONDS_TO_END)
    for done in ended:
        assert done.code == code, f"exit {done.code}\n{done.out}\n{done.err[-6000:]}"
    return "".join(done.out if code == 0 else done.err for done in ended)


def one_core() -> dict[str, str]:
    """The environment of a process that keeps to one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def environments_of(
    num_ranks: int, environment: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """Those of the ranks of one machine, as a launcher makes them of ``environment``."""
    port = str(free_port())
    of_all = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        {**(environment or one_core()), **of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(num_ranks)
    ]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@dataclass(frozen=True)
class Ended:
    """What a command left behind: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def faults(self) -> list[str]:
        """The lines of the one message on stderr, without the name of the program."""
        lines = self.err.splitlines()
        assert all(line.startswith("scalepet: ") for line in lines), self.err
        return [line.removeprefix("scalepet: ") for line in lines]


_command_of = functools.cache(typer.main.get_command)
"""Typer reads the signatures of all commands anew at each start, which is half of its time."""


def run_here(*arguments: str) -> Ended:
    """The command in this process, which never becomes one of a group: its exit would end the
    tests, without a word and with its own exit code.
    """
    from scalepet.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch("scalepet.engine.joined", contextlib.nullcontext),
        mock.patch("typer.main.get_command", _command_of),
        mock.patch("scalepet.cli.voice.SECONDS_TO_MEET", 0.0),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def read_metrics(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({(r["kind"], r["step"]) for r in records}) == len(records), "a step stands twice"
    return {(r["kind"], r["step"]): r for r in records}


def newest_state(folder: Path) -> Path:
    """The last state of a run."""
    return max(path for path in (folder / "states").iterdir() if path.name.isdecimal())


def read_losses(folder: Path) -> list[float]:
    """Of every step, in their order; each of them must have been logged."""
    steps = {
        step: record["loss"]
        for (kind, step), record in read_metrics(folder).items()
        if kind == "train"
    }
    assert list(steps) == list(range(1, len(steps) + 1)), f"steps are missing: {list(steps)}"
    return list(steps.values())


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def read_table(shown: str) -> dict[str, float]:
    return {k: float(v) for k, v in (x.split("\t") for x in shown.splitlines() if "\t" in x)}


def check_same(left: Path, right: Path, *, adapters: Sequence[str] = ("adapter",)) -> None:
    """To the last bit, but for the time that it took and what was saved on the way."""
    import safetensors.torch
    import torch

    assert read_losses(left) == read_losses(right)
    records = [
        {
            key: {name: value for name, value in record.items() if name not in SPEEDS}
            for key, record in read_metrics(folder).items()
            if key[0] != "save"
        }
        for folder in (left, right)
    ]
    assert records[0] == records[1]
    assert read_result(left)["metrics"] == read_result(right)["metrics"]
    assert newest_state(left).name == newest_state(right).name
    for name in (f"states/{newest_state(left).name}", *adapters):
        one, other = (
            safetensors.torch.load_file(folder / name / "tensors.safetensors")
            for folder in (left, right)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
