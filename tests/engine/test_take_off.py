"""A closed engine leaves nothing behind. This file is also the worker that starts and closes them.

As a script: ``test_take_off.py '{"folder": ..., "out": ..., "cases": {...}}'``.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

ON_CPU = {"device": "cpu", "pin_memory": False}
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 1, bf16": {"stage": 1, "precision": "bf16"},
    "stage 2": {"stage": 2},
    "stage 2, offload": {"stage": 2, "offload_optimizer": ON_CPU},
    "stage 3": {"stage": 3},
    "stage 3, offload": {"stage": 3, "offload_optimizer": ON_CPU, "offload_param": ON_CPU},
    "stage 3, hpZ": {"stage": 3, "zero_hpz_partition_size": 2},
    "stage 3, hpZ again": {"stage": 3, "zero_hpz_partition_size": 2},
}
NUM_PHASES = 2
CPU = torch.device("cpu")


@dataclass
class Worked:
    """A model on which engines have worked.

    Attributes:
        engines: these, their optimizers, and torch's.
        names: of all that lay on modules and parameters while they did.
    """

    model: nn.Module
    head_names: tuple[str, ...]
    loss_sum: Callable[..., Tensor]
    ds_config: dict[str, Any]
    engines: list[weakref.ref[Any]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def start(self) -> Any:
        from scalepet.engine import AdamW, Engine

        runner = Engine(
            self.model,
            head_names=self.head_names,
            optimizer=AdamW(learning_rate=0.01, head_learning_rate=0.01),
            ds_config=self.ds_config,
        )
        parts = (runner._engine, runner._engine.optimizer, runner._adamw)
        self.engines += [weakref.ref(part) for part in parts]
        return runner

    def train(self, step: Any) -> None:
        from scalepet.engine import train_step

        runner = self.start()
        # Of several micro-batches: DeepSpeed's cache of releases begins with the second forward.
        train_step(runner, step, loss_sum=self.loss_sum, learning_rate_factor=1.0)
        self.names |= set(self.marks())
        runner.close()

    def fail(self, tensors: dict[str, Tensor]) -> None:
        """An engine is left by an error that comes up deep in a forward."""

        def give_up(*_: Any) -> None:
            raise MemoryError

        *_, layer = (m for m in self.model.modules() if isinstance(m, nn.Linear))
        hook = layer.register_forward_pre_hook(give_up)
        with pytest.raises(MemoryError), self.start() as runner:
            self.loss_sum(runner.in_training, tensors)
        hook.remove()

    def answer(self, tensors: dict[str, Tensor]) -> None:
        from scalepet.engine import untrained

        with untrained(self.model, self.ds_config, CPU), torch.no_grad():
            self.loss_sum(self.model, tensors)

    def marks(self) -> list[str]:
        """What hangs on modules and parameters; hooks as often as they do. What a method has added
        stays the shards into which the first engine cuts it, as the backbone is from the start.
        """
        modules, parameters = list(self.model.modules()), list(self.model.parameters())
        hooks = [
            name
            for one in modules
            for name in vars(one)
            if "_hooks" in name
            for _ in vars(one)[name]
        ]
        for parameter in parameters:
            hooks += ["hook" for _ in parameter._backward_hooks or ()]
            hooks += ["hook" for _ in getattr(parameter, "_post_accumulate_grad_hooks", 0) or ()]
        on_modules = {f"module {name}" for one in modules for name in vars(one)}
        on_parameters = {f"parameter {name}" for one in parameters for name in vars(one)}
        return sorted([*hooks, *on_modules, *on_parameters])


def look(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is left of the engines while the model lives, and of the model when it has gone."""
    from engine.test_loop import make_loader, make_model

    from scalepet import backbones, engine

    zero, loader = dict(case), make_loader("t5")
    precision = zero.pop("precision", "fp32")
    ds_config = engine.compose_ds_config(
        {"zero_optimization": zero},
        precision=precision,
        micro_batch_size=3,
        num_micro_batches=loader.num_micro_batches,
        clip=None,
    )
    model, config, head_names = make_model("t5", folder, ds_config)
    if precision == "bf16":
        model.bfloat16()
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)
    worked = Worked(model, head_names, loss_sum, ds_config)
    del model
    tensors, linear = dict(loader.step(0).micro_batches[0].tensors), nn.functional.linear
    before = worked.marks()
    for _ in range(NUM_PHASES):
        worked.train(loader.step(0))
    worked.fail(tensors)
    worked.answer(tensors)
    gc.collect()  # what the error was holding
    found = {
        "engines": sum(ref() is not None for ref in worked.engines),
        "is clean": worked.marks() == before,
        "linear is plain": nn.functional.linear is linear,
        "names": sorted(worked.names - set(before)),
    }
    of_model = [weakref.ref(one) for one in (worked.model, *worked.model.parameters())]
    del worked
    gc.collect()
    return {**found, "of the model": sum(ref() is not None for ref in of_model)}


@pytest.fixture(scope="module")
def left(tiny_backbones: Path, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("left") / "left.json"
    argument = {"folder": str(tiny_backbones), "out": str(out), "cases": CASES}
    run_ranks(Path(__file__), argument, num_ranks=1, timeout_seconds=240)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_closed_engine_leaves_nothing(left: Any, name: str) -> None:
    found = dict(left[name])
    del found["names"]
    assert found == {"engines": 0, "is clean": True, "linear is plain": True, "of the model": 0}


def test_every_name_of_deepspeed_is_there(left: Any) -> None:
    """What is cleared away by a name that has moved would stay."""
    from scalepet.engine.take_off import ON_MODULES, ON_PARAMETERS

    seen = {name for found in left.values() for name in found["names"] if " " in name}
    known = {f"module {name}" for name in ON_MODULES}
    assert seen == known | {f"parameter {name}" for name in ON_PARAMETERS}


def main() -> None:
    from scalepet import engine

    argument = json.loads(sys.argv[1])
    engine.join_processes()
    found = {name: look(case, Path(argument["folder"])) for name, case in argument["cases"].items()}
    Path(argument["out"]).write_text(json.dumps(found))
    engine.leave_processes()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
