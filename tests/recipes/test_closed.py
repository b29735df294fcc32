"""What has been run is gone from memory: every engine before the next one starts, and the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SNIP = {"name": "apet", "budget": "20%", "select": "snip"}
STREAM = {"stream": {"num_tasks": 2}, "train": {"epochs": 2}}
NUM_STARTED = {
    "masked by a score, stage 3": 2,
    "stage 2": 1,
    "stream, stage 0": 3,
    "stream, stage 3": 3,
    "evaluate": 2,
}
"""An engine to score with, one for each phase, one for each adapter that is worn."""


@pytest.fixture(scope="module")
def found(
    write_run: Callable[..., Path],
    write_stream: Callable[..., Path],
    run_ranks: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("closed")
    short = {"steps": 2, "evaluate_every": 2}
    runs = {
        "masked by a score, stage 3": ("train", write_run(folder / "a", method=SNIP, train=short)),
        "stage 2": ("train", write_run(folder / "b", deepspeed="zero2", train=short)),
        "stream, stage 0": ("stream", write_stream(folder / "c", deepspeed="zero0", **STREAM)),
        "stream, stage 3": ("stream", write_stream(folder / "d", **STREAM)),
    }
    argument = {
        "runs": {name: (kind, str(config)) for name, (kind, config) in runs.items()},
        "adapter": str(folder / "a"),
        "out": str(folder / "out.json"),
    }
    script = Path(__file__).with_name("closed.py")
    run_ranks(script, argument, num_ranks=2, timeout_seconds=240)
    return json.loads((folder / "out.json").read_text())


@pytest.mark.distributed
@pytest.mark.parametrize("name", NUM_STARTED)
def test_nothing_is_left(found: dict[str, dict[str, int]], name: str) -> None:
    assert found[name] == {
        "started": NUM_STARTED[name],
        "at a start": 0,
        "engines": 0,
        "models": 0,
    }
