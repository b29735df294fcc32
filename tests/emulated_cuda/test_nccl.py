"""The "nccl" of the emulated device refuses what NCCL refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from torch import Tensor

from emulated_cuda.marks import inside

pytestmark = inside


@pytest.fixture
def group() -> Iterator[Callable[[str | None], None]]:
    """Makes this process a group of one, with the backend that it is given."""

    def join(backend: str | None) -> None:
        torch_dist.init_process_group(backend, store=torch_dist.HashStore(), rank=0, world_size=1)

    yield join
    torch_dist.destroy_process_group()


def there() -> Tensor:
    return torch.ones(2, 3, device="cuda")


COLLECTIVES: dict[str, Callable[[Tensor], Any]] = {
    "all_reduce": lambda x: torch_dist.all_reduce(x),
    "broadcast": lambda x: torch_dist.broadcast(x, src=0),
    "all_gather": lambda x: torch_dist.all_gather([torch.empty_like(x)], x),
    "all_gather_into_tensor": lambda x: torch_dist.all_gather_into_tensor(torch.empty_like(x), x),
    "reduce_scatter_tensor": lambda x: torch_dist.reduce_scatter_tensor(torch.empty_like(x), x),
    "reduce": lambda x: torch_dist.reduce(x, dst=0),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", COLLECTIVES)
def test_tensors_of_the_host_are_refused(name: str, group: Any, device: ModuleType) -> None:
    group("nccl")
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        COLLECTIVES[name](torch.ones(2, 3))
    with device.recorded() as record:
        COLLECTIVES[name](there())
    assert record.counts["collective"] == 1 and record.waits == 0


def test_only_contiguous_tensors_of_the_current_gpu_are_taken(group: Any) -> None:
    group("nccl")
    with pytest.raises(ValueError, match="contiguous"):
        torch_dist.all_reduce(there().t())
    with pytest.raises(RuntimeError, match="cuda:1 while cuda:0 is current"):
        torch_dist.all_reduce(there().to("cuda:1"))


def test_what_is_gathered_arrives(group: Any) -> None:
    group("nccl")
    found = torch.empty(2, 3, device="cuda")
    work = torch_dist.all_gather([found], there(), async_op=True)
    assert work.wait() and torch.equal(found, there())
    objects = [None]
    torch_dist.all_gather_object(objects, {"a": 1})
    assert objects == [{"a": 1}]


def test_gloo_beside_it_takes_what_is_on_the_host(group: Any) -> None:
    group(None)
    for tensor in (torch.ones(2), there()):
        torch_dist.all_reduce(tensor)
    beside = torch_dist.new_group(backend="gloo")
    torch_dist.all_reduce(torch.ones(2), group=beside)
    assert torch_dist.get_backend(beside) == "gloo"


def test_it_is_called_nccl(group: Any) -> None:
    group("nccl")
    assert torch_dist.get_backend() == torch_dist.get_backend(torch_dist.new_group()) == "nccl"
    with pytest.raises(ValueError, match="only implemented for GLOO"):
        torch_dist.monitored_barrier()
