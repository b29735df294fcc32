"""Every way to run LAE against plain LAE: losses, online and offline numbers, heads, matrix."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import steady
import torch
from plain_lae import Plain, plain_lae
from running import read_losses, run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEADY = Path(steady.__file__)
METHODS = {
    "adapter": {
        "name": "adapter",
        "placement": "parallel_attention",
        "bottleneck": 3,
        "calibrated": True,
    },
    "lora": {"name": "lora", "r": 2, "parts": ["k", "v"], "calibrated": True},
    "prefix": {"name": "prefix", "length": 3, "calibrated": True},
    "apet": {"name": "apet", "budget": 300},
}
CASES = {
    1: [("adapter", "zero3"), ("lora", "zero0")],
    2: [
        *((method, "zero3") for method in METHODS),
        ("prefix", "zero3_offload_cpu"),
        ("lora", "zero2"),
    ],
}
"""Number of ranks -> methods and stages."""


@pytest.fixture(scope="module")
def folders(write_stream, tmp_path_factory) -> dict[int, Path]:
    """All cases, by one and by two ranks."""
    made = {num_ranks: tmp_path_factory.mktemp(f"{num_ranks}-ranks") for num_ranks in CASES}
    for num_ranks, folder in made.items():
        configs = [
            write_stream(folder / f"{method}-{stage}", method=METHODS[method], deepspeed=stage)
            for method, stage in CASES[num_ranks]
        ]
        run([sys.executable, STEADY, *configs], num_ranks=num_ranks)
    return made


@pytest.fixture(scope="module")
def plain(write_stream, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")

    @cache
    def learn(method: str) -> Plain:
        config = write_stream(folder / method, method=METHODS[method])
        return plain_lae(config, folder / f"{method}-unused")

    return learn


@pytest.mark.parametrize(
    ("num_ranks", "method", "stage"),
    [(num_ranks, *case) for num_ranks, cases in CASES.items() for case in cases],
)
def test_a_run_is_plain_lae(method, stage, num_ranks, folders, plain):
    folder, expected = folders[num_ranks] / f"{method}-{stage}", plain(method)
    assert read_losses(folder) == pytest.approx(expected.losses, abs=2e-5)
    found = json.loads((folder / "matrix.json").read_text())["experts"]
    assert found == expected.matrix
    for name, wanted in (("adapter", expected.online), ("adapter-offline", expected.offline)):
        tensors = safetensors.torch.load_file(folder / name / "tensors.safetensors")
        heads = [tensors.pop(f"classifier.{own}") for own in ("weight", "bias")]
        assert tensors.keys() == wanted.keys()
        torch.testing.assert_close(tensors, wanted, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(heads, expected.heads, rtol=1e-3, atol=1e-5)


def test_the_experts_of_the_reference_differ(plain):
    """Else the offline numbers above would show nothing."""
    for method in METHODS:
        seen = plain(method)
        assert any(
            not torch.allclose(seen.online[name], copy, rtol=0, atol=1e-3)
            for name, copy in seen.offline.items()
        ), method
