"""The worker that trains through steps whose loss or gradient is not finite.

As a script: ``non_finite.py '{"folder": ..., "out": ..., "cases": {NAME: CASE}}'``, on every rank.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.build import DTYPES
from scalepet.data import Encoded, TrainLoader
from scalepet.pet import plan_apet

NUM_ROWS, BATCH_SIZE = 32, 8
WITNESS = "bert.encoder.layer.1.attention.output.dense.weight_values"
"""The tensor whose gradient is spoilt; backward goes on to the layers below it."""

STEPS = ("gradient", "", "constant", "", "huge gradient", "", "loss", "")
"""What is wrong with each step; the first one that is trained is the second one."""


@dataclass(frozen=True)
class Case:
    """One training, in which the last rank alone has bad numbers."""

    stage: int
    precision: engine.Precision = "fp32"
    clip: float | None = None
    micro_batch_size: int = 2
    zero: dict[str, Any] = field(default_factory=dict)
    steps: tuple[str, ...] = STEPS


@dataclass
class Spoiler:
    """Spoils losses and gradients of the last rank as it is told."""

    how: str = ""
    num_losses: int = 0

    @property
    def is_on(self) -> bool:
        return dist.rank() == dist.world_size() - 1

    def gradient(self, gradient: Tensor) -> Tensor:
        if not self.is_on or "gradient" not in self.how:
            return gradient
        spoilt = torch.tensor(1e25 if "huge" in self.how else torch.nan).to(gradient)
        return spoilt.expand_as(gradient)

    def loss(self, loss: Tensor) -> Tensor:
        self.num_losses += 1
        if not self.is_on:
            return loss
        spoilt: dict[str, Callable[[Tensor], Tensor]] = {
            "loss": lambda loss: loss * torch.nan if self.num_losses == 1 else loss,
            "constant": lambda loss: loss + torch.inf,  # whose gradients are finite
        }
        return spoilt[self.how](loss) if self.how in spoilt else loss


def make_rows() -> Encoded:
    generator = np.random.default_rng(5)
    sources = [
        generator.integers(2, 60, n).astype(np.int32) for n in generator.integers(3, 9, NUM_ROWS)
    ]
    classes = generator.integers(0, 3, NUM_ROWS).astype(np.int32)
    return Encoded("head", sources, list(classes[:, None]), classes=classes)


def make_loader(case: Case) -> TrainLoader:
    return TrainLoader(
        make_rows(),
        batch_size=BATCH_SIZE,
        micro_batch_size=case.micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        seed=1,
        pad_id=0,
    )


def start(case: Case, folder: Path, spoiler: Spoiler) -> tuple[engine.Engine, Any]:
    loader = make_loader(case)
    ds_config = engine.compose_ds_config(
        {"zero_optimization": {"stage": case.stage, **case.zero}},
        precision=case.precision,
        micro_batch_size=case.micro_batch_size,
        num_micro_batches=loader.num_micro_batches,
        clip=case.clip,
    )
    backbone = Backbone(str(folder / "bert"), num_classes=3, dropout=0.0)
    config = backbones.read_model_config(backbone)
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(backbone, config, dtype=DTYPES[case.precision])
    plan_apet(backbones.sketch_sites(config), budget=400, kinds=("matrix",), seed=2).attach(
        loaded.model
    )
    generator = torch.Generator().manual_seed(0)
    for name in loaded.head_names:
        head: Any = loaded.model.get_parameter(name).requires_grad_(True)
        # Torch draws other numbers in other types.
        engine.write_whole(head, 0.1 * torch.randn(engine.full_shape(head), generator=generator))
    # Before the engine comes, so that it sees what this leaves.
    loaded.model.get_parameter(WITNESS).register_hook(spoiler.gradient)
    optimizer = engine.AdamW(1e-2, 3e-3, weight_decay=0.01, epsilon=1e-2)
    runner = engine.Engine(
        loaded.model, head_names=loaded.head_names, optimizer=optimizer, ds_config=ds_config
    )
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)

    def spoilt_loss_sum(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        return spoiler.loss(loss_sum(model, tensors))

    return runner, spoilt_loss_sum


@contextlib.contextmanager
def counting_own() -> Iterator[list[str]]:
    """The collectives of scalepet itself, beside those of DeepSpeed."""
    called: list[str] = []
    names = ("sum_over_ranks", "all_gather_objects", "broadcast_object", "barrier")
    plain = {name: getattr(dist, name) for name in names}

    def counted(name: str, *given: Any) -> Any:
        called.append(name)
        return plain[name](*given)

    for name in names:
        setattr(dist, name, partial(counted, name))
    try:
        yield called
    finally:
        for name in names:
            setattr(dist, name, plain[name])


def state_of(runner: engine.Engine) -> dict[str, Tensor]:
    """All that a step may change, working copies among it."""
    parameters = engine.trained_parameters(runner.module)
    return {
        **runner.read_trained(),
        **runner.read_optimizer(),
        **{f"{name}/step": torch.tensor(n) for name, n in runner.read_adam_steps().items()},
        **{f"{name}/copy": engine.read_whole(p).float() for name, p in parameters.items()},
    }


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest one; not a number where one is not."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def train(case: Case, folder: Path) -> dict[str, Any]:
    """The reports, how much each step changed, and how much the end differs from that of a training
    that never saw a bad step.
    """
    spoiler, loader = Spoiler(), make_loader(case)
    runner, loss_sum = start(case, folder, spoiler)
    reports, states = [], [state_of(runner)]
    for index, how in enumerate(case.steps):
        spoiler.how, spoiler.num_losses = how, 0
        with counting_own() as own:
            report = engine.train_step(
                runner, loader.step(index), loss_sum=loss_sum, learning_rate_factor=1 - index / 20
            )
        reports.append({**describe(report), "collectives": own})
        states.append(state_of(runner))
    found = {
        "reports": reports,
        "changes": [difference(one, other) for one, other in itertools.pairwise(states)],
        "scaler": runner.read_loss_scaler(),
    }
    runner.close()
    return {**found, "difference": difference(states[-1], follow(case, folder))}


def follow(case: Case, folder: Path) -> dict[str, Tensor]:
    """The state after the good steps and no others."""
    loader = make_loader(case)
    runner, loss_sum = start(case, folder, Spoiler())
    for index in (index for index, how in enumerate(case.steps) if not how):
        report = engine.train_step(
            runner, loader.step(index), loss_sum=loss_sum, learning_rate_factor=1 - index / 20
        )
        assert report.skipped is None, report
    state = state_of(runner)
    runner.close()
    return state


def describe(report: engine.StepReport) -> dict[str, Any]:
    out = report.skipped
    return {
        "loss": report.loss,
        "norm": report.gradient_norm,
        "what": out and out.what,
        "ranks": out and out.ranks,
        "losses": out and out.losses,
        "is_overflow": out and out.is_overflow,
        "learning_rate": report.learning_rate,
    }


def compare_fp16(stage: int, folder: Path) -> dict[str, Any]:
    """Losses in fp16 and in fp32, and how far the tuned numbers are apart in the end."""
    losses, ends = {}, {}
    cases = (Case(stage, "fp16", clip=1.0), Case(0, "fp32", clip=1.0))
    for case in cases:
        loader = make_loader(case)
        runner, loss_sum = start(case, folder, Spoiler())
        reports = [
            engine.train_step(runner, loader.step(n), loss_sum=loss_sum, learning_rate_factor=1.0)
            for n in range(8)
        ]
        assert not any(report.skipped for report in reports), reports
        losses[case.precision] = [report.loss for report in reports]
        tuned = [whole for name, whole in runner.read_trained().items() if "values" in name]
        ends[case.precision] = torch.cat(tuned)
        runner.close()
    error = float((ends["fp16"] - ends["fp32"]).norm() / ends["fp32"].norm())
    return {"losses": losses, "error": error}


def main() -> None:
    argument = json.loads(sys.argv[1])
    folder, out = Path(argument["folder"]), Path(argument["out"])
    engine.join_processes(timeout_seconds=60)
    # torch computes in fp16 on a CPU, DeepSpeed just does not want to.
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    cases = {name: Case(**case) for name, case in argument["cases"].items()}
    found: dict[str, Any] = {name: train(case, folder) for name, case in cases.items()}
    found |= {f"fp16 {stage}": compare_fp16(stage, folder) for stage in argument["fp16"]}
    (out / f"{dist.rank()}.json").write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
