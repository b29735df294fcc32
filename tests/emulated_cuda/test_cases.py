"""Trainings on the emulated CUDA device have the losses and numbers of those on the CPU.

A case is its name: a method on a backbone, a shipped DeepSpeed file, a precision, ways to save
memory, and ranks. Together they cover every pair of the latter, and every method on every family.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import write_backbones
from engine import parity
from engine.parity import APET, BATCH_SIZE, Case
from torch import Tensor

from emulated_cuda import environment
from emulated_cuda.marks import needed
from scalepet import engine
from scalepet.masks import decode_sorted
from scalepet.pet import METHODS, POSITIONS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

CASES = (
    "apet on t5: zero2 fp32 checkpointing accumulation, 1 rank",
    "apet on bert: zero0 fp16, 2 ranks",
    "apet on vit: zero3 bf16 checkpointing, 2 ranks",
    "lora on t5-gated: zero3_offload_cpu bf16 accumulation, 2 ranks",
    "lora on bert: zero3_hpz fp32, 1 rank",
    "lora on vit: zero0 fp16 checkpointing accumulation, 1 rank",
    "adapter on t5: zero3 fp16, 1 rank",
    "adapter on bert: zero3_hpz bf16 checkpointing accumulation, 2 ranks",
    "adapter on vit: zero2 fp32, 2 ranks",
    "prefix on t5-gated: zero3_offload_cpu bf16 checkpointing, 1 rank",
    "prefix on bert: zero3 fp32 accumulation, 2 ranks",
    "prefix on vit: zero3_hpz fp16 accumulation, 2 ranks",
    "prompt on t5: zero0 fp32 checkpointing, 2 ranks",
    "prompt on bert: zero2 bf16 accumulation, 1 rank",
    "prompt on vit: zero3_offload_cpu fp16 checkpointing, 2 ranks",
    "bitfit on t5-gated: zero2 fp16 checkpointing accumulation, 2 ranks",
    "bitfit on bert: zero3_offload_cpu fp32, 1 rank",
    "bitfit on vit: zero0 bf16, 1 rank",
    "ia3 on t5: zero3_hpz fp16 checkpointing, 1 rank",
    "ia3 on bert: zero0 bf16 accumulation, 2 ranks",
    "ia3 on vit: zero3 fp32 checkpointing accumulation, 1 rank",
    "full on t5-gated: zero0 fp32 accumulation, 1 rank",
    "full on bert: zero2 bf16 checkpointing, 2 ranks",
    "full on vit: zero3_offload_cpu fp16 accumulation, 1 rank",
    "head on bert: zero3 fp16 checkpointing accumulation, 1 rank",
    "head on vit: zero3_hpz bf16, 2 ranks",
    "released on t5-gated: zero3_hpz fp32 checkpointing accumulation, 2 ranks",
    "released on bert: zero2 fp16, 1 rank",
    "released on vit: zero3 bf16 accumulation, 1 rank",
    "apet by gradient on t5: zero3_offload_cpu fp32 checkpointing accumulation, 2 ranks",
    "apet by gradient on bert: zero3 bf16, 1 rank",
    "apet by snip on t5-gated: zero3_hpz bf16 accumulation, 1 rank",
    "apet by snip on vit: zero2 fp32 checkpointing, 2 ranks",
    "apet by magnitude on bert: zero0 fp32 checkpointing, 1 rank",
    "apet that moves on t5: zero3 bf16 checkpointing accumulation, 2 ranks",
    "apet that moves on t5-gated: zero2 fp32, 1 rank",
    "apet that moves on bert: zero3_offload_cpu bf16 checkpointing accumulation, 2 ranks",
    "apet that moves on vit: zero3_hpz fp32 checkpointing, 1 rank",
    "apet concat on t5-gated: zero3 fp32, 2 ranks",
    "apet plug on bert: zero3_offload_cpu fp16, 2 ranks",
    "apet mix on t5: zero0 bf16 checkpointing, 1 rank",
    "calibrated lora on t5-gated: zero0 fp16 accumulation, 2 ranks",
    "adapter beside on vit: zero2 bf16 checkpointing accumulation, 1 rank",
    "apet on t5-gated: zero3_offload_cpu fp16 checkpointing accumulation, 1 rank",
    "apet of rows on bert: zero3_hpz fp16 checkpointing, 2 ranks",
)

OPTIONS: dict[str, dict[str, Any]] = {
    "apet": APET,
    "apet of rows": {"name": "apet", "budget": 300, "unit": "row"},
    "apet by magnitude": {**APET, "select": "magnitude"},
    "apet by gradient": {**APET, "select": "gradient"},
    "apet by snip": {**APET, "select": "snip"},
    "apet that moves": {**APET, "move_every": 2},
    "apet concat": {"name": "apet", "budget": 100, "operation": "concat"},
    "apet plug": {"name": "apet", "budget": 200, "operation": "plug"},
    "apet mix": {"name": "apet", "budget": 300, "operation": "mix"},
    "lora": {"name": "lora", "r": 2},
    "calibrated lora": {"name": "lora", "r": 2, "parts": ["k", "v"], "calibrated": True},
    "adapter": {"name": "adapter", "bottleneck": 4},
    "adapter beside": {"name": "adapter", "bottleneck": 4, "placement": "parallel_attention"},
    "prefix": {"name": "prefix", "length": 3},
    "prompt": {"name": "prompt", "length": 3},
    "released": {"name": "released", "budget": 6000},
}
"""Of the methods that need some."""

LEVELS = (
    ("zero0", "zero2", "zero3", "zero3_offload_cpu", "zero3_hpz"),
    ("fp32", "bf16", "fp16"),
    ("", "checkpointing"),
    ("", "accumulation"),
    ("1 rank", "2 ranks"),
)
FAMILIES = ("t5", "bert", "vit")
NOT_THERE = {("head", "t5")}
"""A T5 has none."""


def split(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Method, backbone, and the level of each factor."""
    what, words, ranks = re.split(": |, ", name)
    method, backbone = what.split(" on ")
    given = [*words.split(), ranks]
    levels = tuple(next((word for word in given if word in level), "") for level in LEVELS)
    assert sorted(filter(None, levels)) == sorted(given), f"no such setting: {name}"
    return method, backbone, levels


