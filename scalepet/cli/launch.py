"""``scalepet launch``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from scalepet.cli.voice import is_main
from scalepet.errors import ConfigError, LaunchError


def launch(
    check: Annotated[
        bool, typer.Option("--check", help="Look at the machines and start nothing.")
    ] = False,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            help="Check this hostfile of DeepSpeed, and that its machines answer; without a"
            " launcher.",
            show_default=False,
        ),
    ] = None,
    gpus: Annotated[
        bool,
        typer.Option(
            "--gpus", help="Print how many GPUs this machine has for runs; 0 lets them use the CPU."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="A folder that all machines must be able to write and see.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds until it gives up.")
    ] = 60.0,
) -> None:
    """Check the machines of a run before anything loads.

    Under a launcher, on every rank: the port, all processes, their devices, equal
    versions, the shared folder, the network. A line for each; exit code 2 for a
    fault.

    \b
    scalepet launch --check --hostfile hosts
    launchers/hostfile.sh hosts launch --check --output runs/first
    launchers/srun.sh launch --check --output runs/first
    """
    if gpus:
        from scalepet.launch.gpus import count_gpus

        typer.echo(str(count_gpus()))
        return
    if not check:
        raise ConfigError(
            "scalepet launch looks only; allowed: --check, --gpus. To start a run, take a file of"
            " launchers/ or: deepspeed --module scalepet train run.yaml"
        )
    if hostfile is not None:
        _check_hostfile(hostfile, timeout)
        return
    from scalepet.launch.check import check_launch

    faults = check_launch(output, timeout_seconds=timeout, say=_say)
    if faults:
        raise LaunchError(faults)


def _check_hostfile(hostfile: Path, timeout: float) -> None:
    from scalepet.launch.hostfile import reach_hosts, read_hostfile

    if "RANK" in os.environ:
        raise ConfigError("--hostfile is checked before a launcher starts; allowed: without one")
    hosts = read_hostfile(hostfile)
    reach_hosts(hosts, timeout_seconds=timeout)
    slots = ", ".join(f"{host} slots={num_slots}" for host, num_slots in hosts.items())
    _say("hostfile", f"{slots}: all answer, with this folder and this Python")


def _say(name: str, words: str) -> None:
    if is_main():
        typer.echo(f"ok  {name:<10}{words}")
