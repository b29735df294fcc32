"""What a person sees before and after a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from scalepet import dist, engine
from scalepet.recipes.run_folder import ADAPTER

if TYPE_CHECKING:
    from scalepet.recipes.prepare import Prepared


def introduce(
    console: Console,
    prepared: Prepared,
    *,
    counts: Mapping[str, int],
    device: torch.device,
    resumed_at: int,
    how: str,
) -> None:
    """What is about to be trained, on what, and what was cut.

    Args:
        how: the weights were read.
    """
    plan, config = prepared.plan, prepared.plan.config
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    share = counts["masked"] / counts["backbone"]
    stage = engine.zero_stage(prepared.ds_config)
    table.add_row("backbone", f"{config.backbone.path}  {counts['backbone']:,} parameters, frozen")
    table.add_row("weights", how)
    table.add_row(
        "method",
        f"{config.method.names}  {counts['masked']:,} trained ({share:.3%} of the backbone)",
    )
    if counts["head"]:
        table.add_row("head", f"{counts['head']:,} trained")
    table.add_row(
        "devices", f"{dist.world_size()} x {device.type}, ZeRO stage {stage}, {config.precision}"
    )
    table.add_row(
        "data",
        f"{prepared.train.num_rows:,} rows to train on, {prepared.eval.num_rows:,} to evaluate",
    )
    for split, rows in (("training", prepared.train), ("evaluation", prepared.eval)):
        for what, num_cut, most in (
            ("texts", rows.num_cut_sources, plan.task.max_source_length),
            ("targets", rows.num_cut_targets, plan.task.max_target_length),
        ):
            if num_cut:
                table.add_row(
                    "cut", f"{num_cut:,} of {rows.num_rows:,} {split} {what} to {most} tokens"
                )
    batch = config.train.batch_size
    table.add_row(
        "steps",
        f"{prepared.num_steps:,} of {batch} rows"
        + (f", going on at {resumed_at:,}" if resumed_at else ""),
    )
    console.print(table)


def conclude(
    console: Console,
    prepared: Prepared,
    result: Mapping[str, Any],
    *,
    metric: str,
    majority: float | None,
) -> None:
    """The best score beside the majority guess, and where the adapter is."""
    folder = prepared.plan.config.output / ADAPTER
    size = sum(path.stat().st_size for path in folder.iterdir())
    score = result["metrics"][f"eval/{metric}"]
    guess = "" if majority is None else f" (always the most frequent class: {majority:.3f})"
    console.print(
        f"best {metric} [bold]{score:.3f}[/bold]{guess}"
        f" at step {result['best_step']:,} of {result['num_steps']:,}"
    )
    console.print(
        f'adapter {folder} ({size / 1000:,.0f} kB); try: scalepet predict {folder} --text "..."'
    )
