"""Where ZeRO keeps what: the shipped DeepSpeed files that a plan chooses among."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scalepet.planning.hardware import Machines

MAX_LIVE = 1_000_000_000
"""``stage3_max_live_parameters``, elements: prefetching fills as much."""

FP32_BYTES = 4

PERSISTENCE_THRESHOLD = 100_000
"""``stage3_param_persistence_threshold``, elements: tensors up to it stay whole on every GPU."""


@dataclass(frozen=True)
class Layout:
    """One way to keep a model.

    Attributes:
        name: of a file in ``ds_configs/``.
        stage: of ZeRO: 3 shards the backbone, below it every GPU holds it whole; 2 cuts the
            gradients of what is trained.
        is_local: hpZ: a second set of shards in every node, so that gathers stay inside.
        is_offloaded: shards and optimizer are in host memory.
        max_live: elements that are gathered ahead.
        threshold: tensors up to so many elements are whole on every GPU.
    """

    name: str
    stage: int
    is_local: bool = False
    is_offloaded: bool = False
    max_live: int = MAX_LIVE
    threshold: int = PERSISTENCE_THRESHOLD

    @property
    def is_sharded(self) -> bool:
        return self.stage == 3

    def is_plain(self, num_bytes: int) -> bool:
        """Whether torch's optimizer moves whole fp32 weights themselves; ``num_bytes`` is what one
        number of the model has. In 16 bits stage 0 is run as stage 1.
        """
        return self.stage == 0 and num_bytes == FP32_BYTES

    def gathers(self, machines: Machines) -> bool:
        """Whether weights have to come together: one GPU has all of its shards already."""
        return self.is_sharded and (machines.num_gpus > 1 or self.is_offloaded)

    def persistent(self, sizes: Iterable[int]) -> int:
        """Elements of the tensors that stay whole."""
        return sum(size for size in sizes if size <= self.threshold) if self.is_sharded else 0

    def gathered(self, sizes: Iterable[int]) -> int:
        """Elements of the tensors that come and go."""
        return sum(size for size in sizes if size > self.threshold) if self.is_sharded else 0


HPZ_PARTITION = 8
"""``zero_hpz_partition_size`` of the shipped file: over so many GPUs hpZ's second shards lie, which
are to be those of a node.
"""

LAYOUTS = (
    Layout("zero0", stage=0),
    Layout("zero2", stage=2),
    Layout("zero3", stage=3),
    Layout("zero3_hpz", stage=3, is_local=True),
    Layout("zero3_offload_cpu", stage=3, is_offloaded=True),
)
"""From the simplest on."""


def layouts_for(machines: Machines) -> tuple[Layout, ...]:
    """Those that differ: hpZ needs several nodes of several GPUs, and shards of anything several
    GPUs.
    """
    has_local = machines.num_nodes > 1 and machines.gpus_a_node > 1
    return tuple(
        layout
        for layout in LAYOUTS
        if (has_local or not layout.is_local)
        and (machines.num_gpus > 1 or layout.is_offloaded or layout.stage == 0)
    )
