"""What must agree between machines, from what their ranks know."""

from __future__ import annotations

import platform

import pytest
import torch

import scalepet
from scalepet.launch.facts import (
    Facts,
    device_faults,
    named,
    own_facts,
    placed,
    version_faults,
)
from scalepet.launch.gpus import sees_gpus


def ranks(*hosts: tuple[str, int, int], **versions: str) -> list[Facts]:
    """Of hosts by (name, processes, GPUs), with equal versions."""
    return [
        Facts(name, local_rank, num_gpus, None, {"torch": "2.9", **versions})
        for name, num_processes, num_gpus in hosts
        for local_rank in range(num_processes)
    ]


@pytest.mark.parametrize(
    "hosts",
    [
        [("a", 1, 0)],
        [("a", 4, 0), ("b", 2, 0)],
        [("a", 8, 8), ("b", 8, 8)],
        [("a", 2, 8), ("b", 4, 4)],
    ],
)
def test_a_device_for_each(hosts: list[tuple[str, int, int]]) -> None:
    assert device_faults(ranks(*hosts)) == []


def test_more_processes_than_gpus() -> None:
    [fault] = device_faults(ranks(("a", 4, 4), ("b", 4, 2)))
    assert fault.startswith("b: 4 processes but 2 visible GPUs; allowed: at most one process a GPU")


def test_a_gpu_that_slurm_hides_from_the_others() -> None:
    facts = [Facts("a", i, 1, str(i), {}) for i in range(2)]
    [fault] = device_faults(facts)
    assert "a: 2 processes but 1 visible GPUs (CUDA_VISIBLE_DEVICES=0)" in fault
    assert "srun --gpu-bind=none" in fault


def test_gpus_that_cannot_be_used() -> None:
    facts = [*ranks(("a", 1, 1)), Facts("b", 0, 0, None, {}, gpu_fault="the driver is too old")]
    assert device_faults(facts) == ["b: the driver is too old"]


def test_a_machine_without_gpus_among_others() -> None:
    [fault] = device_faults(ranks(("a", 2, 2), ("b", 2, 0)))
    assert fault.startswith("b shows no GPU, but a shows 2;")


def test_a_local_rank_that_two_processes_share() -> None:
    facts = [Facts("a", 0, 2, None, {}), Facts("a", 0, 2, None, {})]
    assert device_faults(facts) == ["a: processes share a LOCAL_RANK ([0, 0]); allowed: one each"]


def test_versions_that_differ() -> None:
    facts = [*ranks(("a", 2, 0), ("b", 1, 0), python="3.12.1")]
    assert version_faults(facts) == []
    facts += [Facts("c", 0, 0, None, {"torch": "2.8", "python": "3.12.1"})]
    assert version_faults(facts) == [
        "torch differs: 2.9 on a, b; 2.8 on c; allowed: the same on all machines"
    ]


def test_machines_in_words() -> None:
    facts = ranks(("a", 8, 8), ("b", 8, 8), ("c", 1, 1), ("d", 2, 0))
    assert placed(facts) == "a, b: 8 processes, 8 GPUs; c: 1 process, 1 GPU; d: 2 processes, no GPU"
    assert named([f"n{i}" for i in range(64)]) == "n0, n1, n2, n3 and 60 more"


def test_what_this_process_knows() -> None:
    facts = own_facts("a", 3)
    num_gpus = torch.cuda.device_count() if sees_gpus() else 0
    assert (facts.host, facts.local_rank, facts.num_gpus) == ("a", 3, num_gpus)
    assert facts.versions["python"] == platform.python_version()
    assert facts.versions["torch"] == torch.__version__
    assert facts.versions["scalepet"].startswith(f"{scalepet.__version__} (")
