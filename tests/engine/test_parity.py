"""All ZeRO stages, world sizes and memory options give losses, gradients, values of plain torch."""

from __future__ import annotations

import dataclasses
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from engine import parity
from engine.parity import Case

OFFLOAD = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}


CASES = {
    "t5 stage 0": Case(stage=0),
    "t5 stage 1": Case(stage=1),
    "t5 stage 2": Case(stage=2),
    "t5 stage 3": Case(),
    "t5 stage 3, accumulation": Case(micro_batch_size=3),
    "t5 stage 2, accumulation": Case(stage=2, micro_batch_size=3),
    "t5 stage 3, clip": Case(clip=0.05),
    "t5 stage 2, clip": Case(stage=2, clip=0.05),
    "t5 stage 3, nothing persistent": Case(zero={"stage3_param_persistence_threshold": 0}),
    "t5 stage 3, all persistent": Case(zero={"stage3_param_persistence_threshold": 10**9}),
    "t5 stage 3, offload": Case(zero=OFFLOAD),
    "t5 stage 3, checkpointing": Case(checkpoint_activations=True),
    "t5 stage 3, checkpointing, offload": Case(checkpoint_activations=True, zero=OFFLOAD),
    "t5 stage 0, checkpointing": Case(stage=0, checkpoint_activations=True),
    "t5-gated stage 0": Case("t5-gated", stage=0),
    "t5-gated stage 3": Case("t5-gated"),
    "bert stage 0": Case("bert", stage=0),
    "bert stage 2": Case("bert", stage=2),
    "bert stage 3": Case("bert"),
    "bert stage 3, checkpointing": Case("bert", checkpoint_activations=True),
    "bert stage 3, accumulation": Case("bert", micro_batch_size=2),
    "bert stage 3, clip": Case("bert", clip=0.05),
    "bert stage 3, offload": Case("bert", zero=OFFLOAD),
    "t5 stage 3, 20 steps": Case(num_steps=20),
    "bert stage 0, 20 steps": Case("bert", stage=0, num_steps=20),
}
HPZ = {"zero_hpz_partition_size": 2}
TWO_RANKS_ONLY = {"t5 stage 3, hpZ": Case(zero=HPZ), "bert stage 3, hpZ": Case("bert", zero=HPZ)}
BF16 = {
    "t5 bf16 stage 0": Case(stage=0, precision="bf16"),
    "t5 bf16 stage 2": Case(stage=2, precision="bf16"),
    "t5 bf16 stage 3": Case(precision="bf16"),
    "bert bf16 stage 3": Case("bert", precision="bf16"),
}
DROPOUT = {
    "t5 stage 3, dropout": Case(dropout=0.1),
    "bert stage 2, dropout": Case("bert", stage=2, dropout=0.1),
}

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


def all_cases(num_ranks: int) -> dict[str, Any]:
    cases = {**CASES, **BF16, **DROPOUT}
    return {**cases, **TWO_RANKS_ONLY} if num_ranks == 2 else cases


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def trained(request, tiny_backbones, run_ranks, tmp_path_factory):
    """All cases trained in one group of processes: (number of ranks, folder of results)."""
    out = tmp_path_factory.mktemp("parity")
    argument = {
        "folder": str(tiny_backbones),
        "out": str(out),
        "cases": {
            name: dataclasses.asdict(case) for name, case in all_cases(request.param).items()
        },
    }
    run_ranks(Path(parity.__file__), argument, num_ranks=request.param, timeout_seconds=400)
    return request.param, out


@cache
def reference(case: Any, folder: Path) -> dict[str, Any]:
    return parity.train_reference(case, folder)


def reference_of(case: Any, folder: Path) -> dict[str, Any]:
    """The plain run of the same training; it knows no shards, micro-batches or checkpoints."""
    plain = Case(case.backbone, precision=case.precision, clip=case.clip, num_steps=case.num_steps)
    return reference(plain, folder)


def read(out: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((out / f"{name}.json").read_text()), safetensors.torch.load_file(
        out / f"{name}.safetensors"
    )


@pytest.mark.parametrize("name", [*CASES, *TWO_RANKS_ONLY])
def test_losses_gradients_and_values_equal_plain_torch(name, trained, tiny_backbones):
    num_ranks, out = trained
    if name in TWO_RANKS_ONLY and num_ranks == 1:
        pytest.skip("needs two ranks")
    expected = reference_of({**CASES, **TWO_RANKS_ONLY}[name], tiny_backbones)
    numbers, tensors = read(out, name)
    assert numbers["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert numbers["num_changed"] == 0, "frozen numbers of the backbone have changed"
    masked = {f"{tensor}_values" for tensor in expected["values"]}
    assert {n.removeprefix("trained/") for n in tensors if n.startswith("trained/")} == {
        *masked,
        *expected["head"],
    }
    for tensor, gradient in expected["gradients"].items():
        found = tensors[f"gradient/{tensor}_values"].cpu()
        torch.testing.assert_close(
            found, gradient, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, tensor)
        )
    for tensor, values in expected["values"].items():
        found = tensors[f"trained/{tensor}_values"]
        torch.testing.assert_close(
            found, values, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, tensor)
        )
    for tensor, values in expected["head"].items():
        torch.testing.assert_close(tensors[f"trained/{tensor}"], values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BF16)
def test_bf16_equals_plain_mixed_precision_but_for_rounding(name, trained, tiny_backbones):
    _, out = trained
    expected = reference_of(BF16[name], tiny_backbones)
    numbers, tensors = read(out, name)
    assert numbers["num_changed"] == 0
    values = torch.cat(list(expected["values"].values()))
    found = torch.cat([tensors[f"trained/{tensor}_values"] for tensor in expected["values"]])
    assert found.dtype == torch.float32
    # A wrong count of Adam's steps shrinks every value by a quarter; sums of bf16 numbers in
    # another order move them by 2.5 %.
    assert float((found - values).norm() / values.norm()) < 0.05
    assert numbers["losses"] == pytest.approx(expected["losses"], rel=0.003)


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_trains_and_leaves_the_backbone_alone(name, trained, tiny_backbones):
    _, out = trained
    numbers, _ = read(out, name)
    expected = reference_of(DROPOUT[name], tiny_backbones)
    assert numbers["num_changed"] == 0
    assert numbers["losses"] == pytest.approx(expected["losses"], rel=0.4)
    assert numbers["losses"] != pytest.approx(expected["losses"], abs=1e-5)
