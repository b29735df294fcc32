"""What a study will cost: GPU hours by the plan or by what was measured, and disk."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from scalepet import build, planning
from scalepet.errors import ConfigError
from scalepet.launch.gpus import sees_gpus
from scalepet.planning import GIB, GPUS, LAYOUTS, Machines, Work
from scalepet.reading import parse_json, read_text
from scalepet.recipes.plan import work_of
from scalepet.recipes.study import CellPlan
from scalepet.recipes.sweep import num_left, runs_known, standing

FORWARD_SHARE = 0.5
"""Of a step of a frozen backbone, which computes the inputs' gradients besides."""

STATE_BYTES = 12
"""Of a trained number in fp32 and its two moments."""

ADAPTER_BYTES = 4
RECORD_BYTES = 50_000
"""Of a run's other files, about."""


def gpu_here() -> str | None:
    """The kind of this machine's GPU, as the planner calls it; None where it knows none."""
    if not sees_gpus():
        return None
    properties = torch.cuda.get_device_properties(0)
    kinds = [kind for kind in GPUS if kind.partition("-")[0] in properties.name.lower()]
    size = properties.total_memory / GIB
    return min(kinds, key=lambda kind: abs(GPUS[kind].memory_gib - size), default=None)


def planned_hours(cells: Sequence[CellPlan], machines: Machines) -> float | None:
    """Of one GPU, for all runs that are not finished; None where a backbone cannot be planned."""
    seconds = 0.0
    for cell in cells:
        work = _work(cell)
        if work is None:
            return None
        seconds += num_left(cell) * _seconds(cell, work, machines)
    return seconds / 3600


def measured_hours(cells: Sequence[CellPlan]) -> tuple[float, list[str]]:
    """Of one process, for all runs that are not finished, by the median run of the same backbone
    and task; and the pairs of which no run is finished, which are left out.
    """
    measured: dict[str, list[float]] = {}
    for cell in cells:
        seconds = measured.setdefault(_pair(cell), [])
        for run in runs_known(cell):
            if standing(run.folder) == "finished":
                result = parse_json(read_text(run.folder / "result.json"))
                seconds.append(result["seconds"])
    total = sum(
        num_left(cell) * statistics.median(measured[_pair(cell)])
        for cell in cells
        if measured[_pair(cell)]
    )
    unknown = {_pair(cell) for cell in cells if num_left(cell) and not measured[_pair(cell)]}
    return total / 3600, sorted(unknown)


def disk_bytes(cells: Sequence[CellPlan]) -> tuple[int, int]:
    """Of all runs once they are finished, about, and the most that the states of one of them take
    until it is.
    """
    finished, states = 0, 0
    for cell in cells:
        work = _work(cell)
        trained = cell.num_masked if work is None else work.num_trained
        finished += cell.num_runs * (trained * ADAPTER_BYTES + RECORD_BYTES)
        states = max(states, trained * STATE_BYTES * cell.config.train.keep_states)
    return finished, states


def _work(cell: CellPlan) -> Work | None:
    try:
        return work_of(cell.config, num_gpus=1)
    except ConfigError:  # a family that the planner does not know
        return None


def _pair(cell: CellPlan) -> str:
    return f"{cell.place.backbone}/{cell.place.task}"


def _seconds(cell: CellPlan, work: Work, machines: Machines) -> float:
    """Of one run: its steps, and the forward passes of its evaluations."""
    config = cell.config
    layout = next((known for known in LAYOUTS if known.name == config.deepspeed), LAYOUTS[0])
    is_checkpointed = config.backbone.checkpoint_activations
    verdict = planning.judge(work, layout, machines, is_checkpointed=is_checkpointed)
    steps_per_epoch = -(-cell.rows["train"] // config.train.batch_size)
    num_steps = build.num_steps_of(config.train, steps_per_epoch)
    num_evaluations = 1 - (-num_steps // (config.train.evaluate_every or steps_per_epoch))
    num_rows = num_evaluations * cell.rows["eval"] + cell.rows["test"]
    num_forwards = num_rows / config.train.batch_size
    return verdict.traffic.step_seconds * (num_steps + FORWARD_SHARE * num_forwards)
