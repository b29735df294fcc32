"""Bytes of one GPU and of one host, line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scalepet.planning.hardware import Machines
from scalepet.planning.layouts import FP32_BYTES, Layout
from scalepet.planning.work import Work

MASTER_BYTES = 4
MOMENT_BYTES = 8
LOADING_BYTES = 2**30
"""Of a process that fills its shards from safetensors: a bound, which the tests of loading hold."""

REDUCE_BUCKET = 2_000_000
"""Elements, as ``compose_ds_config`` sets it; DeepSpeed allocates it whole, and at stage 2, where
communication overlaps, twice.
"""


@dataclass(frozen=True)
class Line:
    """One part of the memory.

    Attributes:
        what: it is.
        why: it has this size.
    """

    what: str
    num_bytes: int
    why: str


def gpu_lines(
    work: Work, layout: Layout, machines: Machines, *, is_checkpointed: bool
) -> tuple[Line, ...]:
    """What one GPU holds at its fullest moment: the end of a forward, or the middle of a layer."""
    lines = [
        *_weights(work, layout, machines),
        *_trained(work, layout, machines),
        *_buffers(work, layout, machines),
        *_activations(work, layout, is_checkpointed=is_checkpointed),
    ]
    return tuple(line for line in lines if line.num_bytes)


def shard_numel(sizes: Iterable[int], num_shards: int) -> int:
    """Elements of one shard: ZeRO-3 cuts every tensor by itself and pads it."""
    return sum(-(-size // num_shards) for size in sizes)


def _weights(work: Work, layout: Layout, machines: Machines) -> Iterator[Line]:
    size, gpus = work.num_bytes, machines.num_gpus
    if not layout.is_sharded:
        yield Line("frozen weights", size * work.num_frozen, "whole on every GPU")
        return
    if not layout.is_offloaded:
        why = f"one shard of {gpus}"
        yield Line("frozen weights", size * shard_numel(work.frozen, gpus), why)
    if layout.is_local:
        local = machines.gpus_a_node
        why = f"hpZ's second shard, one of {local} in the node; for good"
        yield Line("frozen weights", size * shard_numel(work.frozen, local), why)
    why = f"tensors of up to {layout.threshold:,} numbers stay whole"
    yield Line("small weights", size * layout.persistent(work.frozen), why)


def _trained(work: Work, layout: Layout, machines: Machines) -> Iterator[Line]:
    count, size, gpus = work.num_trained, work.num_bytes, machines.num_gpus
    share = -(-count // gpus)
    if layout.is_sharded:
        working = layout.persistent(work.trained)
        working += 0 if layout.is_offloaded else shard_numel(work.trained, gpus)
        why = "shards, and small tensors whole"
        if layout.is_local:
            working += shard_numel(work.trained, machines.gpus_a_node)
            why += "; hpZ's second shards, anew in every step"
        yield Line("trained values", size * working, why)
    else:
        yield Line("trained values", size * count, "whole on every GPU")
    is_plain = layout.is_plain(size)
    if is_plain:
        yield Line("optimizer", MOMENT_BYTES * count, "two fp32 moments of each, whole (stage 0)")
    elif not layout.is_offloaded:
        why = f"fp32 master and two moments of each, one shard of {gpus}"
        yield Line("optimizer", (MASTER_BYTES + MOMENT_BYTES) * share, why)
    if layout.stage == 0:
        yield Line("gradients", size * count, "whole on every GPU")
    if not is_plain and not layout.is_offloaded:
        why = f"one shard of {gpus}, and once more in fp32 for the step"
        yield Line("gradients", (size + FP32_BYTES) * share, why)
    yield Line("positions", work.index_bytes, "of the mask, whole on every GPU")


def _buffers(work: Work, layout: Layout, machines: Machines) -> Iterator[Line]:
    size = work.num_bytes
    if layout.gathers(machines):
        sizes = [*work.frozen, *work.trained]
        largest = max(sizes)
        live = min(layout.gathered(sizes), layout.max_live + largest)
        why = f"{layout.max_live:,} numbers ahead (stage3_max_live_parameters) and a tensor"
        if live < layout.max_live:
            why = "all that is gathered is fewer than stage3_max_live_parameters"
        yield Line("gathered weights", size * live, why)
    if not layout.is_plain(size):
        num_buckets = 2 if layout.stage == 2 else 1
        why = f"{num_buckets} of {REDUCE_BUCKET:,} numbers"
        yield Line("reduce bucket", size * num_buckets * REDUCE_BUCKET, why)


def _activations(work: Work, layout: Layout, *, is_checkpointed: bool) -> Iterator[Line]:
    kept = work.kept(work.rows, keeps_inputs=layout.is_sharded, is_checkpointed=is_checkpointed)
    source = work.batch(1).length("source")
    why = f"rows: {work.rows}; tokens of each: {source} + {work.target}"
    why += ", one input a layer" if is_checkpointed else ""
    yield Line("activations", kept.saved_bytes, why)
    yield Line("one layer again", kept.again_bytes, "while backward runs it a second time")
    passing = max(kept.layer_bytes, kept.passing_bytes, work.temporary_bytes)
    why = "a layer's forward, logits and their gradients, or value gradients being formed"
    yield Line("passing", passing, why)


def host_lines(work: Work, layout: Layout, machines: Machines) -> tuple[Line, ...]:
    """What the fullest host holds, beside Python and its libraries."""
    size, local = work.num_bytes, machines.gpus_a_node
    total = work.num_frozen + work.num_trained
    if layout.is_sharded:
        why = f"each of {local} processes reads its own part in pieces, in up to 1 GiB"
        loading = Line("loading", LOADING_BYTES * local, why)
    else:
        why = f"each of {local} processes reads the whole checkpoint"
        loading = Line("loading", size * work.shape.numel * local, why)
    lines = [loading]
    if layout.is_offloaded:
        share = -(-total // machines.num_nodes)
        lines.append(Line("weights", size * share, "shards of the node's GPUs, pinned"))
        trained = -(-work.num_trained // machines.num_nodes)
        optimizer = (MASTER_BYTES + MOMENT_BYTES + FP32_BYTES) * trained
        lines.append(Line("optimizer", optimizer, "masters, moments and gradients in fp32"))
    return (*lines, *_offline_copies(work, layout, machines))


def _offline_copies(work: Work, layout: Layout, machines: Machines) -> Iterator[Line]:
    """No GPU holds any of it: each rank has the parts of every copy that its optimizer moves."""
    if not work.num_offline:
        return
    on_the_way = 0 if layout.is_offloaded else 1
    parts = (work.num_offline + on_the_way) * -(-work.num_tuned // machines.num_nodes)
    why = f"{work.num_offline} in fp32, in parts" + (", and new numbers" if on_the_way else "")
    yield Line("offline copies", FP32_BYTES * parts, why)
    wholes = (work.num_offline + 1) * work.num_tuned * machines.gpus_a_node
    why = f"each of {machines.gpus_a_node} processes keeps how the last experience left them"
    yield Line("between experiences", FP32_BYTES * wholes, why)
