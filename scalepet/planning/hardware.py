"""GPUs and links as their makers publish them, and the machines that a run is planned for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scalepet.errors import ConfigError

GIB = 2**30
GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        memory_gib: all of it, as ``nvidia-smi`` shows it (ECC on).
        bf16_tflops: dense tensor-core peak; data sheets that say "with sparsity" say twice as much.
        nvlink: GB/s one way, of all its NVLinks; None where it has none.
    """

    memory_gib: float
    bf16_tflops: float
    nvlink: float | None = None


GPUS = {
    # NVIDIA A10 data sheet: 24 GB GDDR6, 125 TFLOPS bf16, PCIe Gen4.
    "a10-24": Gpu(22.5, 125),
    # NVIDIA RTX A6000 data sheet: 48 GB GDDR6, 309.7 TFLOPS with sparsity, PCIe Gen4.
    "a6000-48": Gpu(48.0, 154.8),
    # NVIDIA L4 data sheet: 24 GB GDDR6, 242 TFLOPS with sparsity, PCIe Gen4.
    "l4-24": Gpu(22.5, 121),
    # NVIDIA L40S data sheet: 48 GB GDDR6 with ECC, 362.05 TFLOPS, PCIe Gen4.
    "l40s-48": Gpu(45.0, 362),
    # NVIDIA A100 data sheet (SXM): 40 or 80 GB HBM2, 312 TFLOPS, NVLink 600 GB/s both ways.
    "a100-40": Gpu(40.0, 312, 300.0),
    "a100-80": Gpu(80.0, 312, 300.0),
    # NVIDIA H100 data sheet (SXM): 80 GB HBM3, 1,979 TFLOPS with sparsity, NVLink 900 GB/s.
    "h100-80": Gpu(79.6, 989, 450.0),
    # NVIDIA H200 data sheet (SXM): 141 GB HBM3e, 1,979 TFLOPS with sparsity, NVLink 900 GB/s.
    "h200-141": Gpu(140.4, 989, 450.0),
    # NVIDIA DGX B200 data sheet: 1,440 GB and 36 PFLOPS bf16 with sparsity for 8, NVLink 1.8 TB/s.
    "b200-180": Gpu(178.0, 2250, 900.0),
}

PCIE = 31.5
"""GB/s one way of a Gen4 x16 slot (PCI-SIG); a Gen5 slot has twice as much."""

INSIDE_LINKS = ("nvlink", "pcie")
"""Among the GPUs of a node."""

NETWORK_LINKS = {
    # GB/s one way and port: the name's Gbit/s divided by 8.
    "eth-25": 3.125,  # IEEE 802.3by
    "eth-100": 12.5,  # IEEE 802.3bj
    "ib-200": 25.0,  # InfiniBand HDR 4x
    "ib-400": 50.0,  # InfiniBand NDR 4x
}
"""Among nodes."""

LINK_EFFICIENCY = 0.8
"""Of the published bandwidth that large collectives get: what ``nccl-tests`` shows as bus bandwidth
on DGX systems is 75 to 85 % of it."""

RESERVED_GIB = 2.0
"""CUDA context, NCCL's buffers and the workspaces of cuBLAS: an assumption, not counted."""

USABLE_PART = 0.95
"""Of the rest; fragmentation of torch's allocator takes some: an assumption, not counted."""


