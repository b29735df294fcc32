"""Machines: what is known of them, and every fault of their description at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scalepet.errors import ConfigError
from scalepet.planning import GPUS, Machines, choose_machines


def test_one_gpu_is_the_default() -> None:
    machines = choose_machines()
    assert (machines.num_gpus, machines.num_nodes, machines.link) == (1, 1, "nvlink")


def test_a_ring_over_nodes_is_as_fast_as_the_ports_of_a_node() -> None:
    one = choose_machines(gpus=16, nodes=2, link="ib-400")
    eight = choose_machines(gpus=16, nodes=2, link="ib-400", ports=8)
    assert one.world_bytes_a_second() == pytest.approx(0.8 * 50e9)
    assert eight.world_bytes_a_second() == pytest.approx(0.8 * 400e9)
    assert one.inside_bytes_a_second() == pytest.approx(0.8 * 450e9)


def test_a_ring_is_no_faster_than_the_node_itself() -> None:
    machines = choose_machines(gpus=16, nodes=2, gpu="l40s-48", link="ib-400", ports=8)
    assert machines.world_bytes_a_second() == machines.inside_bytes_a_second()


def test_some_memory_of_every_gpu_is_usable_and_some_is_not() -> None:
    for kind, gpu in GPUS.items():
        machines: Machines = choose_machines(gpu=kind)
        assert 0.8 < machines.usable_bytes / (gpu.memory_gib * 2**30) < 0.95


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gpu": "h10"}, ["--gpu: 'h10'", "h100-80"]),
        ({"link": "foo"}, ["--link: 'foo'", "ib-400"]),
        ({"gpus": 2, "nodes": 4, "link": "ib-400"}, ["--nodes: 4 for --gpus 2"]),
        ({"gpus": 9, "nodes": 2, "link": "ib-400"}, ["--gpus: 9 on --nodes 2", "multiple of 2"]),
        ({"gpus": 0}, ["--gpus: 0", "from 1"]),
        ({"gpus": 4, "nodes": 2}, ["--link: is missing with --nodes 2", "eth-25"]),
        ({"gpus": 4, "nodes": 2, "link": "nvlink"}, ["--link: 'nvlink' with --nodes 2"]),
        ({"link": "ib-200"}, ["--link: 'ib-200' on one node", "pcie"]),
        ({"gpu": "l4-24", "link": "nvlink"}, ["--link: 'nvlink' for --gpu l4-24", "pcie"]),
        ({"mfu": 1.5}, ["--mfu: 1.5"]),
        ({"host_gib": -1.0}, ["--host-gib: -1.0"]),
    ],
)
def test_a_fault_names_option_value_and_what_is_allowed(options: dict, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_machines(**options)
    (fault,) = caught.value.faults
    assert all(words in fault for words in told), fault


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_machines(gpus=9, nodes=2, gpu="h10", link="foo", mfu=0, host_gib=0)
    assert len(caught.value.faults) == 5


def test_planning_is_arithmetic_and_imports_no_library() -> None:
    source = "import scalepet.planning, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
