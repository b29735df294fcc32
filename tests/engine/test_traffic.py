"""What each option for frozen weights does to traffic and memory, by counting; nothing is timed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch.utils.cpp_extension import CUDA_HOME

from scalepet.engine import compose_ds_config

WORKER = Path(__file__).with_name("counted.py")
AS_AT_SCALE = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_reuse_distance": 0,
}
"""A model is small where nothing stays from forward to backward; here nothing does."""

THRESHOLD = 600
SMALL_BUCKET = 500
ZERO_2 = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}
CASES: dict[str, dict[str, Any]] = {
    "zero3": {"zero": AS_AT_SCALE},
    "zero3 bf16": {"zero": AS_AT_SCALE, "precision": "bf16"},
    "small tensors stay": {
        "zero": {**AS_AT_SCALE, "stage3_param_persistence_threshold": THRESHOLD}
    },
    "reentrant": {"zero": AS_AT_SCALE, "checkpoints": "reentrant"},
    "non-reentrant": {"zero": AS_AT_SCALE, "checkpoints": "non-reentrant"},
    "small bucket": {"zero": {**AS_AT_SCALE, "reduce_bucket_size": SMALL_BUCKET}},
    "zero0": {"zero": {"stage": 0}},
    "zero0 bf16": {"zero": {"stage": 0}, "precision": "bf16"},
    "zero2": {"zero": ZERO_2},
    "zero2, small bucket": {"zero": {**ZERO_2, "reduce_bucket_size": SMALL_BUCKET}},
    "qwZ": {
        "zero": {**AS_AT_SCALE, "zero_quantized_weights": True},
        "precision": "bf16",
        "has_stand_in": True,
    },
}
FOUR_RANKS = {
    "zero3": {"zero": AS_AT_SCALE},
    "hpZ": {"zero": {**AS_AT_SCALE, "zero_hpz_partition_size": 2}},
}
WHOLE_MODEL_PHASES = ("forward", "backward")
Found = dict[str, dict[str, Any]]
Count = Callable[[dict[str, Any], int], Found]


@pytest.fixture(scope="module")
def count(tiny_backbones: Path, run_ranks: Any, tmp_path_factory: Any) -> Count:
    def run(cases: dict[str, Any], num_ranks: int) -> Found:
        out = tmp_path_factory.mktemp("counted") / "found.json"
        argument = {"folder": str(tiny_backbones), "out": str(out), "cases": cases}
        run_ranks(WORKER, argument, num_ranks=num_ranks, timeout_seconds=200)
        return json.loads(out.read_text())

    return run


@pytest.fixture(scope="module")
def found(count: Count) -> Found:
    return count(CASES, 2)


@pytest.fixture(scope="module")
def found_by_four(count: Count) -> Found:
    """Two nodes of two ranks."""
    return count(FOUR_RANKS, 4)


def numel(case: dict[str, Any], *, trained: bool | None = None, upto: int | None = None) -> int:
    """Numbers of the model's parameters."""
    return sum(
        size
        for size, is_trained in case["sizes"].values()
        if trained in (None, is_trained) and (upto is None or size <= upto)
    )


def sent(case: dict[str, Any], kind: str, *phases: str, ranks: int = 0, in_bytes: bool = False):
    """Whole tensors that pass collectives of this kind in the last step."""
    return sum(
        call[3 if in_bytes else 2]
        for phase in phases or (*WHOLE_MODEL_PHASES, "step")
        for call in case["steps"][-1][phase]["calls"]
        if call[0].startswith(kind) and ranks in (0, call[4])
    )


def fetched(case: dict[str, Any], phase: str, step: int = -1) -> Counter[str]:
    """How often layers ask for each parameter in a phase."""
    return Counter(name for name, _ in case["steps"][step][phase]["fetched"])


def padded(case: dict[str, Any], num_ranks: int = 2) -> Any:
    """A count that is exact but for the zeros with which shards are made equal."""
    return lambda expected: pytest.approx(
        expected + len(case["sizes"]), abs=num_ranks * len(case["sizes"])
    )


pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def test_all_ways_are_the_same_training(found: Found, found_by_four: Found) -> None:
    losses = [found[name]["loss"] for name in CASES if "bf16" not in name and name != "qwZ"]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    assert found["qwZ"]["loss"] == pytest.approx(found["zero3 bf16"]["loss"], rel=0.02)
    four = found_by_four
    assert four["hpZ"]["loss"] == pytest.approx(four["zero3"]["loss"], rel=1e-5)


class TestZero3:
    def test_forward_gathers_every_weight_once_and_the_word_table_for_both_stacks(
        self, found: Found
    ) -> None:
        case = found["zero3"]
        (table, _) = case["sizes"]["shared.weight"]
        assert sent(case, "all_gather", "forward") == padded(case)(numel(case) + table)
        twice = {name for name, times in fetched(case, "forward").items() if times > 1}
        assert twice == {"shared.weight"}

    def test_backward_gathers_every_weight_once_that_it_passes(self, found: Found) -> None:
        case = found["zero3"]
        times = fetched(case, "backward")
        assert set(times.values()) == {1}
        asleep = case["sizes"].keys() - times.keys()
        assert asleep == {
            "shared.weight",
            *(
                f"{stack}.block.0.layer.0.{own}.weight"
                for stack in ("encoder", "decoder")
                for own in ("layer_norm", "SelfAttention.relative_attention_bias")
            ),
        }

    def test_only_what_is_trained_is_reduced_and_the_optimizer_gathers_nothing(
        self, found: Found
    ) -> None:
        case = found["zero3"]
        trained = numel(case, trained=True)
        assert trained == 2000
        assert sent(case, "reduce_scatter") == pytest.approx(trained, abs=2 * len(case["sizes"]))
        assert sent(case, "all_gather", "step") == 0
        assert sent(case, "all_reduce") == 1, "the norm of the gradient"

    def test_a_rank_holds_its_part(self, found: Found) -> None:
        case = found["zero3"]
        assert case["held"]["shards"] == pytest.approx(4 * numel(case) / 2, rel=0.01)
        assert case["held"]["whole"] == case["held"]["second"] == 0


class TestReplication:
    @pytest.mark.parametrize("name", ["zero0", "zero0 bf16", "zero2"])
    def test_no_weight_is_gathered(self, name: str, found: Found) -> None:
        case = found[name]
        assert sent(case, "all_gather", *WHOLE_MODEL_PHASES) == 0
        # Above stage 0 each rank moves its part of what is trained, and sends it to the others.
        expected = 0 if name == "zero0" else numel(case, trained=True)
        assert sent(case, "all_gather", "step") == expected
        assert sent(case, "all_reduce", "backward") == numel(case, trained=True)

    @pytest.mark.parametrize("name", ["zero0", "zero2"])
    def test_a_rank_holds_everything(self, name: str, found: Found) -> None:
        case = found[name]
        assert case["held"] == {"shards": 0, "second": 0, "whole": 4 * numel(case)}


class TestSmallTensors:
    """``stage3_param_persistence_threshold``."""

    def test_they_are_whole_on_every_rank(self, found: Found) -> None:
        case = found["small tensors stay"]
        assert case["held"]["whole"] == 4 * numel(case, upto=THRESHOLD)
        assert case["held"]["shards"] == found["zero3"]["held"]["shards"]

    def test_layers_do_not_ask_for_them(self, found: Found) -> None:
        case = found["small tensors stay"]
        asked = fetched(case, "forward") + fetched(case, "backward")
        assert min(case["sizes"][name][0] for name in asked) > THRESHOLD

    def test_they_are_gathered_once_after_the_optimizer_frozen_or_not(self, found: Found) -> None:
        case = found["small tensors stay"]
        small = numel(case, upto=THRESHOLD)
        assert small > numel(case, upto=THRESHOLD, trained=True) > 0
        assert sent(case, "all_gather", "step") == pytest.approx(small, abs=len(case["sizes"]))
        in_all, without = sent(case, "all_gather"), sent(found["zero3"], "all_gather")
        assert in_all == pytest.approx(without - small, rel=0.05), "once instead of twice"


