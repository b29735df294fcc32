"""The sparse heart on a CUDA device, against the CPU. Skips itself where there is none.

Every test run does it on the emulated device, in Triton's interpreter; so the masks are small.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scalepet.pet.masked_forward import mask_module
from scalepet.pet.value_gradients import (
    gather_value_gradients,
    linear_value_gradients,
    plan_of,
    tiled_value_gradients,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def kernel_value_gradients(*arguments: torch.Tensor) -> torch.Tensor:
    pytest.importorskip("triton")
    from scalepet.pet.value_kernels import kernel_value_gradients

    return kernel_value_gradients(*arguments)


WAYS = [
    gather_value_gradients,
    tiled_value_gradients,
    kernel_value_gradients,
    linear_value_gradients,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_value_gradients_equal_the_dense_product_in_float64(way, dtype, tolerance):
    torch.manual_seed(0)
    x, grad_y = torch.randn(500, 512, dtype=dtype), torch.randn(500, 768, dtype=dtype)
    positions = torch.randperm(512 * 768)[:500].sort().values.int()
    expected = (grad_y.double().t() @ x.double()).flatten()[positions.long()]
    found = way(x.cuda(), grad_y.cuda(), positions.cuda()).cpu().double()
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("num_entries", [1, 300, 1000, 200_000, 512 * 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_does_not_wait_for_the_device(num_entries, dtype):
    """Once the plan is made; tiled and sparse ways alike."""
    torch.manual_seed(0)
    x = torch.randn(256, 512, device="cuda", dtype=dtype)
    grad_y = torch.randn(256, 768, device="cuda", dtype=dtype)
    positions = torch.randperm(512 * 768)[:num_entries].sort().values.int().cuda()
    linear_value_gradients(x, grad_y, positions)  # makes the plan, and compiles
    plan = plan_of(positions, (768, 512), dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        linear_value_gradients(x, grad_y, positions, plan=plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_masked_layer_keeps_no_second_weight_and_restores_its_own():
    torch.manual_seed(0)
    size = 2048
    layer = nn.Linear(size, size, bias=False).bfloat16().requires_grad_(False)
    positions = torch.randperm(size * size)[:500].sort().values.int()
    values = nn.Parameter(torch.randn(500).bfloat16())
    on_gpu = copy.deepcopy(layer).cuda()
    before = on_gpu.weight.clone()
    mask_module(on_gpu, "weight", nn.Parameter(values.detach().cuda()), positions.cuda())
    x = torch.randn(64, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    x @ on_gpu.weight  # cuBLAS takes its workspace, and keeps it
    torch.cuda.reset_peak_memory_stats()
    at_start = torch.cuda.memory_allocated()
    y = on_gpu(x)
    kept = torch.cuda.memory_allocated() - at_start
    assert kept < 2 * y.numel() * y.element_size() + 2**20, "the output, and nothing like a weight"
    y.float().pow(2).sum().backward()
    assert torch.equal(on_gpu.weight, before)
    assert on_gpu.weight_values.grad is not None
    dense = layer.weight.float()
    dense.view(-1)[positions.long()] += values.detach().float()
    expected = x.detach().cpu().float() @ dense.t()
    assert float((y.detach().cpu().float() - expected).norm() / expected.norm()) < 1e-2
