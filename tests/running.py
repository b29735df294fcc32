"""Run scalepet as a user does, and read what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCALEPET = [sys.executable, "-m", "scalepet"]


def run(command: list[Any], *, code: int = 0) -> str:
    """Run to the end and return stdout (stderr for a refusal)."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return done.stdout if code == 0 else done.stderr


def read_metrics(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len({(r["kind"], r["step"]) for r in records}) == len(records), "a step stands twice"
    return {(r["kind"], r["step"]): r for r in records}


def read_losses(folder: Path) -> list[float]:
    """Of every step, in their order; each of them must have been logged."""
    steps = {
        step: record["loss"]
        for (kind, step), record in read_metrics(folder).items()
        if kind == "train"
    }
    assert list(steps) == list(range(1, len(steps) + 1)), f"steps are missing: {list(steps)}"
    return list(steps.values())


def read_result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def read_table(shown: str) -> dict[str, float]:
    return {k: float(v) for k, v in (x.split("\t") for x in shown.splitlines() if "\t" in x)}