def gathers_of_layers(found: Found, name: str) -> list[int]:
    """Of each frozen weight in a layer that backward passes, in backward."""
    case = found[name]
    live = fetched(found["zero3"], "backward").keys()
    times = fetched(case, "backward")
    in_layers = [n for n in live if ".block." in n and not case["sizes"][n][1]]
    assert len(in_layers) == 44
    return [times[n] for n in in_layers]


class TestCheckpointing:
    """How often backward asks for the weights of a layer, which T5 computes again in it."""

    def test_a_layer_is_gathered_once_in_backward(self, found: Found) -> None:
        assert set(gathers_of_layers(found, "zero3")) == {1}
        assert set(gathers_of_layers(found, "reentrant")) == {1}
        forward = fetched(found["reentrant"], "forward")
        assert forward == fetched(found["zero3"], "forward")

    def test_non_reentrant_checkpointing_gathers_it_twice(self, found: Found) -> None:
        """But for the weight at the end of a layer, which stays for the gradient."""
        times = Counter(gathers_of_layers(found, "non-reentrant"))
        assert times == {2: 40, 1: 4}

    def test_gathered_numbers(self, found: Found) -> None:
        """Reentrant: all layers again, asleep or not, and what is trained once more."""
        plain = found["zero3"]
        reentrant, other = found["reentrant"], found["non-reentrant"]
        trained = numel(plain, trained=True)
        expected = numel(plain) + trained
        assert sent(reentrant, "all_gather", "backward") == padded(plain)(expected)
        assert sent(other, "all_gather", "backward") > 1.6 * expected
        assert reentrant["held"] == plain["held"]


class TestHpz:
    """Two nodes of two ranks, ``zero_hpz_partition_size`` 2."""

    @pytest.mark.parametrize("phase", WHOLE_MODEL_PHASES)
    @pytest.mark.parametrize("step", [1, 2])
    def test_frozen_weights_come_from_inside_the_node(
        self, step: int, phase: str, found_by_four: Found
    ) -> None:
        case = found_by_four["hpZ"]
        assert fetched(case, phase, step) == fetched(found_by_four["zero3"], phase, step)
        asked = case["steps"][step][phase]["fetched"]
        assert all(is_inside for name, is_inside in asked if not case["sizes"][name][1])

    def test_what_is_trained_crosses_once_a_step(self, found_by_four: Found) -> None:
        case = found_by_four["hpZ"]
        trained = numel(case, trained=True)
        across = sent(case, "all_gather", ranks=4)
        assert across == pytest.approx(trained, abs=4 * len(case["sizes"]))
        assert sent(case, "reduce_scatter", ranks=4) == across
        plain = found_by_four["zero3"]
        assert sent(plain, "all_gather", ranks=4) == sent(plain, "all_gather")
        assert sent(case, "all_gather") == sent(plain, "all_gather"), "as much in all"

    def test_second_shards_of_frozen_weights_are_written_once_for_good(
        self, found_by_four: Found
    ) -> None:
        case = found_by_four["hpZ"]
        first, *later = case["second"]
        assert first.keys() == {name for name, (_, trained) in case["sizes"].items() if not trained}
        assert later == [first] * len(later), "places and numbers of writes"

    def test_a_rank_holds_its_part_of_the_node_besides(self, found_by_four: Found) -> None:
        case, frozen = found_by_four["hpZ"], numel(found_by_four["hpZ"], trained=False)
        assert case["held"]["shards"] == pytest.approx(4 * numel(case) / 4, rel=0.01)
        assert case["held"]["second"] == pytest.approx(4 * frozen / 2, rel=0.01)
        assert case["held"]["whole"] == 0


