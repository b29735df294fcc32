"""Steps whose loss or gradient is not finite: noticed on all ranks, before anything moves."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from scalepet.engine.gradient_watch import GradientWatch

WORKER = Path(__file__).with_name("non_finite.py")


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("non_finite", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["non_finite"] = module
    spec.loader.exec_module(module)
    return module


worker = load_worker()
Case = worker.Case
OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
CASES = {
    "stage 0": Case(0, micro_batch_size=8),
    "stage 0, clip": Case(0, clip=0.1),
    "stage 2": Case(2, micro_batch_size=8),
    "stage 2, clip": Case(2, clip=0.1),
    "stage 3": Case(3, micro_batch_size=8),
    "stage 3, clip": Case(3, clip=0.1),
    "stage 3, offload": Case(3, clip=0.1, zero=OFFLOAD),
    "stage 2, bf16": Case(2, precision="bf16", clip=0.1),
    "stage 3, bf16": Case(3, precision="bf16"),
    "stage 1, fp16": Case(1, precision="fp16"),
    "stage 3, fp16": Case(3, precision="fp16", clip=0.1),
}
NAMES: dict[int, tuple[str, ...]] = {1: ("stage 0, clip", "stage 3"), 2: tuple(CASES)}
"""Number of ranks -> what they train."""

FP16_STAGES = (0, 1, 2, 3)
GRADIENT = f"the gradient of {worker.WITNESS}"
WHAT = {
    "": None,
    "gradient": GRADIENT,
    "huge gradient": GRADIENT,
    "loss": "the loss",
    "constant": "the loss",
}


@pytest.fixture(scope="module")
def trained(tiny_backbones: Path, run_ranks: Any, tmp_path_factory: Any) -> dict[str, list[Any]]:
    """By the name of a training, what every rank saw of it."""
    found = {}
    for num_ranks, names in NAMES.items():
        out = tmp_path_factory.mktemp("non_finite")
        argument = {
            "folder": str(tiny_backbones),
            "out": str(out),
            "cases": {name: dataclasses.asdict(CASES[name]) for name in names},
            "fp16": FP16_STAGES if num_ranks == 2 else (),
        }
        run_ranks(WORKER, argument, num_ranks=num_ranks, timeout_seconds=250)
        seen = [json.loads((out / f"{rank}.json").read_text()) for rank in range(num_ranks)]
        found |= {f"{name}, {num_ranks}": [one[name] for one in seen] for name in seen[0]}
    return found


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [f"{name}, {n}" for n, names in NAMES.items() for name in names])
class TestBadNumbersOfOneRank:
    def test_nothing_moves_in_a_bad_step(self, name: str, trained: dict[str, list[Any]]) -> None:
        for seen in trained[name]:
            changes = dict(enumerate(seen["changes"]))
            good = [index for index, how in enumerate(worker.STEPS) if not how]
            assert all(changes.pop(index) > 0 for index in good)
            assert set(changes.values()) == {0.0}, "bit for bit"

    def test_the_others_are_as_if_it_had_not_been(
        self, name: str, trained: dict[str, list[Any]]
    ) -> None:
        """Bit for bit, but for fp16, whose scale has moved: what rounds to nothing is another."""
        for seen in trained[name]:
            assert seen["difference"] <= (0.05 if "fp16" in name else 0.0)

    def test_all_ranks_say_the_same(self, name: str, trained: dict[str, list[Any]]) -> None:
        expected = [WHAT[how] for how in worker.STEPS]
        last = len(trained[name]) - 1
        for rank, seen in enumerate(trained[name]):
            reports = seen["reports"]
            assert [report["what"] for report in reports] == expected
            for report in reports:
                assert report["ranks"] in (None, [last])
                assert bool(report["is_overflow"]) == (
                    "fp16" in name and report["what"] == GRADIENT
                )
                assert (report["norm"] is None) >= (report["what"] is not None)
                assert math.isfinite(report["loss"]) == (report["what"] != "the loss")
                if report["losses"] is not None and rank != last:
                    assert all(map(math.isfinite, report["losses"]))

    def test_what_is_asked_goes_with_the_loss(
        self, name: str, trained: dict[str, list[Any]]
    ) -> None:
        """One more collective names the tensor, once something is wrong."""
        for seen in trained[name]:
            for report in seen["reports"]:
                naming = ["all_gather_objects"] if report["what"] else []
                assert report["collectives"] == ["sum_over_ranks", *naming]

    def test_the_micro_batch_can_be_told(self, name: str, trained: dict[str, list[Any]]) -> None:
        where = worker.STEPS.index("loss")
        losses = trained[name][-1]["reports"][where]["losses"]
        assert [math.isfinite(loss) for loss in losses] == [False] + [True] * (len(losses) - 1)

    def test_the_schedule_goes_on(self, name: str, trained: dict[str, list[Any]]) -> None:
        found = [report["learning_rate"] for report in trained[name][0]["reports"]]
        assert found == pytest.approx([1e-2 * (1 - index / 20) for index in range(len(found))])


@pytest.mark.distributed
@pytest.mark.timeout(300)
class TestFp16:
    """On a CPU by torch, whose numbers are those of a GPU but for the order of sums."""

    @pytest.mark.parametrize("stage", FP16_STAGES)
    def test_it_is_the_training_of_fp32_but_for_rounding(
        self, stage: int, trained: dict[str, list[Any]]
    ) -> None:
        for found in trained[f"fp16 {stage}, 2"]:
            assert found["losses"]["fp16"] == pytest.approx(found["losses"]["fp32"], rel=0.01)
            assert found["error"] < 0.05

    @pytest.mark.parametrize("name", [name for name in CASES if "fp16" in name])
    def test_the_scale_falls_where_gradients_overflow(
        self, name: str, trained: dict[str, list[Any]]
    ) -> None:
        """DeepSpeed forgives the first one; a loss that is no number is an overflow to it, too."""
        for seen in trained[f"{name}, 2"]:
            assert seen["scaler"]["cur_iter"] == len(worker.STEPS)
            assert seen["scaler"]["cur_scale"] == 2**14


class TestGradientWatch:
    def test_the_first_one_of_a_backward_is_named(self) -> None:
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        watch = GradientWatch({"first": first.weight, "second": second.weight})
        assert watch.are_finite() and watch.first_bad() is None
        (second(first(torch.ones(1, 2))).sum() * torch.inf).backward()
        assert not watch.are_finite() and watch.first_bad() == "second"
        watch.forget()
        assert watch.are_finite() and watch.first_bad() is None

    def test_a_square_that_is_too_large_counts(self) -> None:
        parameter = nn.Parameter(torch.ones(3))
        watch = GradientWatch({"p": parameter})
        (parameter * torch.tensor([0.0, 1e19, 0.0])).sum().backward()
        assert watch.are_finite()
        (parameter * 1e20).sum().backward()
        assert watch.first_bad() == "p" and parameter.grad is not None
        assert parameter.grad.isfinite().all()

    def test_muted_gradients_are_zeros(self) -> None:
        parameter = nn.Parameter(torch.ones(3))
        watch = GradientWatch({"p": parameter})
        with watch.muted():
            (parameter * torch.nan).sum().backward()
        assert parameter.grad is not None and not parameter.grad.any() and watch.are_finite()

    def test_closed_it_looks_no_more(self) -> None:
        parameter = nn.Parameter(torch.ones(3))
        watch = GradientWatch({"p": parameter})
        watch.close()
        (parameter * torch.nan).sum().backward()
        assert watch.are_finite()
