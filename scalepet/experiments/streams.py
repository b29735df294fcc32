"""Continual-learning runs, read back from their folders, and side by side in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from scalepet.data.matrix import MATRIX_FILE, MEASURES, Results
from scalepet.errors import ConfigError, DataError
from scalepet.experiments.runs import RunFacts, attempt, read_config, read_model

HEADINGS = ("last\nmicro", "last\nmacro", "average\nincremental", "forgetting", "BWT")
CAPTION = (
    "Micro: over evaluation rows; macro: over experiences; average incremental: micro after every"
    " experience; forgetting as in Chaudhry et al. 2018. Several orders: mean, ± sample deviation."
)


@dataclass(frozen=True)
class StreamRun:
    """A stream learnt in one order of its classes, or in several.

    ``orders`` holds the results of each order, all with the same experts and as many experiences;
    where there are several, config and facts are those of the first.
    """

    folder: Path
    config: dict[str, Any]
    facts: RunFacts
    orders: tuple[Results, ...]

    @property
    def name(self) -> str:
        """The name in the config, else that of the folder."""
        return str(self.config.get("name") or self.folder.name)

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of the matrices."""
        return tuple(self.orders[0].experts)

    def measured(self, expert: str, measure: str) -> list[float]:
        """One measure of an expert in every order; none where it is undefined."""
        values = [order.experts[expert].measures()[measure] for order in self.orders]
        return [value for value in values if value is not None]


def is_stream(folder: Path) -> bool:
    """Whether a run of continual learning lies there: a matrix.json, or orders of one."""
    return (folder / MATRIX_FILE).exists() or bool(_order_folders(folder))


def read_stream(folder: Path) -> StreamRun:
    """The stream run in a folder: config.yaml, run.json and matrix.json, or order-0, order-1, ...

    A stream that is still learning is read as far as it is.

    Raises:
        DataError: if a file is missing, half written, or lacks a field, no experience is finished,
            an order is missing, or the orders differ in experts or experiences: all faults.
    """
    folders = _order_folders(folder)
    if not folders:
        return _read_one(folder)
    faults = [
        f"{folder}: order-{place} is missing"
        for place in range(max(map(_order_of, folders)))
        if folder / f"order-{place}" not in folders
    ]
    streams = [attempt(partial(_read_one, path), faults) for path in folders]
    read = [stream for stream in streams if stream is not None]
    if not faults:
        faults += _differences(read)
    if faults:
        raise DataError(faults)
    orders = tuple(stream.orders[0] for stream in read)
    return StreamRun(folder, read[0].config, read[0].facts, orders)


def stream_table(streams: Sequence[StreamRun]) -> Table:
    """One row an expert, run after run: what it knows at the end, and what it forgot.

    Returns:
        A table with last accuracy (micro, macro), average incremental accuracy, forgetting and
        BWT, as defined in matrix.json; over several orders mean and ± sample standard deviation.
        "-" is what one experience does not define.

    Raises:
        ConfigError: if there is no run.
    """
    if not streams:
        raise ConfigError("no runs to show")
    table = Table(caption=CAPTION, caption_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("expert", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for stream in streams:
        for place, expert in enumerate(stream.experts):
            table.add_row(
                Text(_title(stream) if place == 0 else ""),  # a bracket in a name is no markup
                Text(expert),
                *(_spread(stream.measured(expert, measure)) for measure in MEASURES),
            )
        table.add_section()
    return table


def _order_folders(folder: Path) -> list[Path]:
    numbered = [
        path
        for path in folder.glob("order-*")
        if path.is_dir() and path.name.removeprefix("order-").isdecimal()
    ]
    return sorted(numbered, key=_order_of)


def _order_of(folder: Path) -> int:
    return int(folder.name.removeprefix("order-"))


def _read_one(folder: Path) -> StreamRun:
    faults: list[str] = []
    config = attempt(lambda: read_config(folder / "config.yaml"), faults)
    facts = attempt(lambda: read_model(folder / "run.json", RunFacts), faults)
    results = attempt(lambda: Results.read(folder), faults)
    if results is not None and results.num_learnt == 0:
        faults.append(f"{folder / MATRIX_FILE}: no experience is finished")
    if faults or config is None or facts is None or results is None:
        raise DataError(faults)
    return StreamRun(folder, config, facts, (results,))


def _differences(streams: Sequence[StreamRun]) -> list[str]:
    """Where a later order is unlike the first, so that a mean over them would say nothing."""
    faults = []
    first = streams[0].orders[0]
    for stream in streams[1:]:
        (order,) = stream.orders
        if set(order.experts) != set(first.experts):
            faults.append(
                f"{stream.folder}: its experts are {sorted(order.experts)},"
                f" those of order-0 {sorted(first.experts)}"
            )
        if _extent(order) != _extent(first):
            faults.append(
                f"{stream.folder}: {_extent(order)} experiences are finished,"
                f" in order-0 {_extent(first)}"
            )
    return faults


def _extent(results: Results) -> str:
    return f"{results.num_learnt} of {len(results.num_rows)}"


def _title(stream: StreamRun) -> str:
    parts, results = [stream.name], stream.orders[0]
    if len(stream.orders) > 1:
        parts.append(f"{len(stream.orders)} orders")
    if results.num_learnt < len(results.num_rows):
        parts.append(f"{_extent(results)} experiences")
    return ", ".join(parts)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean}\n±{np.std(values, ddof=1):.3f}"
