"""What a person sees before and after a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from scalepet import dist, engine
from scalepet.data import Batch
from scalepet.engine import Track
from scalepet.recipes.adapter import question
from scalepet.recipes.run_folder import ADAPTER
from scalepet.tracking import track_steps

if TYPE_CHECKING:
    from pathlib import Path

    from scalepet.build import Plan
    from scalepet.data import Results, TrainLoader
    from scalepet.recipes.prepare import Prepared
    from scalepet.recipes.prepare_stream import PreparedStream


def bar(console: Console) -> Track:
    """A progress bar for the batches of an evaluation, where someone looks."""

    def track(batches: Iterable[Batch], total: int) -> Iterable[Batch]:
        shown = dist.is_main() and console.is_terminal
        return track_steps(batches, total=total, shown=shown, console=console)

    return track


def introduce(
    console: Console,
    prepared: Prepared,
    *,
    counts: Mapping[str, int],
    device: torch.device,
    resumed_at: int,
    how: str,
    warnings: Iterable[str],
) -> None:
    """What is about to be trained, on what, and what was cut.

    Args:
        how: the weights were read.
        warnings: what may go wrong, each in a line.
    """
    plan, config = prepared.plan, prepared.plan.config
    table = _plain_table()
    stage = engine.zero_stage(prepared.ds_config)
    _add_sizes(table, prepared.plan, counts, how=how)
    if counts["head"]:
        table.add_row("head", f"{counts['head']:,} trained")
    table.add_row(
        "devices", f"{dist.world_size()} x {device.type}, ZeRO stage {stage}, {config.precision}"
    )
    table.add_row(
        "data",
        f"{prepared.train.num_rows:,} rows to train on, {prepared.eval.num_rows:,} to evaluate",
    )
    for split, num_blank in prepared.num_blank.items():
        if num_blank:
            table.add_row("left out", f"{num_blank:,} blank rows of {split}")
    for split, rows in (("training", prepared.train), ("evaluation", prepared.eval)):
        for what, num_cut, most in (
            ("texts", rows.num_cut_sources, plan.task.max_source_length),
            ("targets", rows.num_cut_targets, plan.task.max_target_length),
        ):
            if num_cut:
                table.add_row(
                    "cut", f"{num_cut:,} of {rows.num_rows:,} {split} {what} to {most} tokens"
                )
    _add_steps(table, prepared.num_steps, prepared.loader, config.train.batch_size, resumed_at)
    console.print(table)
    _warn(console, warnings)


def _add_steps(
    table: Table, num_steps: int, loader: TrainLoader, asked_rows: int, resumed_at: int
) -> None:
    words = f"{num_steps:,} of {loader.batch_size:,} rows"
    if loader.batch_size < asked_rows:
        words += f", which are all there are (train.batch_size: {asked_rows:,})"
    table.add_row("steps", words + (f", going on at {resumed_at:,}" if resumed_at else ""))


def _warn(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


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
        f"adapter {folder} ({size / 1000:,.0f} kB);"
        f" try: scalepet predict {folder} {question(prepared.plan.task)}"
    )


def _add_sizes(table: Table, plan: Plan, counts: Mapping[str, int], *, how: str) -> None:
    frozen, tuned, config = counts["backbone"], counts["masked"], plan.config
    whole = frozen if plan.method.keeps_backbone else frozen + tuned
    still = "frozen" if frozen == whole else f"{frozen:,} of them frozen"
    table.add_row("backbone", f"{config.backbone.path}  {whole:,} parameters, {still}")
    table.add_row("weights", how)
    share = f"{tuned / whole:.3%} of the backbone"
    table.add_row("method", f"{config.method.names}  {tuned:,} trained ({share})")


def introduce_stream(
    console: Console,
    prepared: PreparedStream,
    *,
    counts: Mapping[str, int],
    how: str,
    resumed_at: int,
    warnings: Iterable[str],
) -> None:
    """What is about to be learnt, one after the other, and how.

    Args:
        how: the weights were read.
        warnings: what may go wrong, each in a line.
    """
    config, lessons = prepared.config, prepared.lessons
    lae, classes = config.lae, prepared.num_seen(len(lessons) - 1)
    table = _plain_table()
    _add_sizes(table, prepared.plan, counts, how=how)
    stage = engine.zero_stage(prepared.ds_config)
    table.add_row("devices", f"{dist.world_size()}, ZeRO stage {stage}, {config.precision}")
    rows = sum(lesson.train.num_rows for lesson in lessons)
    table.add_row(
        "stream",
        f"{len(lessons):,} experiences, {classes:,} classes, {rows:,} rows to train on",
    )
    copies = [
        f"alpha {copy.alpha:g}" if copy.alpha is not None else f"{copy.travel:.0%} an experience"
        for copy in lae.offline
    ]
    frozen = f"the method rests for {lae.freeze_epochs} epochs" if lae.freeze_epochs else ""
    offline = f"offline copies: {', '.join(copies)}; vote: {lae.vote}" if copies else ""
    table.add_row("lae", "; ".join(filter(None, (frozen, offline))) or "off: the method alone")
    loader = lessons[0].loader
    _add_steps(table, prepared.num_steps, loader, config.train.batch_size, resumed_at)
    console.print(table)
    _warn(console, warnings)


def show_row(console: Console, name: str, results: Results) -> None:
    """The accuracy over all classes seen, of each expert, once an experience is learnt."""
    accuracies = ", ".join(
        f"{expert} {matrix.last_micro:.3f}" for expert, matrix in results.experts.items()
    )
    console.print(
        f"learnt {results.num_learnt} of {len(results.num_rows)}: {name}: {accuracies}",
        highlight=False,
        soft_wrap=True,
    )


def conclude_stream(console: Console, folder: Path) -> None:
    """Where the results and the adapters are."""
    console.print(f"matrix and adapters {folder}; try: scalepet report {folder}", soft_wrap=True)


def _plain_table() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    return table
