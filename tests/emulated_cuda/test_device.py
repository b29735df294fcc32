"""The emulated device behaves as a GPU does, and counts right."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from emulated_cuda.marks import inside

pytestmark = inside


def host() -> Tensor:
    return torch.ones(2, 3)


def there() -> Tensor:
    return torch.ones(2, 3, device="cuda")


MIXED: dict[str, Callable[[], object]] = {
    "a sum": lambda: there() + host(),
    "a product": lambda: there() @ host().t(),
    "a list": lambda: torch.cat([there(), host()]),
    "an output": lambda: torch.add(there(), there(), out=host()),
    "two GPUs": lambda: there() + host().to("cuda:1"),
    "a table on the host": lambda: nn.functional.embedding(there().long(), host()),
    "a table on another GPU": lambda: nn.functional.embedding(there().long(), there().to("cuda:1")),
    "a GPU's index into the host": lambda: host().index_select(0, torch.tensor([0]).cuda()),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_mixed_devices_raise(mix: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix()


def test_what_a_gpu_allows_is_allowed() -> None:
    assert (there() * torch.tensor(2.0)).sum() == 12, "a number of the host"
    assert there()[torch.tensor([0])].shape == (1, 3), "an index on the host"
    there().copy_(host())
    assert torch.equal(host().to("cuda:1").to("cuda:0"), there())


def test_there_are_two_gpus_and_no_third() -> None:
    assert torch.cuda.device_count() == 2
    with torch.cuda.device(1):
        assert torch.empty(1, device="cuda").device == torch.device("cuda:1")
    assert torch.empty(1, device="cuda").device == torch.device("cuda:0")
    for refused in (lambda: torch.cuda.set_device(2), lambda: torch.empty(1, device="cuda:2")):
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            refused()


def test_hidden_gpus_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert torch.cuda.device_count() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_memory_holds_garbage(dtype: torch.dtype) -> None:
    assert (torch.empty(1000, device="cuda", dtype=dtype) > 60_000).all()
    grown = torch.zeros(2, device="cuda", dtype=dtype).resize_(4)
    assert grown[:2].tolist() == [0, 0] and (grown[2:] > 60_000).all()


def test_bytes_are_counted(device: ModuleType) -> None:
    before = device.allocated_bytes()
    torch.cuda.reset_peak_memory_stats()
    kept = torch.empty(1000, device="cuda")
    assert device.allocated_bytes() - before == 4000
    assert len(kept.view(10, 100).t()) and device.allocated_bytes() - before == 4000
    del kept
    assert device.allocated_bytes() == before == torch.cuda.memory_allocated()
    assert torch.cuda.max_memory_allocated() - before == 4000


def test_pinned_bytes_are_counted(device: ModuleType) -> None:
    before = device.pinned_bytes()
    kept = torch.empty(1000, pin_memory=True)
    assert kept.is_pinned() and kept[500:].is_pinned() and not torch.empty(1000).is_pinned()
    assert device.pinned_bytes() - before == 4000
    del kept
    assert device.pinned_bytes() == before


def pinned() -> Tensor:
    return host().pin_memory()


COUNTED: dict[str, tuple[Callable[[Tensor], object], dict[str, int]]] = {
    "to the host": (lambda x: x.cpu(), {"download": 1}),
    "as a list": (lambda x: x.tolist(), {"download": 1}),
    "into pinned memory": (lambda x: pinned().copy_(x, non_blocking=True), {"pinned copy": 1}),
    "into it, waiting": (lambda x: pinned().copy_(x), {"download": 1}),
    "into pageable memory": (lambda x: host().copy_(x, non_blocking=True), {"download": 1}),
    "out of pinned memory": (lambda x: x.copy_(pinned(), non_blocking=True), {"pinned copy": 1}),
    "out of it, waiting": (lambda x: x.copy_(pinned()), {"blocking upload": 1}),
    "out of pageable memory": (
        lambda x: x.copy_(host(), non_blocking=True),
        {"pageable upload": 1},
    ),
    "a new tensor": (lambda x: torch.tensor([1.0], device="cuda"), {"pageable upload": 1}),
    "a copy": (lambda x: x.clone(), {"device copy": 1}),
    "another type": (lambda x: x.bfloat16(), {"device copy": 1}),
    "a view of another shape": (lambda x: x.t().reshape(2, 3), {"device copy": 1}),
    "a number": (lambda x: x[0, 0].item(), {"item": 1}),
    "a question": (lambda x: bool((x > 0).all()), {"kernel": 2, "item": 1}),
    "as many as the data says": (lambda x: x.nonzero(), {"size": 1, "kernel": 1}),
    "a mask": (lambda x: x[x.bool()], {"device copy": 1, "size": 1, "kernel": 2}),
    "a mask that is set": (
        lambda x: x.index_put_((x.bool(),), x.new_zeros(6)),
        {"device copy": 1, "size": 1, "kernel": 2},
    ),
    "an index on the host": (
        lambda x: x[torch.tensor([0])],
        {"pageable upload": 1, "kernel": 1},
    ),
    "synchronize": (lambda x: torch.cuda.synchronize(), {"synchronize": 1}),
    "one kernel": (lambda x: x.add_(1), {"kernel": 1}),
    "nothing": (lambda x: x.view(3, 2).unsqueeze(0).detach().shape, {}),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_right(name: str, device: ModuleType) -> None:
    act, expected = COUNTED[name]
    x = there()
    before = device.counts()
    with device.recorded() as record:
        act(x)
    assert record.counts == expected
    assert device.counts() - before == expected


def test_a_mask_that_is_filled_has_a_known_size(device: ModuleType) -> None:
    x = there()
    mask = x > 0
    with device.recorded() as record:
        x[mask] = 0
    assert record.waits == 0 and x.sum() == 0


def test_the_line_of_a_wait_is_known(device: ModuleType) -> None:
    x = there()
    with device.recorded() as record:
        x.sum().item()
    ((kind, line),) = (key for key in record.lines if key[0] == "item")
    assert __file__ in line and line.endswith("test_the_line_of_a_wait_is_known"), (kind, line)


def test_a_wait_is_an_error_where_that_is_asked_for() -> None:
    x = there()
    torch.cuda.set_sync_debug_mode("error")
    try:
        x.add_(1)
        for wait in (x.cpu, x.sum().item, x.nonzero, lambda: x.copy_(host())):
            with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
                wait()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.cpu().sum() == 12


def test_backward_runs_on_a_thread_of_the_device() -> None:
    x, threads = there().requires_grad_(), []
    x.register_hook(lambda _: threads.append(threading.get_ident()))
    (x * 2).sum().backward()
    assert x.grad is not None and x.grad.device == x.device and x.grad.sum() == 12
    assert threads and threads != [threading.get_ident()]


def test_no_process_takes_it_in_by_chance() -> None:
    assert os.environ["SCALEPET_EMULATED_GPUS"] == "2"
    assert torch.cuda.get_device_name() == "Emulated H200"
