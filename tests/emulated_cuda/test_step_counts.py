"""What a training step asks of the device, and what a run leaves there: goldens of this device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import emulated_cuda
from emulated_cuda.marks import needed

WORKER = Path(__file__).with_name("counted_steps.py")
OFFLOAD = {
    "offload_param": {"device": "cpu", "pin_memory": True},
    "offload_optimizer": {"device": "cpu", "pin_memory": True},
}
CASES: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5 bf16": {"precision": "bf16"},
    "bert": {"backbone": "bert"},
    "bert bf16": {"backbone": "bert", "precision": "bf16"},
    "t5 zero0": {"stage": 0},
    "t5 zero2": {"stage": 2},
    "t5 offload": {"zero": OFFLOAD},
}
"""Of ZeRO-3 where nothing else is said."""

GOLDEN = {
    "t5": {"a step": (9, 7, 1194), "a micro-batch": (5, 3, 1144)},
    "t5 bf16": {"a step": (9, 7, 1194), "a micro-batch": (5, 3, 1144)},
    "bert": {"a step": (8, 8, 352), "a micro-batch": (4, 3, 284)},
    "bert bf16": {"a step": (8, 8, 352), "a micro-batch": (4, 3, 284)},
    "t5 zero0": {"a step": (5, 6, 1344), "a micro-batch": (4, 3, 1140)},
    "t5 zero2": {"a step": (7, 7, 1192), "a micro-batch": (4, 3, 1143)},
    "t5 offload": {"a step": (9, 8, 1289), "a micro-batch": (5, 3, 1144)},
}
"""(waits of the host, pageable uploads, kernels) of a step with one micro-batch, and of one more
micro-batch in it.
"""

pytestmark = [needed, pytest.mark.distributed]


@pytest.fixture(scope="module")
def found(tiny_backbones: Path, run_ranks: Any, tmp_path_factory: Any) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("counted") / "found.json"
    argument = {"folder": str(tiny_backbones), "out": str(out), "cases": CASES}
    run_ranks(
        WORKER,
        argument,
        num_ranks=1,
        timeout_seconds=200,
        environment=emulated_cuda.environment(),
    )
    return json.loads(out.read_text())


def asked(case: dict[str, Any]) -> tuple[int, int, int]:
    return case["waits"], case["counts"]["pageable upload"], case["counts"]["kernel"]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_step_asks_for_what_it_did(name: str, found: dict[str, Any]) -> None:
    step, cut = asked(found[name]), asked(found[f"{name}, cut"])
    more = tuple(two - one for one, two in zip(step, cut, strict=True))
    lines = {line: n for line, n in found[name]["lines"].items() if "kernel" not in line}
    assert {"a step": step, "a micro-batch": more} == GOLDEN[name], lines


@pytest.mark.parametrize("name", CASES)
def test_a_finished_run_leaves_not_one_byte(name: str, found: dict[str, Any]) -> None:
    assert found[name]["left"] == {"device": 0, "pinned": 0}
