"""What fits where, how fast, and what would: a T5-XXL and machines that everybody knows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from scalepet.engine import MasterShard
from scalepet.lae import Accumulation
from scalepet.planning import Outlook, Verdict, Work, choose_machines, judge_all, shape_of

XXL: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
    "scale_decoder_outputs": False,
    "dropout_rate": 0.1,
}
NUM_XXL = 11_135_332_352
NUM_TRAINED = 10_000_000


@pytest.fixture(scope="module")
def work() -> Work:
    """APET on all matrices of a T5-XXL."""
    shape = shape_of(XXL)
    return Work(
        shape=shape,
        frozen=tuple(tensor.numel for tensor in shape.tensors),
        trained=(NUM_TRAINED // 100,) * 100,
        tuned={tensor.name: 0 for tensor in shape.tensors if tensor.part},
        index_bytes=4 * NUM_TRAINED,
        batch_size=512,
        rows=8,
        source=512,
        target=128,
        num_bytes=2,
    )


def outlook_of(work: Work, *, is_checkpointed: bool = False, **machines: Any) -> Outlook:
    return judge_all(work, choose_machines(**machines), is_checkpointed=is_checkpointed)


def of(outlook: Outlook, name: str, *, is_checkpointed: bool = False) -> Verdict:
    (found,) = [
        verdict
        for verdict in outlook.verdicts
        if (verdict.name, verdict.is_checkpointed) == (name, is_checkpointed)
    ]
    return found


def line(verdict: Verdict, what: str) -> int:
    return sum(part.num_bytes for part in verdict.gpu if part.what == what)


def test_the_shape_has_as_many_numbers_as_the_model(work: Work) -> None:
    assert work.shape.numel == NUM_XXL


def test_sharded_weights_are_a_part_and_whole_ones_are_whole(work: Work) -> None:
    outlook = outlook_of(work, gpus=64, nodes=8, link="ib-400")
    assert line(of(outlook, "zero0"), "frozen weights") == 2 * NUM_XXL
    assert line(of(outlook, "zero3"), "frozen weights") == pytest.approx(2 * NUM_XXL / 64, rel=0.01)
    local = line(of(outlook, "zero3_hpz"), "frozen weights")
    assert local == pytest.approx(2 * NUM_XXL / 64 + 2 * NUM_XXL / 8, rel=0.01)
    assert line(of(outlook, "zero3_offload_cpu"), "frozen weights") == 0


def test_offloaded_shards_are_in_the_hosts(work: Work) -> None:
    outlook = outlook_of(work, gpus=64, nodes=8, link="ib-400")
    offloaded = of(outlook, "zero3_offload_cpu")
    held = {part.what: part.num_bytes for part in offloaded.host}
    assert held["weights"] == pytest.approx(2 * (NUM_XXL + NUM_TRAINED) / 8, rel=0.01)
    assert held["loading"] == 8 * 2**30
    whole = {part.what: part.num_bytes for part in of(outlook, "zero0").host}
    assert whole == {"loading": 8 * 2 * NUM_XXL}


def test_a_weight_is_gathered_twice_but_for_what_stays_at_the_turn(work: Work) -> None:
    outlook = outlook_of(work, gpus=64, nodes=8, link="ib-400")
    for verdict in outlook.verdicts:
        gathered = verdict.traffic.micro_gathered_bytes
        is_whole = verdict.name in ("zero0", "zero2")
        expected = 0 if is_whole else 2 * 2 * NUM_XXL - 2 * 1_000_000_000
        assert gathered == pytest.approx(expected, rel=0.02)


def test_time_is_that_of_arithmetic_or_of_links(work: Work) -> None:
    """By hand: every token passes one of two stacks, 4NW operations; a ring at 0.8 x 50 GB/s."""
    outlook = outlook_of(work, gpus=64, nodes=8, link="ib-400")
    traffic = of(outlook, "zero3").traffic
    encoder = 24 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    cross_keys = 24 * 2 * 4096 * 4096
    decoder = 24 * (6 * 4096 * 4096 + 3 * 4096 * 10240) + 32128 * 4096
    products = 4 * 8 * (512 * (encoder + cross_keys) + 128 * decoder)
    assert traffic.micro_compute_seconds == pytest.approx(products / (0.4 * 989e12), rel=0.05)
    by_link = traffic.micro_gathered_bytes * 63 / 64 / 40e9
    assert traffic.micro_link_seconds == pytest.approx(by_link)
    assert traffic.step_seconds == pytest.approx(max(by_link, 0), rel=0.02)
    assert traffic.step_seconds_exposed > traffic.step_seconds


def test_running_layers_again_costs_a_half_more_and_keeps_less(work: Work) -> None:
    outlook = outlook_of(work)
    plain, again = of(outlook, "zero0"), of(outlook, "zero0", is_checkpointed=True)
    ratio = again.traffic.micro_compute_seconds / plain.traffic.micro_compute_seconds
    assert ratio == pytest.approx(1.5, abs=0.02)  # 6NW instead of 4NW
    assert line(again, "activations") < line(plain, "activations") / 10


def test_replication_is_recommended_where_it_fits(work: Work) -> None:
    outlook = outlook_of(work, gpus=8)
    assert outlook.simplest is of(outlook, "zero0")
    assert any("fits whole on every GPU" in warning for warning in outlook.warnings)


def test_sharding_where_the_whole_does_not_fit(work: Work) -> None:
    outlook = outlook_of(work, gpus=8, gpu="l4-24")
    assert not of(outlook, "zero0").fits
    assert outlook.simplest is of(outlook, "zero3", is_checkpointed=True)
    assert not any("fits whole" in warning for warning in outlook.warnings)


def test_a_network_that_is_too_slow_is_told_with_what_would_hide_it(work: Work) -> None:
    cluster: dict[str, Any] = {"gpus": 64, "nodes": 8, "link": "eth-100", "gpu": "a100-40"}
    outlook = outlook_of(work, is_checkpointed=True, **cluster)
    slow = of(outlook, "zero3", is_checkpointed=True)
    told = [warning for warning in outlook.warnings if "gathers take longer" in warning]
    assert told and f"{slow.tokens_to_hide:,} tokens" in told[0]
    enough = dataclasses.replace(work, rows=-(-slow.tokens_to_hide // 640), batch_size=64 * 512)
    traffic = of(outlook_of(enough, **cluster), "zero3", is_checkpointed=True).traffic
    assert traffic.micro_compute_seconds == pytest.approx(traffic.micro_link_seconds, rel=0.05)


def test_the_largest_micro_batch_fits_and_one_row_more_does_not(work: Work) -> None:
    machines = choose_machines(gpus=8)
    for verdict in judge_all(work, machines, is_checkpointed=False).verdicts:
        for rows in (verdict.most_rows, verdict.most_rows + 1):
            again = judge_all(dataclasses.replace(work, rows=rows), machines, is_checkpointed=False)
            found = of(again, verdict.name, is_checkpointed=verdict.is_checkpointed)
            assert found.fits == (rows == verdict.most_rows), (verdict.name, rows)


def test_what_does_not_fit_says_by_how_much_and_what_would(work: Work) -> None:
    outlook = outlook_of(dataclasses.replace(work, rows=2000), gpu="l4-24", gpus=1)
    assert outlook.simplest is None and outlook.fastest is None
    ways = "\n".join(outlook.ways_out)
    assert "GiB a GPU" in ways and "train.micro_batch_size=" in ways


def test_a_host_that_is_too_small_refuses_what_it_would_have_to_hold(work: Work) -> None:
    outlook = outlook_of(work, gpus=1, gpu="l40s-48", host_gib=20)
    offloaded = of(outlook, "zero3_offload_cpu", is_checkpointed=True)
    assert offloaded.spare_bytes > 0 > (offloaded.host_spare_bytes or 0)
    assert not offloaded.fits


def test_offline_copies_are_in_the_hosts_and_nowhere_else(work: Work) -> None:
    """Held to what LAE's accumulation keeps of ten numbers: one process has all parts."""
    accumulation = Accumulation(
        {"values": MasterShard(0, torch.zeros(10))},
        [{"values": torch.zeros(10)}] * 2,
        shapes={"values": (10,)},
        alphas=(0.9, 0.99),
    )
    (kept, *more) = [copy["values"].nbytes for copy in accumulation._copies]
    accumulation.close()
    with_them = dataclasses.replace(work, num_tuned=10, num_offline=2)
    for verdict in outlook_of(with_them).verdicts:
        plain = of(outlook_of(work), verdict.name, is_checkpointed=verdict.is_checkpointed)
        assert verdict.gpu == plain.gpu
        offline = {part.what: part.num_bytes for part in set(verdict.host) - set(plain.host)}
        on_the_way = 0 if verdict.name == "zero3_offload_cpu" else 4 * 10
        assert offline["offline copies"] == kept + sum(more) + on_the_way
        assert offline["between experiences"] == 3 * 4 * 10
    of_a_node = {
        part.what: part.num_bytes
        for part in of(outlook_of(with_them, gpus=16, nodes=2, link="ib-400"), "zero3").host
    }
    assert of_a_node["offline copies"] == 3 * 4 * 5
    assert of_a_node["between experiences"] == 8 * 3 * 4 * 10


@pytest.mark.parametrize("machines", [{"gpus": 8}, {"gpus": 8, "nodes": 8, "link": "ib-200"}])
def test_second_shards_need_several_nodes_of_several_gpus(work: Work, machines: Any) -> None:
    names = {verdict.name for verdict in outlook_of(work, **machines).verdicts}
    assert "zero3" in names and "zero3_hpz" not in names


def test_more_gpus_are_proposed_only_where_each_has_a_row(work: Work) -> None:
    ways = {}
    for batch_size in (work.batch_size, 1):
        small = dataclasses.replace(work, batch_size=batch_size)
        ways[batch_size] = outlook_of(small, gpu="a10-24", gpus=1, host_gib=10).ways_out
    proposed = [[way for way in found if "GPUs of this kind" in way] for found in ways.values()]
    assert [len(found) for found in proposed] == [1, 0]
    for found in ways.values():
        assert len(set(found)) == len(found)