class TestBucket:
    """DeepSpeed allocates ``reduce_bucket_size`` whole, in backward or for good."""

    @pytest.mark.parametrize(
        ("name", "num_buffers", "num_bytes"),
        [
            ("zero0", 0, 4),
            ("zero0 bf16", 1, 2),
            ("zero2", 2, 4),
            ("zero3", 1, 4),
            ("zero3 bf16", 1, 2),
        ],
    )
    def test_its_bytes(self, name: str, num_buffers: int, num_bytes: int, found: Found) -> None:
        assert found[name]["bucket_bytes"] == num_buffers * num_bytes * bucket_of({})

    def test_ours_is_nothing_beside_a_gpu_and_the_default_is_not(self, found: Found) -> None:
        default = DeepSpeedZeroConfig().reduce_bucket_size
        a_gpu = 80 * 2**30
        assert 2 * 2 * bucket_of({}) < a_gpu / 10_000, "two of them, in bf16"
        assert 2 * default > a_gpu / 100
        for name, num_buffers in {"small bucket": 1, "zero2, small bucket": 2}.items():
            assert found[name]["bucket_bytes"] == num_buffers * 4 * SMALL_BUCKET

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("small bucket", "reduce_scatter"), ("zero2, small bucket", "all_reduce")],
    )
    def test_a_smaller_one_sends_the_same_in_more_pieces(
        self, name: str, kind: str, found: Found
    ) -> None:
        large = name.replace("small bucket", "zero3").removesuffix(", zero3")
        pieces = [
            sum(call[0].startswith(kind) for call in found[n]["steps"][-1]["backward"]["calls"])
            for n in (name, large)
        ]
        assert pieces == [5, 1]
        assert sent(found[name], kind, "backward") == sent(found[large], kind, "backward")


def bucket_of(zero: dict[str, Any]) -> int:
    """Numbers, as a run gets it."""
    composed = compose_ds_config(
        {"zero_optimization": zero},
        precision="fp32",
        micro_batch_size=1,
        num_micro_batches=1,
        clip=None,
    )
    size: int = composed["zero_optimization"]["reduce_bucket_size"]
    return size


def check_qwz(plain: dict[str, Any], rounded: dict[str, Any]) -> None:
    """Frozen weights in int8, what is trained as it is; half the bytes but for the scales."""
    trained = numel(plain, trained=True)
    for phase in WHOLE_MODEL_PHASES:
        by_type: Counter[str] = Counter()
        for kind, dtype, count, *_ in rounded["steps"][-1][phase]["calls"]:
            if kind.startswith("all_gather"):
                by_type[dtype] += count
        odd = numel(plain, upto=24, trained=False)  # shards of norms: 12 numbers, no multiple of 8
        as_they_are = sent(plain, "all_gather", phase) - by_type["torch.int8"]
        assert by_type["torch.bfloat16"] == as_they_are
        assert trained <= as_they_are <= trained + odd + 2 * len(plain["sizes"])
    ratio, exact = (
        sent(rounded, "all_gather", in_bytes=True) / sent(plain, "all_gather", in_bytes=True),
        2 * trained / sent(plain, "all_gather"),
    )
    assert 0.5 < ratio < 0.5 + exact / 2 + 0.03
    assert rounded["held"] == plain["held"]


class TestQwz:
    def test_it_halves_what_is_gathered(self, found: Found) -> None:
        """With plain torch in the place of the kernel."""
        check_qwz(found["zero3 bf16"], found["qwZ"])

    @pytest.mark.gpu
    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices")
    @pytest.mark.skipif(CUDA_HOME is None, reason="no nvcc, which compiles the kernel")
    def test_the_kernel_halves_what_is_gathered(self, count: Count) -> None:
        names = ("zero3 bf16", "qwZ")
        cases = {name: {**CASES[name], "has_stand_in": False} for name in names}
        found = count(cases, 2)
        check_qwz(*(found[name] for name in names))