def num_ranks_of(name: str) -> int:
    *_, (*_, ranks) = split(name)
    return int(ranks[0])


def case_of(name: str, *, on_cpu: bool = False) -> Case:
    method, backbone, (place, precision, checkpointing, accumulation, _) = split(name)
    zero = engine.read_ds_file(place)["zero_optimization"]
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = 0  # weights are gathered for every use
    return Case(
        backbone,
        zero=zero,
        precision="fp32" if on_cpu and precision == "fp16" else precision,
        micro_batch_size=BATCH_SIZE // num_ranks_of(name) // (2 if accumulation else 1),
        checkpoint_activations=bool(checkpointing),
        method=OPTIONS.get(method, {"name": method}),
        num_steps=3,
    )


def test_no_case_is_lost():
    assert len(set(CASES)) == 45
    assert {split(name)[0] for name in CASES} >= OPTIONS.keys()


def test_every_pair_of_settings_has_a_case():
    settings = [enumerate(split(name)[2]) for name in CASES]
    found = {pair for levels in settings for pair in itertools.combinations(levels, 2)}
    factors = [[(index, level) for level in levels] for index, levels in enumerate(LEVELS)]
    for one, other in itertools.combinations(factors, 2):
        assert set(itertools.product(one, other)) <= found


def test_every_method_has_a_case_on_every_family():
    found = set()
    for method, backbone, _ in map(split, CASES):
        found.add((OPTIONS.get(method, {"name": method})["name"], backbone.removesuffix("-gated")))
    assert found == set(itertools.product(METHODS, FAMILIES)) - NOT_THERE


@pytest.fixture(scope="module")
def thin_backbones(tmp_path_factory) -> Path:
    """The tiny ones with one layer."""
    folder = tmp_path_factory.mktemp("thin")
    write_backbones(folder, num_layers=1)
    return folder


@pytest.fixture(scope="module")
def trained(thin_backbones, run_ranks, tmp_path_factory) -> Path:
    """All cases, trained on the device and on the CPU: the folder of both."""
    root = tmp_path_factory.mktemp("emulated")
    places = {"cpu": None, "cuda": environment()}
    for (place, variables), num_ranks in itertools.product(places.items(), (1, 2)):
        cases = {
            name: dataclasses.asdict(case_of(name, on_cpu=place == "cpu"))
            for name in CASES
            if num_ranks_of(name) == num_ranks
        }
        (root / place).mkdir(exist_ok=True)
        run_ranks(
            Path(parity.__file__),
            {"folder": str(thin_backbones), "out": str(root / place), "cases": cases},
            num_ranks=num_ranks,
            timeout_seconds=250,
            environment=variables,
        )
    return root


def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    numbers = json.loads((folder / f"{name}.json").read_text())
    assert "fault" not in numbers, numbers["fault"]
    assert numbers["num_changed"] == 0, "frozen numbers of the backbone have changed"
    assert numbers["device"] == folder.name
    return numbers, safetensors.torch.load_file(folder / f"{name}.safetensors")


LOSS_BOUNDS: dict[str, dict[str, float]] = {
    "fp32": {"rel": 1e-6},
    "bf16": {"rel": 5e-3},
    "fp16": {"abs": 1e-2},
}
"""Of two runs in fp32, of two in bf16, whose numbers are .4 to .8 % apart, of fp16 and fp32."""


@needed
@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_cpu(name, trained):
    numbers, tensors = read(trained / "cuda", name)
    expected, others = read(trained / "cpu", name)
    precision = split(name)[2][1]
    assert numbers["losses"] == pytest.approx(expected["losses"], **LOSS_BOUNDS[precision])
    assert tensors.keys() == others.keys()
    if precision == "fp32":
        torch.testing.assert_close(tensors, others, atol=1e-6, rtol=1e-5)
    else:
        check_alike(tensors, others)


def check_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Nearly the same mask where rounded numbers have chosen it, else nearly the same numbers."""
    places = [name for name in one if name.endswith(POSITIONS)]
    if places:
        masks = [
            {(name, place) for name in places for place in decode_sorted(of[name].numpy()).tolist()}
            for of in (one, other)
        ]
        assert len(masks[0] & masks[1]) > 0.9 * len(masks[0])
        return
    trained = [name for name in one if name.startswith("trained/")]
    found, expected = (torch.cat([of[name].flatten() for name in trained]) for of in (one, other))
    assert float((found - expected).norm() / expected.norm()) < 0.05
