"""``scalepet sweep``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalepet.cli.arguments import Overrides
from scalepet.cli.streams import check_answered
from scalepet.cli.voice import is_main, quiet_libraries, say_device
from scalepet.errors import EXIT_FAILED, ConfigError, Faults
from scalepet.signals import StopRequest

if TYPE_CHECKING:
    from rich.console import Console

    from scalepet.recipes.study import CellPlan


def sweep(
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="The YAML file of the study.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show runs, hours and disk, and stop.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CELL",
            help="Only this cell, as in minilm/sst2/apet-100, or 'minilm/*'; may be given often.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes of this machine that share the cells; one a GPU at most, if any.",
        ),
    ] = 1,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit every cell that is not finished as a job.")
    ] = False,
    at_most: Annotated[
        int | None,
        typer.Option(min=1, help="With --slurm: so many jobs at a time.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Count GPU hours for this kind, as in scalepet plan; else for this machine.",
            show_default=False,
        ),
    ] = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="Show every field of a study, ready to copy, and stop."),
    ] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
) -> None:
    """Run a study: methods on tasks and backbones, with equal tries.

    Each cell tries its learning rate times every factor; the best one, by the
    first metric of the task on the rows of eval, is run again with all other
    seeds. What is finished is skipped, what is broken goes on, what fails is
    listed and tried again by the next sweep. A study may grow: more backbones,
    tasks, methods, budgets, seeds.

    \b
    A small STUDY; its three csv files have the columns text and label:

    \b
        output: studies/first
        base: {precision: fp32, train: {steps: 300, batch_size: 16}}
        backbones:
          small: {path: google/flan-t5-small}
        tasks:
          mood:
            kind: classification
            source:
              path: csv
              files: {train: train.csv, validation: dev.csv, test: test.csv}
              splits: {test: test}
            template: "Input: {text} Output: "
            target: label
        rate_factors: [0.3, 1, 3]
        position_seeds: [0, 1, 2]
        methods:
          apet:
            method: {name: apet}
            budgets: [100, 10000]
            matches: [lora]
            learning_rate: {100: 0.1, 10000: 0.01}
          lora: {method: {name: lora, r: 4}, learning_rate: 1e-3}

    \b
    scalepet sweep study.yaml --plan
    scalepet sweep study.yaml --processes 4
    scalepet sweep study.yaml --only '*/*/apet-*'
    scalepet sweep study.yaml --slurm --at-most 8

    Exit code 1: some runs failed; 2: a mistake to mend; 75: stopped as asked,
    and the same command goes on.
    """
    if fields:
        _show_fields()
        return
    if study is None:
        raise ConfigError(
            "STUDY is missing; allowed: scalepet sweep STUDY.yaml, or scalepet sweep --fields"
        )
    _check_ways(processes=processes, slurm=slurm, at_most=at_most)
    with StopRequest(goes_on="the same command") as stop:
        from rich.console import Console

        from scalepet import dist, engine
        from scalepet.config import read_study_config
        from scalepet.recipes.study_folder import STUDY, open_study
        from scalepet.recipes.study_plan import plan_study
        from scalepet.recipes.study_table import show_end, show_study
        from scalepet.recipes.sweep import Sweep
        from scalepet.recipes.workers import stop_with_parent

        if worker:
            stop_with_parent()
        config = read_study_config(study, overrides or ())
        quiet_libraries()
        is_here = not plan and not slurm and processes == 1
        with engine.joined() if is_here else nullcontext():
            say_device()
            cells = dist.together(lambda: plan_study(config, only=only or ()))
            console = Console()
            if is_main():
                show_study(cells, console, gpu=gpu)
            if plan:
                return
            engine.on_main(lambda: open_study(config))
            path = config.output / STUDY
            if slurm:
                _submit(path, cells, at_most)
                return
            if is_here:
                Sweep(console, stop).run(cells)
            else:
                _share(path, cells, processes, console)
            is_whole = dist.broadcast_object(not is_main() or show_end(cells, console))
        if not is_whole:
            raise typer.Exit(EXIT_FAILED)


def _check_ways(*, processes: int, slurm: bool, at_most: int | None) -> None:
    """What goes together with what."""
    import os

    faults = Faults()
    if processes > 1 and slurm:
        faults.append(f"--processes {processes} with --slurm; allowed: one of them")
    if at_most is not None and not slurm:
        faults.append(f"--at-most {at_most} without --slurm, which alone submits jobs")
    if (processes > 1 or slurm) and os.environ.get("WORLD_SIZE", "1") != "1":
        faults.append(
            "--processes or --slurm under a launcher; allowed: one process, which starts the others"
        )
    faults.raise_any()


def _unfinished(cells: list[CellPlan]) -> dict[str, int]:
    """Name of a cell -> how many of its runs are not finished."""
    from scalepet.recipes.sweep import num_left

    left = {cell.name: num_left(cell) for cell in cells}
    return {name: num_runs for name, num_runs in left.items() if num_runs}


def _share(study: Path, cells: list[CellPlan], num_workers: int, console: Console) -> None:
    """Let processes run what is not finished, under a progress bar of runs."""
    from scalepet.launch.gpus import name_gpus
    from scalepet.recipes.workers import Workers
    from scalepet.tracking import track_steps

    left, gpus = _unfinished(cells), name_gpus()
    if gpus and num_workers > len(gpus):
        typer.echo(f"{len(gpus)} of {num_workers} processes: one for each GPU")
        num_workers = len(gpus)
    workers = Workers(study, num_workers, gpus)
    for _ in track_steps(workers.run(list(left)), total=sum(left.values()), console=console):
        pass
    for fault in workers.faults:
        typer.echo(fault)


def _submit(study: Path, cells: list[CellPlan], at_most: int | None) -> None:
    from scalepet.recipes.study_array import submit

    left = list(_unfinished(cells))
    typer.echo(submit(study, left, at_most=at_most) if left else "every run is finished")


def _show_fields() -> None:
    from scalepet.config import study_fields_as_yaml

    if is_main():
        typer.echo(study_fields_as_yaml(), nl=False)
        check_answered()
