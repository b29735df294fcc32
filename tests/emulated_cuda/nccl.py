"""An "nccl" that is gloo: it takes contiguous tensors of the current CUDA device and no others."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed
from torch.distributed import distributed_c10d as c10d

from emulated_cuda.library import c, muted, note

WRITTEN = {
    "all_reduce": ["tensor"],
    "broadcast": ["tensor"],
    "reduce": ["tensor"],
    "all_gather": ["tensor_list"],
    "all_gather_into_tensor": ["output_tensor"],
    "gather": ["gather_list"],
    "scatter": ["tensor"],
    "reduce_scatter": ["output"],
    "reduce_scatter_tensor": ["output"],
    "all_to_all_single": ["output"],
}
"""Of each collective, the arguments that it writes; tensors that it only reads are the others."""

_BOTH = "cpu:gloo,cuda:nccl"  # what torch takes where no backend is named
_plain_init, _plain_new_group, _plain_get_backend, _plain_barrier = (
    *(c10d.init_process_group, c10d.new_group),
    *(c10d.get_backend, c10d.barrier),
)
_names: dict[Any, str] = {}
"""What the groups of this process were asked for as: the world's is under None."""
_inside = threading.local()


def take_in() -> None:
    replaced = {name: _on_device(getattr(c10d, name), WRITTEN[name]) for name in WRITTEN}
    replaced |= {
        "init_process_group": init_process_group,
        "new_group": new_group,
        "get_backend": get_backend,
        "barrier": barrier,
        "monitored_barrier": monitored_barrier,
        "is_nccl_available": lambda: True,
    }
    for name, value in replaced.items():
        setattr(c10d, name, value)
        setattr(torch.distributed, name, value)
    plain_device = c10d._get_object_coll_device
    c10d._get_object_coll_device = lambda group=None: (
        "cuda" if get_backend(group) == "nccl" else plain_device(group)
    )
    c10d._coalescing_manager = _coalescing_manager


def init_process_group(backend: str | None = None, *arguments: Any, **options: Any) -> None:
    _names.clear()
    _names[None] = backend or _BOTH
    _plain_init("gloo" if "nccl" in _names[None] else backend, *arguments, **options)


def new_group(*arguments: Any, backend: str | None = None, **options: Any) -> Any:
    name = backend or _names[None]
    group = _plain_new_group(*arguments, backend="gloo" if "nccl" in name else name, **options)
    _names[group] = name
    return group


def get_backend(group: Any = None) -> str:
    _plain_get_backend(group)  # raises where there is no such group
    return _names.get(group, _names[None])


def barrier(group: Any = None, *arguments: Any, **options: Any) -> Any:
    if "nccl" in get_backend(group):
        note("synchronize", "barrier")
    return _plain_barrier(group, *arguments, **options)


def monitored_barrier(group: Any = None, **_: Any) -> None:
    raise ValueError("monitored_barrier is only implemented for GLOO backend.")


def _on_device(plain: Callable[..., Any], written: list[str]) -> Callable[..., Any]:
    """The collective on copies in host memory, where it is asked of a group of "nccl"."""
    signature, name = inspect.signature(plain), plain.__name__

    @functools.wraps(plain)
    def collective(*positional: Any, **named: Any) -> Any:
        arguments = signature.bind(*positional, **named).arguments
        backend = get_backend(arguments.get("group"))
        tensors = {id(one): one for one in _tensors_of(list(arguments.values()))}
        on_host = all(one.is_cpu for one in tensors.values())
        if "nccl" not in backend or (on_host and "gloo" in backend) or _is_inside():
            return plain(*positional, **named)
        for one in tensors.values():
            _check(one, name)
        note("collective", name)
        asynchronous = arguments.pop("async_op", False)
        with muted(), _from_inside(), torch.no_grad():
            copies = {key: one.detach().cpu() for key, one in tensors.items()}
            plain(**{key: _replace(value, copies) for key, value in arguments.items()})
            for one in _tensors_of([arguments.get(key) for key in written]):
                one.detach().copy_(copies[id(one)])
        return Done() if asynchronous else None

    return collective


def _tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors_of(one)


def _replace(value: Any, copies: dict[int, torch.Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_replace(one, copies) for one in value]
    return copies[id(value)] if isinstance(value, torch.Tensor) else value


def _check(tensor: torch.Tensor, name: str) -> None:
    """
    Raises:
        RuntimeError: the tensor is not on the current device.
        ValueError: it is not contiguous.
    """
    if not tensor.is_cuda:
        raise RuntimeError(
            f"No backend type associated with device type {tensor.device.type} ({name})"
        )
    if tensor.device.index != c.emulated_gpu():
        raise RuntimeError(
            f"{name} of a tensor on {tensor.device} while cuda:{c.emulated_gpu()} is current"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"Tensors must be contiguous ({name})")


def _is_inside() -> bool:
    """Some collectives of torch are made of others."""
    return getattr(_inside, "yes", False)


@contextlib.contextmanager
def _from_inside() -> Iterator[None]:
    _inside.yes = True
    try:
        yield
    finally:
        _inside.yes = False


class Done:
    """The handle of a collective that has ended already."""

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> torch.futures.Future[None]:
        future: torch.futures.Future[None] = torch.futures.Future()
        future.set_result(None)
        return future


@contextlib.contextmanager
def _coalescing_manager(*_: Any, **__: Any) -> Iterator[Done]:
    """Each is done by itself."""
    yield Done()
