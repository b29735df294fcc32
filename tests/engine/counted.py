"""What one rank sends for, holds and reduces in a training step, counted at the collectives.

As a script: ``counted.py '{"folder": ..., "out": FILE, "cases": {NAME: CASE}}'``, on every rank;
``FILE`` holds what rank 0 has counted.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.build import DTYPES
from scalepet.pet import plan_apet

NUM_STEPS = 3
"""The first one registers what T5 reads of a layer from outside of it; the others are alike."""

BUDGET = 2000
KINDS = {
    "all_gather_into_tensor": "output_tensor",
    "reduce_scatter_tensor": "input_tensor",
    "all_reduce": "tensor",
}
"""Collective -> its argument that is whole."""


@dataclass(frozen=True)
class Case:
    """One way to run the same training of APET on a T5."""

    backbone: str = "t5-gated"
    zero: dict[str, Any] = field(default_factory=dict)
    precision: engine.Precision = "fp32"
    checkpoints: Literal["none", "reentrant", "non-reentrant"] = "none"
    has_stand_in: bool = False


@dataclass
class Counter:
    """What was passed to collectives since the last look.

    Attributes:
        calls: (kind, type, numbers, bytes, ranks that take part) of each.
        fetched: (name, whether out of hpZ's second shards) of each parameter that layers asked for.
        bucket_bytes: of the buffers for gradients, the most at any collective.
    """

    calls: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    fetched: list[tuple[str, bool]] = field(default_factory=list)
    bucket_bytes: int = 0

    def take(self) -> dict[str, Any]:
        taken = {"calls": self.calls, "fetched": self.fetched}
        self.calls, self.fetched = [], []
        return taken


@contextmanager
def counting(counter: Counter, zero: Any) -> Iterator[None]:
    """All that DeepSpeed passes to torch.distributed."""
    from deepspeed.comm import comm

    plain = {kind: getattr(comm.cdb, kind) for kind in KINDS}

    def counted(kind: str, *args: Any, **kwargs: Any) -> Any:
        whole: Tensor = kwargs[KINDS[kind]] if KINDS[kind] in kwargs else args[0]
        ranks = torch.distributed.get_world_size(kwargs.get("group"))
        size = whole.numel() * whole.element_size()
        counter.calls.append((kind, str(whole.dtype), whole.numel(), size, ranks))
        counter.bucket_bytes = max(counter.bucket_bytes, bucket_bytes(zero))
        return plain[kind](*args, **kwargs)

    for kind in KINDS:
        setattr(comm.cdb, kind, partial(counted, kind))
    try:
        yield
    finally:
        for kind in KINDS:
            setattr(comm.cdb, kind, plain[kind])


def bucket_bytes(zero: Any) -> int:
    """Of the buffers in which gradients wait to be reduced: one at stage 3, a list below."""
    found = 0
    for bucket in getattr(zero, "ipg_buckets", {}).values():
        buffers = [bucket.buffer] if isinstance(bucket.buffer, Tensor) else bucket.buffer
        found += sum(buffer.numel() * buffer.element_size() for buffer in buffers or ())
    return found


def note_fetches(model: nn.Module, counter: Counter) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def noted(plain: Any, parameters: Any, **kwargs: Any) -> Any:
        parameters = list(parameters)
        counter.fetched += [(names[id(p)], p.ds_secondary_tensor is not None) for p in parameters]
        return plain(parameters, **kwargs)

    sharded: Any = (p for p in model.parameters() if hasattr(p, "ds_id"))
    for parameter in sharded:
        parameter.all_gather_coalesced = partial(noted, parameter.all_gather_coalesced)


def stand_in_kernel() -> None:
    """Plain torch for the CUDA kernel that rounds numbers to int8, with a scale for each group."""
    from deepspeed.runtime.zero.partition_parameters import CUDAQuantizer

    def quantize(flat: Tensor, groups: int, *_: Any) -> tuple[Tensor, Tensor]:
        rows = flat.float().reshape(groups, -1)
        scales = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        return (rows / scales).round().to(torch.int8).flatten(), scales.flatten()

    def dequantize(rounded: Tensor, scales: Tensor, groups: int, *_: Any) -> Tensor:
        rows = rounded.reshape(groups, -1).float() * scales[:, None]
        return rows.half().reshape(rounded.shape)

    CUDAQuantizer.quantizer_cuda_module = SimpleNamespace(
        quantize=quantize, dequantize=dequantize, Symmetric=0
    )


def start(case: Case, folder: Path) -> tuple[engine.Engine, Any]:
    """An engine, and what makes a loss of it."""
    backbone = Backbone(
        str(folder / case.backbone),
        dropout=0.0,
        checkpoint_activations=case.checkpoints == "reentrant",
    )
    config = backbones.read_model_config(backbone)
    ds_config = engine.compose_ds_config(
        {"zero_optimization": {"stage": 3, **case.zero}},
        precision=case.precision,
        micro_batch_size=4,
        num_micro_batches=1,
        clip=None,
    )
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(
            backbone, config, dtype=DTYPES[case.precision], fill=engine.shard_filler(ds_config)
        )
    plan_apet(backbones.sketch_sites(config), budget=BUDGET).attach(loaded.model)
    if case.checkpoints == "non-reentrant":
        loaded.model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = engine.AdamW(1e-2, 1e-2)
    runner = engine.Engine(loaded.model, head_names=(), optimizer=optimizer, ds_config=ds_config)
    return runner, partial(backbones.family_of(config).loss_sum, config=config)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    if case.has_stand_in:
        stand_in_kernel()
    runner, loss_sum = start(case, folder)
    generator = torch.Generator().manual_seed(dist.rank())
    ids = torch.randint(2, 60, (4, 8), generator=generator).to(runner.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :5]}
    counter, steps, second = Counter(), [], []
    note_fetches(runner.module, counter)
    runner.in_training.train()
    with counting(counter, runner._engine.optimizer):
        for _ in range(NUM_STEPS):
            loss = loss_sum(runner.in_training, batch) / 100
            step = {"forward": counter.take()}
            runner.backward(loss)
            step["backward"] = counter.take()
            runner.step()
            step["step"] = counter.take()
            steps.append(step)
            second.append(second_shards(runner.module))
    found = {"steps": steps, "second": second, "bucket_bytes": counter.bucket_bytes}
    found |= {"sizes": sizes(runner.module), "held": held(runner.module), "loss": loss.item()}
    runner.close()
    return found


def second_shards(model: nn.Module) -> dict[str, tuple[int, int]]:
    """hpZ's second shards: where each is, and how often it has been written to."""
    return {
        name: (second.data_ptr(), second._version)
        for name, parameter in model.named_parameters()
        if (second := getattr(parameter, "ds_secondary_tensor", None)) is not None
    }


def sizes(model: nn.Module) -> dict[str, tuple[int, bool]]:
    """Of each parameter: (numbers, whether they are trained)."""
    return {
        name: (math.prod(engine.full_shape(parameter)), parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }


def held(model: nn.Module) -> dict[str, int]:
    """Bytes of parameters on this rank between two steps."""
    found = {"shards": 0, "second": 0, "whole": 0}
    parameters: Any = model.parameters()
    for parameter in parameters:
        size = parameter.element_size()
        found["whole"] += size * parameter.numel()
        if hasattr(parameter, "ds_id"):
            found["shards"] += size * parameter.ds_tensor.numel()
            second = parameter.ds_secondary_tensor
            found["second"] += 0 if second is None else size * second.numel()
    return found


def main() -> None:
    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    folder = Path(argument["folder"])
    found = {name: measure(Case(**case), folder) for name, case in argument["cases"].items()}
    if dist.is_main():
        Path(argument["out"]).write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