@dataclass(frozen=True)
class Machines:
    """What a run is planned for.

    Attributes:
        kind: of the GPUs, a name in ``GPUS``.
        link: the slowest link that a gather over all GPUs passes.
        ports: network ports of a node.
        host_gib: memory of the host of each node; None where nobody says.
        mfu: part of the peak that matrix products reach.
    """

    num_gpus: int
    num_nodes: int
    kind: str
    link: str
    ports: int
    host_gib: float | None
    mfu: float

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.kind]

    @property
    def gpus_a_node(self) -> int:
        return self.num_gpus // self.num_nodes

    @property
    def usable_bytes(self) -> int:
        """Of one GPU, for what is counted."""
        return round((self.gpu.memory_gib - RESERVED_GIB) * USABLE_PART * GIB)

    @property
    def flops(self) -> float:
        """Operations a second and GPU."""
        return self.gpu.bf16_tflops * TERA * self.mfu

    def inside_bytes_a_second(self) -> float:
        """One way, for a collective inside a node."""
        fastest = self.gpu.nvlink or PCIE
        return (PCIE if self.link == "pcie" else fastest) * GIGA * LINK_EFFICIENCY

    def world_bytes_a_second(self) -> float:
        """One way, for a collective over all GPUs: a ring passes every node's ports."""
        if self.num_nodes == 1:
            return self.inside_bytes_a_second()
        network = NETWORK_LINKS[self.link] * self.ports * GIGA * LINK_EFFICIENCY
        return min(self.inside_bytes_a_second(), network)

    def host_bytes_a_second(self) -> float:
        """One way between a GPU and its host."""
        return PCIE * GIGA * LINK_EFFICIENCY


def choose_machines(
    *,
    gpus: int = 1,
    nodes: int = 1,
    gpu: str = "h100-80",
    link: str | None = None,
    ports: int = 1,
    host_gib: float | None = None,
    mfu: float = 0.4,
) -> Machines:
    """The machines that these options describe.

    Raises:
        ConfigError: every fault, with its option, value and what is allowed.
    """
    faults = [*_count_faults(gpus=gpus, nodes=nodes, ports=ports)]
    if gpu not in GPUS:
        faults.append(f"--gpu: {gpu!r}; allowed: {', '.join(GPUS)}")
    else:
        faults += _nvlink_faults(link, kind=gpu, nodes=nodes)
    faults += _link_faults(link, nodes=nodes)
    if not 0 < mfu <= 1:
        faults.append(f"--mfu: {mfu}; allowed: above 0, at most 1")
    if host_gib is not None and not 0 < host_gib < math.inf:
        faults.append(f"--host-gib: {host_gib}; allowed: a number above 0")
    if faults:
        raise ConfigError(faults)
    fastest = "nvlink" if GPUS[gpu].nvlink else "pcie"
    return Machines(gpus, nodes, gpu, link or fastest, ports, host_gib, mfu)


def _count_faults(*, gpus: int, nodes: int, ports: int) -> list[str]:
    counts = {"gpus": gpus, "nodes": nodes, "ports": ports}
    faults = [
        f"--{name}: {count}; allowed: a whole number from 1"
        for name, count in counts.items()
        if count < 1
    ]
    if faults:
        return faults
    if nodes > gpus:
        return [f"--nodes: {nodes} for --gpus {gpus}; allowed: at most as many nodes as GPUs"]
    if gpus % nodes:
        return [f"--gpus: {gpus} on --nodes {nodes}; allowed: a multiple of {nodes}"]
    return []


def _nvlink_faults(link: str | None, *, kind: str, nodes: int) -> list[str]:
    if nodes == 1 and link == "nvlink" and GPUS[kind].nvlink is None:
        return [f"--link: 'nvlink' for --gpu {kind}, which has none; allowed: pcie"]
    return []


def _link_faults(link: str | None, *, nodes: int) -> list[str]:
    known = (*INSIDE_LINKS, *NETWORK_LINKS)
    if link is not None and link not in known:
        return [f"--link: {link!r}; allowed: {', '.join(known)}"]
    if nodes > 1 and link not in NETWORK_LINKS:
        given = "is missing" if link is None else repr(link)
        return [f"--link: {given} with --nodes {nodes}; allowed: {', '.join(NETWORK_LINKS)}"]
    if nodes == 1 and link in NETWORK_LINKS:
        allowed = ", ".join(INSIDE_LINKS)
        return [f"--link: {link!r} on one node; allowed: {allowed}, or none for the GPU's own"]
    return []
