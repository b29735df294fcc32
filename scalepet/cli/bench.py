"""``scalepet bench``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from scalepet.cli.voice import quiet_libraries, say_device
from scalepet.errors import ConfigError
from scalepet.owned import RECORD, check_free, note_files, own_files


def bench(
    shape: Annotated[
        str,
        typer.Option(help="T5 with random weights: tiny, small, base, large, xl, xxl, ul2."),
    ] = "small",
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 8,
    source: Annotated[int, typer.Option(min=1, help="Tokens of an input.")] = 128,
    target: Annotated[int, typer.Option(min=1, help="Tokens of a target.")] = 32,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    density: Annotated[
        list[str] | None,
        typer.Option(
            help="Part of the weights that an APET trains; may be given often; 100% is full.",
            show_default="0.01%, 0.1%, 1%",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every contender.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a turn.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option(help="A folder for bench.json and bench.png.", show_default=False),
    ] = None,
) -> None:
    """Measure a training step beside PEFT's, on this machine.

    All contenders take turns on one copy of the model; a ratio is against the
    frozen floor in the same round. PEFT runs where it is installed.

    \b
    scalepet bench
    scalepet bench --shape xxl --precision bf16 --density 0.1% --output bench
    """
    from importlib.util import find_spec

    from rich.console import Console

    from scalepet import bench as room
    from scalepet import build, engine

    faults = []
    if shape not in room.SHAPES:
        faults.append(f"--shape: {shape!r}; allowed: {', '.join(room.SHAPES)}")
    if precision not in build.DTYPES:
        faults.append(f"--precision: {precision!r}; allowed: {', '.join(build.DTYPES)}")
    densities = density or ["0.01%", "0.1%", "1%"]
    faults += [
        f"--density: {text!r}; allowed: a percent such as 0.1%"
        for text in densities
        if not re.fullmatch(r"[0-9]*\.?[0-9]+%", text) or not 0 < float(text[:-1]) <= 100
    ]
    if faults:
        raise ConfigError(faults)
    if output is not None:
        room.make_folder(output)  # before minutes of measuring, not after
        check_free(output, room.FILES, own=own_files(output))
    quiet_libraries()
    say_device()
    console = Console()
    work = room.make_work(
        shape,
        rows=rows,
        source_length=source,
        target_length=target,
        dtype=build.DTYPES[precision],
        device=engine.pick_device(),
    )
    entrants = room.contenders(work, densities=densities, with_peft=find_spec("peft") is not None)
    results = room.measure(work, entrants, room.Rounds(rounds, steps))
    about = room.conditions(command=" ".join(["scalepet", *sys.argv[1:]]), precision=precision)
    console.print(room.table(results))
    for name, value in about.items():
        console.print(f"{name}: {value}", style="dim")
    if output is not None:
        from scalepet.experiments import draw_bench

        note_files(output, [RECORD, *room.FILES])
        room.write_results(output, results, about)
        console.print(f"figure {draw_bench(output)}")
