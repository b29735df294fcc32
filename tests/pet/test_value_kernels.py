"""The Triton kernel through Triton's interpreter, or compiled, where a CUDA device is visible.

The interpreter must be asked for before Python starts, as tests/run.sh does: a kernel is what the
variable says when its module is imported, those inside of Triton among them.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

ON_CUDA = torch.cuda.is_available()
if not (ON_CUDA or os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip(
        "TRITON_INTERPRET=1 is not set, as tests/run.sh does before Python starts",
        allow_module_level=True,
    )

from scalepet.pet import value_gradients  # noqa: E402
from scalepet.pet.value_gradients import (  # noqa: E402
    Cost,
    linear_value_gradients,
    plan_of,
    why_no_kernel,
)
from scalepet.pet.value_kernels import _sum_products, kernel_value_gradients  # noqa: E402

DEVICE = "cuda" if ON_CUDA else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(x: Tensor, grad_y: Tensor, positions: Tensor) -> None:
    """Against dot products in float64."""
    rows, columns = positions.long() // x.shape[1], positions.long() % x.shape[1]
    expected = (grad_y.double()[:, rows] * x.double()[:, columns]).sum(0)
    arguments = (x, grad_y, positions)
    found = kernel_value_gradients(*(argument.to(DEVICE) for argument in arguments)).cpu()
    assert found.dtype == (torch.float64 if x.dtype is torch.float64 else torch.float32)
    limit = 1e-14 if x.dtype is torch.float64 else 1e-5  # 16-bit inputs are summed in fp32
    assert float((found.double() - expected).norm() / expected.norm()) < limit


def draw(num_tokens: int, num_features: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens + num_features)
    return torch.randn(num_tokens, num_features, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (130, 24, 32)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_the_kernel_equals_the_dense_product_in_float64(dtype, index_dtype, shape, share):
    num_tokens, num_rows, num_columns = shape
    size, generator = num_rows * num_columns, torch.Generator().manual_seed(0)
    positions = torch.randperm(size, generator=generator)[: max(1, int(share * size))].sort().values
    x, grad_y = draw(num_tokens, num_columns, dtype), draw(num_tokens, num_rows, dtype)
    check(x, grad_y, positions.to(index_dtype))


@pytest.mark.parametrize("num_tokens", [2, 15, 127, 128, 129, 255, 257, 383, 1021])
@pytest.mark.parametrize("num_entries", [1, 15, 16, 17, 33])
def test_tokens_and_entries_need_not_fill_a_block(num_tokens, num_entries):
    x, grad_y = draw(num_tokens, 11, torch.bfloat16), draw(num_tokens, 13, torch.bfloat16)
    check(x, grad_y, torch.arange(0, 143, 143 // num_entries)[:num_entries].int())


@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_beyond_thirty_two_bits(dtype):
    """In a weight of 70,000 x 70,000, of which nothing is there but its rows and columns."""
    size = 70_000
    last = size * size - 1
    positions = torch.tensor([0, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, last - 1, last])
    check(draw(3, size, dtype), draw(3, size, dtype), positions)


@pytest.mark.skipif(ON_CUDA, reason="the memory is there only where it is touched: on a host")
def test_features_times_tokens_beyond_thirty_two_bits():
    """Positions of 32 bits into a matrix whose inputs have more numbers than that."""
    num_tokens, num_columns = 130, 2**24 + 2
    features = untouched((num_columns, num_tokens))
    rows, columns = torch.tensor([0, 1, 1]), torch.tensor([num_columns - 1, 3, num_columns - 2])
    features[columns] = draw(num_tokens, 3, torch.bfloat16).t()
    grads = draw(num_tokens, 2, torch.bfloat16).t().contiguous()
    positions, found = (rows * num_columns + columns).int(), torch.empty(3)
    sizes = (len(positions), num_tokens, num_columns)
    _sum_products[(1,)](features, grads, positions, found, *sizes, ENTRIES=16, TOKENS=128)
    expected = (grads[rows].double() * features[columns].double()).sum(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def untouched(shape: tuple[int, int]) -> Tensor:
    """Zeros in bf16 of which the machine gives what is written to, and as much in front: a place
    that has overflown reads zeros there.
    """
    size, in_front = shape[0] * shape[1], 2**31
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has its name from 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    whole = mmap.mmap(-1, 2 * (in_front + size), flags=flags)
    return torch.frombuffer(whole, dtype=torch.bfloat16)[in_front:].view(shape)


class TestLaunchedOnce:
    """As on a CUDA device; the interpreter takes tensors of any."""

    @pytest.fixture(autouse=True)
    def device(self, monkeypatch: pytest.MonkeyPatch) -> torch.device:
        """One that counts as CUDA, with tensors where the tests run; nothing is known of it yet."""
        ones, arange = torch.ones, torch.arange
        here = {"device": DEVICE}
        monkeypatch.setattr(torch, "ones", lambda *size, **kept: ones(*size, **{**kept, **here}))
        monkeypatch.setattr(
            torch, "arange", lambda *ends, **kept: arange(*ends, **{**kept, **here})
        )
        why_no_kernel.cache_clear()
        yield torch.device("cuda", 0)
        why_no_kernel.cache_clear()

    @pytest.fixture
    def launches(self, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
        """The type of the inputs of every launch."""
        from scalepet.pet import value_kernels

        seen: list[torch.dtype] = []
        plain = value_kernels.kernel_value_gradients

        def launch(x: Tensor, *rest: Tensor) -> Tensor:
            seen.append(x.dtype)
            return plain(x, *rest)

        monkeypatch.setattr(value_kernels, "kernel_value_gradients", launch)
        return seen

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_kernel_that_runs(self, device, launches, dtype) -> None:
        assert [why_no_kernel(device, dtype) for _ in range(3)] == [None] * 3
        assert launches == [dtype]
        way = value_gradients._sparse_way(device, dtype)
        assert way is not value_gradients.gather_value_gradients
        assert launches == [dtype]

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (RuntimeError("Failed to find C compiler. Please specify CC.\nmore"), "C compiler"),
            (subprocess.CalledProcessError(1, ["gcc", "-c"]), "returned non-zero exit status 1"),
            (FileNotFoundError(2, "No such file", "ptxas"), "ptxas"),
            (ImportError("libcuda.so.1: cannot open shared object file"), "libcuda"),
            (AssertionError(), "AssertionError"),
        ],
    )
    def test_one_that_does_not_is_replaced_by_the_gather(
        self, device, error, words, monkeypatch
    ) -> None:
        from scalepet.pet import value_kernels

        def launch(*_: Tensor) -> Tensor:
            raise error

        monkeypatch.setattr(value_kernels, "kernel_value_gradients", launch)
        why = why_no_kernel(device, torch.bfloat16)
        assert why is not None and words in why and type(error).__name__ in why and "\n" not in why
        way = value_gradients._sparse_way(device, torch.bfloat16)
        assert way is value_gradients.gather_value_gradients

    def test_one_that_counts_wrong_is_replaced(self, device, monkeypatch) -> None:
        from scalepet.pet import value_kernels

        monkeypatch.setattr(value_kernels, "kernel_value_gradients", lambda x, *_: x[0] * 0)
        why = why_no_kernel(device, torch.float32)
        assert why is not None and "0.0" in why

    def test_no_triton(self, device, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "scalepet.pet.value_kernels", None)
        why = why_no_kernel(device, torch.float32)
        assert why is not None and "scalepet.pet.value_kernels" in why

    def test_other_devices_want_none(self, launches) -> None:
        for kind in ("cpu", "mps", "meta"):
            assert why_no_kernel(torch.device(kind), torch.float32) is None
        assert launches == []


def test_a_layer_of_any_mask_goes_through_the_kernel(monkeypatch):
    """The reduced positions of a plan, as the kernel gets them."""
    free = Cost(entry=0, feature=0)
    monkeypatch.setattr(value_gradients, "COSTS", {(DEVICE, 32): free})
    monkeypatch.setattr(value_gradients, "_sparse_way", lambda *_: kernel_value_gradients)
    x, grad_y = draw(70, 48, torch.float32), draw(70, 40, torch.float32)
    dense = (grad_y.double().t() @ x.double()).flatten()
    weight = torch.arange(40 * 48).view(40, 48)
    for positions in (weight[::7], weight[:, [3, 40]], weight[5, :9], weight.flatten()[::31]):
        sorted_positions = positions.flatten().sort().values.int().to(DEVICE)
        assert not plan_of(sorted_positions, (40, 48), torch.float32).is_tiled
        found = linear_value_gradients(x.to(DEVICE), grad_y.to(DEVICE), sorted_positions)
        expected = dense[sorted_positions.long().cpu()]
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from scalepet.pet.value_kernels import _sum_products

for number, index in (("bf16", "i32"), ("fp16", "i32"), ("fp32", "i64")):
    pointers = {"features": number, "grads": number, "positions": index, "gradients": "fp32"}
    signature = {name: f"*{kind}" for name, kind in pointers.items()}
    signature |= dict.fromkeys(("num_entries", "num_tokens", "num_columns"), "i32")
    signature |= dict.fromkeys(("ENTRIES", "TOKENS"), "constexpr")
    source = ASTSource(_sum_products, signature, {"ENTRIES": 16, "TOKENS": 128})
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_the_kernel_compiles_for_an_h100_without_one(tmp_path):
    """With Triton's own ptxas. The interpreter takes what the compiler refuses, such as annotations
    with imported names.
    """
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PATH": ""}
    for name in [
        name for name in environment if name.startswith(("TRITON_INTERPRET", "TRITON_PT"))
    ]:
        del environment[name]
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
