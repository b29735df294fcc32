from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalepet.data import Results

NUM_STEPS = 40
FACTS = {
    "scalepet": "0.1.0",
    "versions": {"torch": "2.13.0"},
    "git_commit": None,
    "command": "scalepet train run.yaml",
    "world_size": 2,
    "counts": {"trained": 27_700, "masked": 20_000, "head": 7_700, "backbone": 22_700_000},
    "method": "apet",
    "majority": 0.25,
}


def records_of_run(score: float) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, NUM_STEPS + 1):
        loss = 3 * math.exp(-step / 20) + 0.1 * math.sin(step)
        records.append({"step": step, "kind": "train", "seconds": step / 2, "loss": loss})
        if step % 10 == 0:
            values = {"eval/accuracy": score * step / NUM_STEPS, "eval/loss": 1 / step}
            records.append({"step": step, "kind": "eval", "seconds": step / 2, **values})
    return records


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder as a recipe leaves it; keyword arguments replace fields of run.json."""

    def make(folder: str, *, name: str | None = None, score: float = 0.8, **facts: Any) -> Path:
        path = tmp_path / folder
        path.mkdir()
        (path / "config.yaml").write_text("{}" if name is None else f"name: {json.dumps(name)}")
        (path / "run.json").write_text(json.dumps(FACTS | facts))
        lines = [json.dumps(record) + "\n" for record in records_of_run(score)]
        (path / "metrics.jsonl").write_text("".join(lines))
        result = {"best_step": NUM_STEPS, "metrics": {"eval/accuracy": score, "eval/loss": 0.025}}
        (path / "result.json").write_text(json.dumps(result))
        return path

    return make


@pytest.fixture
def make_stream(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder of a stream run: ``make_stream("lae/order-0", [[0.9], [0.8, 0.7]])``.

    Other experts come as keyword arguments; of the stream's experiences each has 100 rows more.
    """

    def make(
        folder: str, online: list[list[float]], *, num_experiences: int = 2, **others: Any
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "config.yaml").write_text("{}")
        (path / "run.json").write_text(json.dumps(FACTS))
        results = Results({f"part {i}": 100 * (i + 1) for i in range(num_experiences)})
        for i, row in enumerate(online):
            results = results.with_row({"online": row} | {e: rows[i] for e, rows in others.items()})
        results.write(path)
        return path

    return make
