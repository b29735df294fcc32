"""Folders of studies whose scores are known: logistic in the logarithm of the size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scalepet.recipes.study import Cell
from scalepet.tracking import seal

SEALED = ("config.yaml", "run.json", "cell.json", "metrics.jsonl", "result.json")
BACKBONES = {"small": 1_000_000, "large": 30_000_000}
SIZES = {"prompt": 6_400, "bitfit": 3_000, "lora": 12_288, "adapter": 20_000, "head": 0}
NUM_ROWS = 400
METRIC = "accuracy"


def logistic(size: float, *, low: float, high: float, midpoint: float, slope: float) -> float:
    """Straight from the formula, in log10 of the size."""
    return low + (high - low) / (1 + math.exp(-slope * (math.log10(size) - midpoint)))


def write_run(
    study: Path,
    cell: Cell,
    *,
    score: float,
    tuned: int,
    eval_score: float | None = None,
    kind: str | None = None,
    options: dict[str, Any] | None = None,
    head: int = 770,
    backbone_size: int = 1_000_000,
    majority: float | None = 0.25,
    metric: str = METRIC,
    path: str = "assets/nowhere",
    step_seconds: float = 0.01,
) -> Path:
    """One finished run of a study, as a recipe leaves it."""
    size = "" if cell.budget is None or cell.matches else f"-{cell.budget}"
    as_other = f"-as-{cell.matches}" if cell.matches else ""
    run = f"lr{cell.learning_rate:g}-p{cell.position_seed}-d{cell.data_seed}"
    folder = study / "runs" / cell.backbone / cell.task / f"{cell.method}{size}{as_other}" / run
    cell.write(folder)
    method = {"name": kind or cell.method, **(options or {})}
    if cell.budget is not None:
        method |= {"budget": cell.budget, "seed": cell.position_seed}
    frozen = backbone_size - (tuned if method["name"] == "full" else 0)
    counts = {"trained": tuned + head, "masked": tuned, "head": head, "backbone": frozen}
    config = {
        "output": str(folder.name),
        "precision": "fp32",
        "deepspeed": "zero0",
        "backbone": {"path": path},
        "task": {
            "kind": "classification" if majority is not None else "sequence_to_sequence",
            "source": {"path": "csv", "files": {"train": "rows.csv", "validation": "rows.csv"}},
            "template": "{text}",
            "target": "label",
            "metrics": [metric],
        },
        "method": method,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {
        "scalepet": "0.1.0",
        "versions": {"torch": "2.13.0"},
        "git_commit": "abcdef012345",
        "command": ["/somewhere/bin/scalepet", "sweep", "study.yaml"],
        "world_size": 1,
        "counts": counts,
        "method": method["name"],
        "majority": majority,
        "test_majority": majority,
        "rows": {"train": 800, "eval": NUM_ROWS, "test": NUM_ROWS},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    records = _records(score, metric, cell.learning_rate, step_seconds)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    chosen = score if eval_score is None else eval_score
    result = {
        "best_step": 20,
        "metrics": {f"eval/{metric}": chosen, f"test/{metric}": score},
        "num_steps": 20,
        "seconds": 2.5,
        "peak_memory_bytes": 8 * backbone_size + 16 * tuned + 2**28,
    }
    (folder / "result.json").write_text(json.dumps(result))
    seal(folder, SEALED)
    return folder


def _records(score: float, metric: str, rate: float, step_seconds: float) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [
        {"step": 0, "kind": "eval", "seconds": 0.1, f"eval/{metric}": 0.05}
    ]
    for step in range(2, 21, 2):
        loss = 1.4 - score * (1 - math.exp(-step / 6)) + 0.02 * math.sin(step + 7 * rate)
        values = {"loss": loss, "step_seconds": step_seconds}
        records.append({"step": step, "kind": "train", "seconds": 0.1 + step / 10, **values})
    return records


def write_cell(
    study: Path,
    backbone: str,
    task: str,
    method: str,
    *,
    score: float,
    tuned: int,
    seeds: list[tuple[int, int]],
    budget: int | None = None,
    matches: str | None = None,
    noise: float = 0.0,
    factors: tuple[float, ...] = (0.3, 1.0, 3.0),
    **facts: Any,
) -> None:
    """All runs of a cell: tries at the first seeds, of which factor 1 is the best on eval (and on
    test the worst, so that a choice by test would show), then repeats.
    """
    generator = np.random.default_rng([ord(c) for c in f"{backbone}{task}{method}{tuned}"])
    for factor in factors:
        for place, (position, data) in enumerate(seeds):
            if factor != 1.0 and place:
                continue
            cell = Cell(
                study=study.name,
                backbone=backbone,
                task=task,
                method=method,
                budget=budget,
                matches=matches,
                position_seed=position,
                data_seed=data,
                learning_rate=round(0.01 * factor, 6),
                factor=factor,
            )
            own = score + (generator.normal(0, noise) if noise else 0.0)
            right = round(min(max(own, 0.0), 1.0) * NUM_ROWS) / NUM_ROWS
            is_best = factor == 1.0
            write_run(
                study,
                cell,
                score=right if is_best else min(right + 0.1, 1.0),
                eval_score=right if is_best else right - 0.1,
                tuned=tuned,
                **facts,
            )


def write_study(
    study: Path,
    *,
    backbones: tuple[str, ...] = ("small", "large"),
    tasks: tuple[str, ...] = ("news",),
    budgets: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000, 1_000_000),
    position_seeds: int = 3,
    noise: float = 0.01,
    midpoints: dict[str, float] | None = None,
    factors: tuple[float, ...] = (0.3, 1.0, 3.0),
    head: int = 770,
    majority: float | None = 0.25,
    metric: str = METRIC,
) -> Path:
    """A whole study: APET over budgets and as the other methods, and these beside it.

    APET follows 0.25 + 0.6 / (1 + exp(-3 (log10 N - midpoint))), the midpoint 3.5 on the small
    backbone and 2.5 on the large one; a method is .02 above APET at its size on the small backbone
    and level on the large one; full tuning scores .85.
    """
    study.mkdir(parents=True)
    (study / "study.yaml").write_text("output: here\n")
    seeds = [(position, 0) for position in range(position_seeds)]
    for backbone in backbones:
        for number, task in enumerate(tasks):
            midpoint = (midpoints or {"small": 3.5, "large": 2.5})[backbone] + 0.2 * number
            write = partial(
                write_cell,
                study,
                backbone,
                task,
                noise=noise,
                factors=factors,
                head=head,
                majority=majority,
                metric=metric,
                backbone_size=BACKBONES[backbone],
                step_seconds=0.002 * BACKBONES[backbone] ** 0.3,
            )
            _write_grid(write, midpoint, budgets, seeds, above=0.02 * (backbone == "small"))
            full = BACKBONES[backbone]
            write("full", score=0.85, tuned=full, seeds=[(0, 0), (0, 1), (0, 2)])
    return study


def _write_grid(
    write: Callable[..., None],
    midpoint: float,
    budgets: tuple[int, ...],
    seeds: list[tuple[int, int]],
    *,
    above: float,
) -> None:
    at = partial(logistic, low=0.25, high=0.85, midpoint=midpoint, slope=3.0)
    for budget in budgets:
        write("apet", score=at(budget), tuned=budget, seeds=seeds, budget=budget)
    for method, size in SIZES.items():
        score = at(size) + above if size else 0.3
        write(method, score=score, tuned=size, seeds=[(0, 0), (0, 1)])
        if size:
            write("apet", score=at(size), tuned=size, seeds=seeds, budget=size, matches=method)
    for name, options in PLACES.items():
        own = {"score": at(1000) - 0.01, "tuned": 1000, "budget": 1000, "seeds": seeds}
        write(name, kind="apet", options=options, **own)


PLACES: dict[str, dict[str, Any]] = {
    "rows": {"unit": "row"},
    "magnitude": {"select": "magnitude"},
    "one layer": {"include": ["encoder.layer.2.*"]},
}
