"""What a bench run says of itself: the conditions, a table, a figure, and the same as data."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from scalepet.bench.measure import Result
from scalepet.errors import CheckpointError
from scalepet.launch.gpus import sees_gpus

FILES = ("bench.json", "bench.png")
"""What a bench writes into its folder."""

_PACKAGES = ("scalepet", "torch", "transformers", "peft")


def conditions(**given: Any) -> dict[str, Any]:
    """The machine, the versions, and what was given."""
    on_gpu = sees_gpus()
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in _PACKAGES},
        **given,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def table(results: Sequence[Result]) -> Table:
    """One row a contender; W-shaped are kept tensors of the shape of a weight."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for title in ("trained", "tokens/s", "of floor", "peak", "kept", "W-shaped", "file"):
        shown.add_column(title, justify="right")
    for result in results:
        shown.add_row(
            result.name,
            f"{result.num_trained:,}",
            f"{result.tokens_per_second:,.0f}",
            f"{result.ratio:.3f}",
            "-" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:,.2f} GiB",
            f"{result.kept_bytes / 2**20:,.1f} MiB",
            str(result.num_weight_shaped),
            f"{result.file_bytes / 1e6:,.3f} MB",
        )
    return shown


def make_folder(folder: Path) -> None:
    """Raises CheckpointError where it cannot be made."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_results(folder: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """Write bench.json into a folder that is there.

    Raises:
        CheckpointError: it cannot be written.
    """
    content = {"conditions": dict(about), "results": [asdict(result) for result in results]}
    with _writing(folder):
        (folder / FILES[0]).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"--output {folder} cannot be written: {error}") from error
