"""What a rank knows about its machine, and what must agree between all of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import scalepet
from scalepet.errors import LaunchError
from scalepet.launch.gpus import count_gpus

_PACKAGES = ("torch", "deepspeed", "transformers")
MAX_NAMES = 4
"""So many hosts are named in a message; of more, the first ones."""


class Facts(NamedTuple):
    """Of one rank; plain values, to be sent as JSON.

    Attributes:
        visible: what CUDA_VISIBLE_DEVICES says, if anything.
        versions: by name, as text; "none" for what is not installed.
        gpu_fault: why its GPUs cannot be used, if it has some.
    """

    host: str
    local_rank: int
    num_gpus: int
    visible: str | None
    versions: dict[str, str]
    gpu_fault: str = ""


def own_facts(host: str, local_rank: int) -> Facts:
    """Of this process; loads no backbone, and no library besides torch."""
    num_gpus, gpu_fault = 0, ""
    try:
        num_gpus = count_gpus()
    except LaunchError as error:
        gpu_fault = str(error)
    return Facts(
        host=host,
        local_rank=local_rank,
        num_gpus=num_gpus,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        versions=_versions(),
        gpu_fault=gpu_fault,
    )


def device_faults(ranks: Sequence[Facts]) -> list[str]:
    """Every process needs a GPU of its own, or no machine has one."""
    faults = []
    with_gpu = [facts for facts in ranks if facts.num_gpus]
    for host, on_host in _by_host(ranks).items():
        first = on_host[0]
        local_ranks = [facts.local_rank for facts in on_host]
        if len(set(local_ranks)) < len(local_ranks):
            faults.append(
                f"{host}: processes share a LOCAL_RANK ({sorted(local_ranks)}); allowed: one each"
            )
        if first.gpu_fault:
            faults.append(f"{host}: {first.gpu_fault}")
        elif with_gpu and not first.num_gpus:
            faults.append(
                f"{host} shows no GPU{_seen(first)}, but {with_gpu[0].host} shows"
                f" {with_gpu[0].num_gpus}; allowed: GPUs on all machines or on none"
            )
        elif with_gpu and max(local_ranks) >= first.num_gpus:
            faults.append(
                f"{host}: {len(on_host)} processes but {first.num_gpus} visible GPUs{_seen(first)};"
                " allowed: at most one process a GPU (slots=, --ntasks-per-node; under SLURM"
                " --gpus-per-node and srun --gpu-bind=none)"
            )
    return faults


def version_faults(ranks: Sequence[Facts]) -> list[str]:
    """The same Python, libraries and scalepet on all machines."""
    faults = []
    for name in ranks[0].versions:
        hosts_of: dict[str, list[str]] = {}
        for facts in ranks:
            hosts = hosts_of.setdefault(facts.versions.get(name, "none"), [])
            if facts.host not in hosts:
                hosts.append(facts.host)
        if len(hosts_of) > 1:
            each = "; ".join(f"{version} on {named(hosts)}" for version, hosts in hosts_of.items())
            faults.append(f"{name} differs: {each}; allowed: the same on all machines")
    return faults


def placed(ranks: Sequence[Facts]) -> str:
    """Where the processes are, in words: "node1: 2 processes, 8 GPUs; ..."."""
    places: dict[str, list[str]] = {}
    for host, on_host in _by_host(ranks).items():
        processes = "1 process" if len(on_host) == 1 else f"{len(on_host)} processes"
        gpus = f"{on_host[0].num_gpus or 'no'} GPU{'s' if on_host[0].num_gpus > 1 else ''}"
        places.setdefault(f"{processes}, {gpus}", []).append(host)
    return "; ".join(f"{named(hosts)}: {place}" for place, hosts in places.items())


def named(hosts: Sequence[str]) -> str:
    """A few hosts by name, many by the first ones."""
    names = ", ".join(hosts[:MAX_NAMES])
    return names if len(hosts) <= MAX_NAMES else f"{names} and {len(hosts) - MAX_NAMES} more"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return {**versions, "scalepet": f"{scalepet.__version__} ({_digest_of_sources()})"}


def _digest_of_sources() -> str:
    """Two checkouts differ more often than their versions do."""
    root = Path(scalepet.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _by_host(ranks: Sequence[Facts]) -> dict[str, list[Facts]]:
    hosts: dict[str, list[Facts]] = {}
    for facts in ranks:
        hosts.setdefault(facts.host, []).append(facts)
    return hosts


def _seen(facts: Facts) -> str:
    return "" if facts.visible is None else f" (CUDA_VISIBLE_DEVICES={facts.visible})"
