"""The Triton kernel through Triton's interpreter, or on a CUDA device where there is one.

Skips itself where Triton is missing: it comes with torch for CUDA only.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

ON_CUDA = torch.cuda.is_available()
if not ON_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"  # is read when a kernel is defined

pytest.importorskip("triton")

from scalepet.pet.value_kernels import kernel_value_gradients  # noqa: E402

DEVICE = "cuda" if ON_CUDA else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (130, 48, 64)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_the_kernel_equals_the_dense_product_in_float64(dtype, index_dtype, shape, share):
    num_tokens, num_rows, num_columns = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_tokens, num_columns, generator=generator).to(dtype)
    grad_y = torch.randn(num_tokens, num_rows, generator=generator).to(dtype)
    size = num_rows * num_columns
    positions = torch.randperm(size, generator=generator)[: max(1, int(share * size))].sort().values
    expected = (grad_y.double().t() @ x.double()).flatten()[positions]
    arguments = (x, grad_y, positions.to(index_dtype))
    found = kernel_value_gradients(*(argument.to(DEVICE) for argument in arguments)).cpu()
    assert found.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    limit = 1e-14 if dtype is torch.float64 else 1e-5  # 16-bit inputs are summed in fp32
    assert float((found.double() - expected).norm() / expected.norm()) < limit


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from scalepet.pet.value_kernels import _sum_products

for number, index, total in (("bf16", "i32", "fp32"), ("fp32", "i64", "fp32")):
    pointers = {"features": number, "grads": number, "positions": index, "gradients": total}
    signature = {name: f"*{kind}" for name, kind in pointers.items()}
    signature |= dict.fromkeys(("num_entries", "num_tokens", "num_columns"), "i32")
    signature |= dict.fromkeys(("ENTRIES", "TOKENS"), "constexpr")
    source = ASTSource(_sum_products, signature, {"ENTRIES": 16, "TOKENS": 128})
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_the_kernel_compiles_for_an_h100_without_one(tmp_path):
    """The interpreter takes what the compiler refuses, such as annotations with imported names."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
