"""Short trainings on the emulated device, with what each step asked of it and what is left after.

As a script: ``counted_steps.py '{"folder": ..., "out": FILE, "cases": {NAME: CASE}}'``, on every
rank; ``FILE`` holds what rank 0 has counted.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emulated_cuda import device
from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.build import DTYPES
from scalepet.data import Encoded, TrainLoader
from scalepet.pet import plan_apet

NUM_STEPS = 4
"""The first ones make plans and learn the order of the layers; the last one counts."""

BATCH_SIZE, NUM_CLASSES = 8, 3


@dataclass(frozen=True)
class Case:
    """One way to run the same training of APET."""

    backbone: str = "t5"
    stage: int = 3
    zero: dict[str, Any] = field(default_factory=dict)
    precision: engine.Precision = "fp32"
    num_micro_batches: int = 1


def make_rows(backbone: str) -> Encoded:
    """Random rows of one length, so that all micro-batches are alike."""
    generator = np.random.default_rng(5)
    sources = list(generator.integers(2, 60, (BATCH_SIZE, 9)).astype(np.int32))
    if backbone == "bert":
        classes = generator.integers(0, NUM_CLASSES, BATCH_SIZE).astype(np.int32)
        return Encoded("head", sources, list(classes[:, None]), classes=classes)
    return Encoded(
        "text", sources, list(generator.integers(2, 60, (BATCH_SIZE, 6)).astype(np.int32))
    )


def make_loader(case: Case) -> TrainLoader:
    return TrainLoader(
        make_rows(case.backbone),
        batch_size=BATCH_SIZE,
        micro_batch_size=BATCH_SIZE // dist.world_size() // case.num_micro_batches,
        rank=dist.rank(),
        world_size=dist.world_size(),
        seed=1,
        pad_id=0,
    )


def start(case: Case, folder: Path, loader: TrainLoader) -> tuple[engine.Engine, Any]:
    """An engine, and what makes a loss of its model."""
    backbone = Backbone(
        path=str(folder / case.backbone),
        num_classes=NUM_CLASSES if case.backbone == "bert" else None,
    )
    config = backbones.read_model_config(backbone)
    ds_config = engine.compose_ds_config(
        {"zero_optimization": {"stage": case.stage, **case.zero}},
        precision=case.precision,
        micro_batch_size=BATCH_SIZE // dist.world_size() // case.num_micro_batches,
        num_micro_batches=loader.num_micro_batches,
        clip=None,
    )
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(backbone, config, dtype=DTYPES[case.precision])
    plan_apet(backbones.sketch_sites(config), budget=400).attach(loaded.model)
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.head_names:
            parameter.requires_grad_(True)
    runner = engine.Engine(
        loaded.model,
        head_names=loaded.head_names,
        optimizer=engine.AdamW(1e-2, 1e-2),
        ds_config=ds_config,
    )
    return runner, partial(backbones.family_of(config).loss_sum, config=config)


def trained(case: Case, folder: Path) -> dict[str, Any]:
    """What the last step asked for: counts by kind, and the lines at which the host waited."""
    loader = make_loader(case)
    runner, loss_sum = start(case, folder, loader)
    for index in range(NUM_STEPS):
        with device.recorded() as record:
            report = engine.train_step(
                runner, loader.step(index), loss_sum=loss_sum, learning_rate_factor=1.0
            )
        assert report.skipped is None
    runner.close()
    lines = Counter({f"{kind}: {line}": n for (kind, line), n in record.lines.items()})
    return {"counts": record.counts, "waits": record.waits, "lines": lines, "loss": report.loss}


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """The same, with the bytes that it has left behind."""
    before = {"device": device.allocated_bytes(), "pinned": device.pinned_bytes()}
    found = trained(case, folder)
    gc.collect()
    after = {"device": device.allocated_bytes(), "pinned": device.pinned_bytes()}
    return {**found, "left": {where: after[where] - before[where] for where in before}}


def main() -> None:
    argument = json.loads(sys.argv[1])
    folder = Path(argument["folder"])
    engine.join_processes(timeout_seconds=60)
    cases = {name: Case(**case) for name, case in argument["cases"].items()}
    for name, case in tuple(cases.items()):  # and once more with twice as many micro-batches
        cases[f"{name}, cut"] = dataclasses.replace(
            case, num_micro_batches=2 * case.num_micro_batches
        )
    found = {name: measured(case, folder) for name, case in cases.items()}
    if dist.is_main():
        Path(argument["out"]).write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
