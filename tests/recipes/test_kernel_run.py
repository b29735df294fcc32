"""Runs whose masked layers go the sparse way on a CUDA device: through the Triton kernel, which is
launched before the first step, and through the gather where it cannot run.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import emulated_cuda
import pytest
import torch
from emulated_cuda.marks import needed
from running import read_losses

WORKER = Path(__file__)
NO_COMPILER = "Failed to find C compiler. Please specify via CC environment variable."
FEW = {"steps": 3, "batch_size": 8, "micro_batch_size": 4, "evaluate_every": 3, "log_every": 1}


@pytest.fixture(scope="module")
def ran(
    write_run: Callable[..., Path],
    write_stream: Callable[..., Path],
    run_ranks: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("runs")
    method = {"name": "apet", "budget": 300}
    runs = {
        name: str(write_run(out / name, "bert", method=method, train=FEW))
        for name in ("kernel", "gather")
    }
    few = {"epochs": 1, "batch_size": 8, "micro_batch_size": 8}
    lae, tasks = {"freeze_epochs": 0}, {"num_tasks": 2}
    stream = write_stream(out / "stream", method=method, train=few, stream=tasks, lae=lae)
    runs["stream"] = str(stream)
    (said,) = run_ranks(
        WORKER, runs, num_ranks=1, timeout_seconds=250, environment=emulated_cuda.environment()
    )
    return {"out": out, **json.loads(said.splitlines()[-1])}


@needed
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET=1 is not set"
)
class TestRuns:
    def test_a_whole_run_goes_through_the_kernel(self, ran) -> None:
        first, *others = ran["kernel"]["launches"]
        assert first == [16, 16, "prepared"], "launched while the run is prepared"
        num_micro_batches, num_masked = 6, 12
        assert len(others) == num_micro_batches * num_masked
        assert {when for *_, when in others} == {"training"}
        assert "warning" not in ran["kernel"]["said"]

    def test_one_that_cannot_launch_goes_on_by_the_gather(self, ran) -> None:
        assert ran["gather"]["launches"] == []
        (line,) = [x for x in ran["gather"]["said"].splitlines() if x.startswith("warning: ")]
        assert "rank 0" in line and NO_COMPILER in line and "gathered" in line
        record = json.loads((ran["out"] / "gather" / "run.json").read_text())
        assert record["warnings"] == [line.removeprefix("warning: ")]

    def test_both_learn_the_same(self, ran) -> None:
        kernel, gather = (read_losses(ran["out"] / name) for name in ("kernel", "gather"))
        assert len(kernel) == FEW["steps"] and kernel == pytest.approx(gather, rel=1e-6)

    def test_a_stream_is_told_too(self, ran) -> None:
        assert NO_COMPILER in ran["stream"]["said"]
        assert len(json.loads((ran["out"] / "stream" / "run.json").read_text())["warnings"]) == 1


@pytest.mark.parametrize(
    ("reasons", "ranks"),
    [
        ([None, None], []),
        (["no cc", None], ["rank 0 (no cc)"]),
        (["no cc", None, "no cc", "no ptxas"], ["ranks 0, 2 (no cc)", "rank 3 (no ptxas)"]),
    ],
)
def test_each_reason_is_told_once_with_its_ranks(reasons, ranks) -> None:
    from scalepet import pet
    from scalepet.recipes import masks

    config = SimpleNamespace(precision="bf16")
    plan: Any = SimpleNamespace(method=None, config=config)
    with (
        mock.patch.object(pet, "apet_of", lambda _: plan),
        mock.patch.object(pet, "why_no_kernel", lambda device, dtype: f"{device} {dtype}"),
        mock.patch.object(masks.dist, "all_gather_objects", side_effect=[reasons]) as gathered,
    ):
        found = masks.kernel_warnings(plan)
    gathered.assert_called_once_with("cpu torch.bfloat16")
    assert len(found) == len(ranks)
    assert all(who in told for who, told in zip(ranks, found, strict=True))


def test_a_method_without_a_mask_launches_nothing() -> None:
    from scalepet import pet
    from scalepet.recipes import masks

    plan: Any = SimpleNamespace(method=SimpleNamespace())
    with mock.patch.object(pet, "why_no_kernel", side_effect=AssertionError):
        assert masks.kernel_warnings(plan) == []


def main() -> None:
    from rich.console import Console

    from scalepet import engine
    from scalepet.config import read_config, read_stream_config
    from scalepet.pet import value_gradients, value_kernels
    from scalepet.recipes.continual import learn_stream
    from scalepet.recipes.finetune import finetune

    engine.join_processes(timeout_seconds=60)
    free = value_gradients.Cost(entry=0, feature=0)  # else a tiny layer goes the tiled way
    value_gradients.COSTS = dict.fromkeys(value_gradients.COSTS, free)
    launch, launches = value_kernels.kernel_value_gradients, []

    def noted(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        when = "training" if torch._C._current_graph_task_id() >= 0 else "prepared"
        launches.append([*x.shape, when])
        return launch(x, *rest)

    def failing(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(NO_COMPILER)

    results = {}
    for name, path in json.loads(sys.argv[1]).items():
        console = Console(file=io.StringIO(), width=100)
        value_gradients.why_no_kernel.cache_clear()
        launches.clear()
        with mock.patch.object(
            value_kernels, "kernel_value_gradients", noted if name == "kernel" else failing
        ):
            if name == "stream":
                stream = read_stream_config(Path(path), [])
                deque(learn_stream(stream, resume=False, console=console))
            else:
                finetune(read_config(Path(path), []), resume=False, console=console)
        results[name] = {"launches": list(launches), "said": console.file.getvalue()}
    print(json.dumps(results), flush=True)
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
