"""``scalepet plan``: what a run needs, before it is queued."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalepet.cli.arguments import Overrides
from scalepet.cli.streams import check_answered
from scalepet.errors import Faults
from scalepet.planning import GIB, GPUS, HPZ_PARTITION, Line, Verdict, choose_machines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from scalepet.recipes.plan import RunPlan

_WIDTH = 100
"""Of what goes into a file."""

_NUMBERS = (
    "GPU\nGiB",
    "host\nGiB",
    "left\nGiB",
    "most\nrows",
    "gathered\nGB",
    "step\ns",
    "exposed\ns",
    "tokens\nto hide",
)


def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs in all.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines that hold them.")] = 1,
    gpu: Annotated[str, typer.Option(help=f"Their kind: {', '.join(GPUS)}.")] = "h100-80",
    link: Annotated[
        str | None,
        typer.Option(
            help="Among nodes: eth-25, eth-100, ib-200, ib-400; in one node: nvlink, pcie.",
            show_default=False,
        ),
    ] = None,
    ports: Annotated[int, typer.Option(help="Network ports of a node.")] = 1,
    host_gib: Annotated[
        float | None, typer.Option(help="Memory of each host, GiB.", show_default=False)
    ] = None,
    mfu: Annotated[float, typer.Option(help="Part of the peak that products reach.")] = 0.4,
    offline_copies: Annotated[
        int, typer.Option(min=0, help="Offline copies that a stream of tasks would keep.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print data, not a table.")] = False,
) -> None:
    """Tell what a run needs and where it fits.

    Reads the config of the run and of the backbone; no weights, rows or tokenizer.

    \b
    scalepet plan run.yaml --gpus 8
    scalepet plan run.yaml --gpus 64 --nodes 8 --link ib-400 --host-gib 1000
    scalepet plan run.yaml train.micro_batch_size=32 --gpu a100-40 --json
    """
    # Nearly all of the time goes into imports, and a sixth of that into looking for garbage.
    gc.disable()
    from scalepet.config import read_config
    from scalepet.recipes.plan import check_batch
    from scalepet.recipes.plan import plan as plan_run

    faults = Faults()
    run = machines = None
    with faults.noted():
        run = read_config(config, overrides or ())
    with faults.noted():
        machines = choose_machines(
            gpus=gpus,
            nodes=nodes,
            gpu=gpu.lower(),
            link=None if link is None else link.lower(),
            ports=ports,
            host_gib=host_gib,
            mfu=mfu,
        )
    if run is not None and gpus > 0:
        with faults.noted():
            check_batch(run, num_gpus=gpus)
    faults.raise_any()
    assert run is not None and machines is not None
    planned = plan_run(run, machines, num_offline=offline_copies)
    if as_json:
        typer.echo(json.dumps(planned.as_data(), indent=2))
    else:
        from rich.console import Console

        show(planned, Console(width=None if sys.stdout.isatty() else _WIDTH, markup=False))
    check_answered()


def show(planned: RunPlan, console: Console) -> None:
    """The plan as a person reads it."""
    work, machines, outlook = planned.work, planned.machines, planned.outlook
    nodes = "a node" if machines.num_nodes == 1 else f"{machines.num_nodes} nodes"
    console.print(
        f"{planned.config.backbone.path}: {work.num_frozen:,} frozen, {work.num_trained:,} trained"
        f" ({planned.config.method.names}); {machines.num_gpus} x {machines.kind} in {nodes},"
        f" {machines.link}; {work.batch_size} rows a step, {work.rows} a micro-batch",
        highlight=False,
        soft_wrap=True,
    )
    table = layouts_table(planned)
    width = console.width
    console.width = _WIDTH  # a terminal that is narrower wraps the lines, where rich cuts numbers
    console.print(table, crop=False)
    console.width = width
    shown = outlook.simplest or max(outlook.verdicts, key=lambda verdict: verdict.spare_bytes)
    console.print(memory_table(shown))
    for line in _conclusions(planned):
        console.print(line, highlight=False, soft_wrap=True)
    console.print("Assumed: " + "; ".join(planned.assumptions) + ".", style="dim", soft_wrap=True)


def layouts_table(planned: RunPlan) -> Table:
    """Two rows a layout, without and with activation checkpointing; a star at what the run has.

    It fits a terminal of 80 columns, but for numbers of unusual length.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("deepspeed", no_wrap=True)
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    asked = planned.config
    for verdict in planned.outlook.verdicts:
        traffic = verdict.traffic
        is_checkpointed = verdict.is_checkpointed
        as_asked = (asked.deepspeed, asked.backbone.checkpoint_activations)
        name = "  checkpointed" if is_checkpointed else verdict.name
        table.add_row(
            name + (" *" if (verdict.name, is_checkpointed) == as_asked else ""),
            _gib(verdict.gpu_bytes),
            _gib(verdict.host_bytes),
            _left(verdict),
            f"{verdict.most_rows:,}",
            f"{traffic.step_gathered_bytes / 1e9:,.1f}",
            f"{traffic.step_seconds:.3g}",
            f"{traffic.step_seconds_exposed:.3g}",
            f"{verdict.tokens_to_hide:,}",
        )
    return table


def _left(verdict: Verdict) -> str:
    """GiB of the GPU; below zero it is what lacks, there or on the host."""
    if verdict.fits or verdict.spare_bytes < 0:
        return _gib(verdict.spare_bytes)
    return f"host {_gib(verdict.host_spare_bytes or 0)}"


def memory_table(verdict: Verdict) -> Table:
    """Every part of the memory of one layout, with the reason for its size."""
    from rich.table import Table

    with_it = " with activation checkpointing" if verdict.is_checkpointed else ""
    table = Table(box=None, pad_edge=False, title=f"{verdict.name}{with_it}", title_justify="left")
    table.add_column("of one")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    table.add_column("why")
    for place, lines in (("GPU", verdict.gpu), ("host", verdict.host)):
        for line in lines:
            table.add_row(place, line.what, _exact_gib(line), line.why)
    return table


def _conclusions(planned: RunPlan) -> Iterable[str]:
    outlook = planned.outlook
    if outlook.simplest is not None:
        yield f"Simplest that fits: {_advice(outlook.simplest, planned)}"
    if outlook.fastest is not None and outlook.fastest is not outlook.simplest:
        yield f"Fastest that fits: {_advice(outlook.fastest, planned)}"
    yield from (f"Note: {warning}." for warning in outlook.warnings)
    yield from (f"{way}." for way in outlook.ways_out)


def _advice(verdict: Verdict, planned: RunPlan) -> str:
    """What to put into the config for it."""
    rows_a_gpu = -(-planned.work.batch_size // planned.machines.num_gpus)
    checkpointing = str(verdict.is_checkpointed).lower()
    most = f"{verdict.most_rows:,} rows a micro-batch at most"
    if verdict.most_rows >= rows_a_gpu:
        most = f"the whole batch of a GPU ({rows_a_gpu}) in one micro-batch"
    partition = planned.machines.gpus_a_node
    if verdict.name == "zero3_hpz" and partition != HPZ_PARTITION:
        most = f"zero_hpz_partition_size: {partition} in that file; {most}"
    return f"deepspeed={verdict.name} backbone.checkpoint_activations={checkpointing}; {most}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.1f}"


def _exact_gib(line: Line) -> str:
    """Small parts are worth a look, too."""
    gib = line.num_bytes / GIB
    return f"{gib:,.2f}" if gib >= 0.01 else f"{gib:.2g}"
