"""The tiny runs of tests/recipes, for whoever wants to break them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.launched import Launched, run_struck
from recipes.conftest import (
    backbones_with_tokenizers,
    colour_rows,
    start,
    stream_rows,
    write_run,
    write_stream,
)

__all__ = [
    "backbones_with_tokenizers",
    "colour_rows",
    "start",
    "stream_rows",
    "write_run",
    "write_stream",
]

RUN: dict[str, Any] = {
    "method": {"name": "apet", "budget": "20%", "move_every": 3},
    "train": {"save_every": 2},
}
DISTURBED = "backbone.dropout=0.1"
"""Shows whether random states are kept."""


@dataclass
class Whole:
    """A run that nobody has disturbed.

    Attributes:
        passed: how often each rank came to each place.
    """

    folder: Path
    passed: dict[str, dict[str, int]]
    seconds: float


@pytest.fixture(scope="session")
def struck() -> Callable[..., Launched]:
    """``struck("kill@step:2@1", config)``: a run on two ranks that goes on where it was."""

    def run(moment: str, config: Path, **options: Any) -> Launched:
        return run_struck([moment, "train", str(config), DISTURBED, "--resume"], **options)

    return run


@pytest.fixture(scope="session")
def write_broken(write_run: Callable[..., Path]) -> Callable[[Path], Path]:
    """The config of the run that breaks, in a folder."""
    return lambda folder: write_run(folder, **RUN)


@pytest.fixture(scope="session")
def whole(struck: Any, write_broken: Any, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "run"
    started = time.monotonic()
    launched = struck("none@", write_broken(folder))
    assert launched.codes == [0, 0], launched.said
    return Whole(folder, launched.passed, time.monotonic() - started)
