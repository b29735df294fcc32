"""What a masked layer asks of the device, beside the plain layer: goldens, as this device counts.

A launch costs a few microseconds, so on small layers the number of kernels is the time.
"""

from __future__ import annotations

from collections import Counter
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from emulated_cuda.marks import inside
from scalepet.pet.masked_forward import mask_module

pytestmark = inside

SIZE, NUM_TOKENS = 512, 256
PLAIN = {"kernel": 1}
FORWARD = {"kernel": 5, "device copy": 1}
"""Of a masked layer: the product, and the values put in and taken out."""

BACKWARD: dict[tuple[str, int], dict[str, int]] = {
    ("fp32", 300): {"kernel": 14, "device copy": 3},
    ("fp32", 5_000): {"kernel": 8, "device copy": 2},
    ("fp32", 100_000): {"kernel": 8, "device copy": 2},
    ("bf16", 300): {"kernel": 16, "device copy": 3},
    ("bf16", 5_000): {"kernel": 8, "device copy": 3},
    ("bf16", 100_000): {"kernel": 8, "device copy": 3},
}
"""By dtype and entries. Where few rows and columns are touched, those are picked first."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def masked(num_entries: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(SIZE, SIZE, bias=False, device="cuda", dtype=dtype).requires_grad_(False)
    if num_entries:
        positions = torch.randperm(SIZE * SIZE)[:num_entries].sort().values.int()
        values = nn.Parameter(torch.zeros(num_entries, device="cuda", dtype=dtype))
        mask_module(layer, "weight", values, positions.cuda())
    return layer


def walked(layer: nn.Linear, dtype: torch.dtype, device: ModuleType) -> tuple[Counter, Counter]:
    """What a forward and a backward ask for, after one that makes plans."""
    x = torch.randn(NUM_TOKENS, SIZE, device="cuda", dtype=dtype, requires_grad=True)
    grad = torch.randn(NUM_TOKENS, SIZE, device="cuda", dtype=dtype)
    for _ in range(2):
        for tensor in (x, *layer.parameters()):
            tensor.grad = None
        with device.recorded() as forward:
            y: Tensor = layer(x)
        with device.recorded() as backward:
            y.backward(grad)
    return forward.counts, backward.counts


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_plain_layer_is_a_product_each_way(dtype: torch.dtype, device: ModuleType) -> None:
    assert walked(masked(0, dtype), dtype, device) == (PLAIN, PLAIN)


@pytest.mark.parametrize(("dtype", "num_entries"), BACKWARD)
def test_a_masked_layer_waits_for_nothing(dtype: str, num_entries: int, device: ModuleType) -> None:
    forward, backward = walked(masked(num_entries, DTYPES[dtype]), DTYPES[dtype], device)
    assert forward == FORWARD
    assert backward == BACKWARD[dtype, num_entries]
