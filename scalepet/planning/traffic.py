"""What crosses the links in a step, and how long it and the arithmetic take.

ZeRO-3 gathers every sharded tensor once in forward and, where backward passes it, once more. At the
turn from forward to backward DeepSpeed keeps what it has fetched ahead, about
``stage3_max_live_parameters`` elements. A T5's word table is gathered for each of its two stacks.
Tensors below the persistence threshold are gathered once a step, after the optimizer, trained or
not. With hpZ what is frozen comes from inside the node; what is trained comes from all GPUs once a
step, and gathers after the optimizer are of all GPUs. A backbone that is whole everywhere is not
gathered; only what the optimizer has moved is, where each GPU moves its part.
``tests/recipes/test_plan.py`` and ``tests/engine/test_traffic.py`` hold these counts to what
DeepSpeed does.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalepet.planning.hardware import Machines
from scalepet.planning.layouts import Layout
from scalepet.planning.work import Work


@dataclass(frozen=True)
class Traffic:
    """Of one GPU.

    Attributes:
        micro_gathered_bytes: whole tensors that come together in a micro-batch.
        step_gathered_bytes: the same in an optimizer step, after the optimizer included.
        micro_compute_seconds, micro_link_seconds: of one micro-batch.
        num_micro_batches: of an optimizer step.
        step_seconds: at best, gathers hidden behind arithmetic (or it behind them).
        step_seconds_exposed: at worst, one after the other.
    """

    micro_gathered_bytes: int
    step_gathered_bytes: int
    micro_compute_seconds: float
    micro_link_seconds: float
    num_micro_batches: int
    step_seconds: float
    step_seconds_exposed: float


def count_gathers(work: Work, layout: Layout, *, is_checkpointed: bool) -> tuple[int, int]:
    """Elements that ZeRO-3 gathers in forward and in backward of one micro-batch."""
    sizes = [*work.frozen, *work.trained]
    table = work.shape.start[0].numel
    again = layout.gathered([table]) if work.shape.family == "t5" else 0
    forward = layout.gathered(sizes) + again
    if is_checkpointed:
        # All layers run again; what trains is gathered for that and for its gradient.
        backward = layout.gathered(sizes) + layout.gathered(work.trained)
    else:
        asleep = [t.numel for t in work.shape.tensors if t.name not in work.live]
        backward = layout.gathered(sizes) - layout.gathered(asleep)
    return forward, max(0, backward - layout.max_live)


def count_gathers_after_step(work: Work, layout: Layout, machines: Machines) -> int:
    """Elements that are gathered once a step, after the optimizer."""
    if layout.is_sharded:
        small = layout.persistent([*work.frozen, *work.trained])
        return small if layout.gathers(machines) else 0
    is_divided = machines.num_gpus > 1 and not layout.is_plain(work.num_bytes)
    return work.num_trained if is_divided else 0


def count_traffic(
    work: Work, layout: Layout, machines: Machines, *, is_checkpointed: bool
) -> Traffic:
    """What one optimizer step takes."""
    rows_a_gpu = -(-work.batch_size // machines.num_gpus)
    num_micro = -(-rows_a_gpu // work.rows)
    gathered = link = 0.0
    after = work.num_bytes * count_gathers_after_step(work, layout, machines)
    if layout.gathers(machines):
        elements = sum(count_gathers(work, layout, is_checkpointed=is_checkpointed))
        gathered = work.num_bytes * elements
        link = _gather_seconds(gathered, layout, machines)
    compute = work.operations(work.rows, is_checkpointed=is_checkpointed) / machines.flops
    once = _once_a_step_seconds(work, after, layout, machines)
    return Traffic(
        micro_gathered_bytes=int(gathered),
        step_gathered_bytes=int(gathered * num_micro + after),
        micro_compute_seconds=compute,
        micro_link_seconds=link,
        num_micro_batches=num_micro,
        step_seconds=num_micro * max(compute, link) + once,
        step_seconds_exposed=num_micro * (compute + link) + once,
    )


def _gather_seconds(gathered: float, layout: Layout, machines: Machines) -> float:
    """A ring: every GPU takes in all shards but its own. Offloaded shards come out of the host's
    memory first.
    """
    if layout.is_local:
        others = 1 - 1 / machines.gpus_a_node
        return gathered * others / machines.inside_bytes_a_second()
    others = 1 - 1 / machines.num_gpus
    seconds = gathered * others / machines.world_bytes_a_second()
    if layout.is_offloaded:
        seconds += gathered / machines.num_gpus / machines.host_bytes_a_second()
    return seconds


def _once_a_step_seconds(work: Work, after: float, layout: Layout, machines: Machines) -> float:
    """Over all GPUs: gradients are summed, which passes their bytes twice where every GPU gets the
    sum and once where it gets a part; with hpZ what is trained is gathered once.
    """
    others = 1 - 1 / machines.num_gpus
    passed = work.num_trained * (1 if layout.is_sharded else 2)
    if layout.is_local:
        passed += layout.gathered(work.trained)
    return (work.num_bytes * passed + after) * others / machines.world_bytes_a_second()
