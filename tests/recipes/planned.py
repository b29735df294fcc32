"""What one rank really holds and gathers, for the planner's numbers to be held to.

As a script: ``planned.py '{"out": FILE, "cases": {NAME: RUN CONFIG}}'``, on every rank. Every
row is as long as the task's limits, so that there is no padding but one token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NUM_MICRO_BATCHES = 4
"""The first two record DeepSpeed's trace of the model; from the third on it prefetches."""


@contextmanager
def counting_saved(model: nn.Module) -> Iterator[dict[int, tuple[int, Tensor]]]:
    """Bytes of each storage that autograd keeps, parameters and buffers left out."""
    own = {
        tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]
    }
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        is_parameter = isinstance(tensor, nn.Parameter) or hasattr(tensor, "ds_id")
        if size and place not in own and not is_parameter:
            saved[place] = (size, tensor)  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def make_tensors(config: Any, *, is_t5: bool, vocabulary: int) -> dict[str, Tensor]:
    """One micro-batch of full length; its first row lacks a token, so that there is a mask."""
    rows = config.train.micro_batch_size
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randint, 2, vocabulary, generator=generator)
    ids = draw((rows, config.task.max_source_length))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    labels = draw((rows, config.task.max_target_length)) if is_t5 else ids[:, 0] % 2
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def measure(content: dict[str, Any]) -> dict[str, Any]:
    from deepspeed.comm import comm

    from scalepet import build, engine
    from scalepet.config import check_config

    config = check_config(content)
    plan = build.plan_run(config, config.task)
    ds_config = engine.compose_ds_config(
        engine.read_ds_file(config.deepspeed),
        precision=config.precision,
        micro_batch_size=config.train.micro_batch_size,
        num_micro_batches=1,
        clip=None,
    )
    loaded = build.load_backbone(plan, ds_config)
    build.attach(plan.method, loaded)
    runner = engine.Engine(
        loaded.model,
        head_names=loaded.head_names,
        optimizer=build.optimizer_of(config),
        ds_config=ds_config,
    )
    tensors = make_tensors(
        config, is_t5=plan.family.head == (), vocabulary=plan.model_config.vocab_size
    )
    gathered: list[int] = []
    buckets: list[int] = []
    plain_gather, plain_sum = comm.cdb.all_gather_into_tensor, comm.cdb.all_reduce

    def gather(*, output_tensor: Tensor, **kwargs: Any) -> Any:
        gathered.append(output_tensor.numel())
        return plain_gather(output_tensor=output_tensor, **kwargs)

    def sum_up(*args: Any, **kwargs: Any) -> Any:
        buckets.append(bucket_bytes(runner))
        return plain_sum(*args, **kwargs)

    comm.cdb.all_gather_into_tensor, comm.cdb.all_reduce = gather, sum_up
    found: dict[str, Any] = {"forward": [], "backward": [], "step": []}
    runner.in_training.train()
    for _ in range(NUM_MICRO_BATCHES):
        with counting_saved(runner.module) as saved:
            loss = plan.loss_sum(runner.in_training, tensors)
        found["forward"].append(take(gathered))
        found["saved_bytes"] = sum(size for size, _ in saved.values())
        saved.clear()
        runner.backward(loss)
        found["backward"].append(take(gathered))
        at_most = held(runner) if found["step"] else {}  # the first step makes the moments
        runner.step()
        found["step"].append(take(gathered))
    comm.cdb.all_gather_into_tensor, comm.cdb.all_reduce = plain_gather, plain_sum
    return found | at_most | {"bucket_bytes": max(buckets)}


def take(counts: list[int]) -> int:
    """Their sum; they start anew."""
    total = sum(counts)
    counts.clear()
    return total


def bucket_bytes(runner: Any) -> int:
    """Of the buffers in which gradients wait for their sum: one at stage 3, a list below."""
    found = 0
    for bucket in getattr(runner._engine.optimizer, "ipg_buckets", {}).values():
        buffers = [bucket.buffer] if isinstance(bucket.buffer, Tensor) else bucket.buffer
        found += size_of(buffers or ())
    return found


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held(runner: Any) -> dict[str, int]:
    """Bytes of this rank when a backward has ended."""
    frozen = working = 0
    for parameter in runner.module.parameters():
        size = parameter.numel()
        if hasattr(parameter, "ds_id"):
            second = parameter.ds_secondary_tensor
            size = parameter.numel() if parameter.ds_persist else 0
            size += parameter.ds_tensor.numel() + (0 if second is None else second.numel())
        size *= parameter.element_size()
        if parameter.requires_grad:
            working += size
        else:
            frozen += size
    zero = runner._engine.optimizer
    groups = (
        "fp32_partitioned_groups_flat" if runner.stage == 3 else "single_partition_of_fp32_groups"
    )
    masters = getattr(zero, groups, ())  # at stage 0 weights are their own masters
    states = getattr(zero, "optimizer", zero).state.values()
    return {
        "frozen_bytes": frozen,
        "working_bytes": working,
        "master_bytes": size_of(masters),
        "moment_bytes": size_of(t for state in states for n, t in state.items() if n != "step"),
        "gradient_bytes": size_of(gradients(runner)),
        "index_bytes": size_of(
            buffer for n, buffer in runner.module.named_buffers() if n.endswith("_positions")
        ),
    }


def gradients(runner: Any) -> list[Tensor]:
    """What is left of them for the optimizer."""
    zero = runner._engine.optimizer
    if runner.stage == 3:
        return [zero.grad_partitions_flat_buffer]
    if runner.stage == 0:
        return [p.grad for p in runner.module.parameters() if p.grad is not None]
    return [tensor for group in zero.averaged_gradients.values() for tensor in group]


def main() -> None:
    from scalepet import dist, engine

    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    found = {name: measure(content) for name, content in argument["cases"].items()}
    if dist.is_main():
        Path(argument["out"]).write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
