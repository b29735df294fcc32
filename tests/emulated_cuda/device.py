"""Fills in ``torch.cuda``, and counts what a program does with the device.

``take_in`` comes before anything imports DeepSpeed; ``start/sitecustomize.py`` calls it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from emulated_cuda import library, nccl
from emulated_cuda.library import KINDS, LISTENER, WAITS, c, muted, note

TOTAL_BYTES = 141 * 2**30

Device = torch.device | str | int | None


def counts() -> Counter[str]:
    """How often each kind has happened in this process; cpp/counts.h names and explains them."""
    return Counter({name: c.emulated_count(kind) for kind, name in enumerate(KINDS)})


def allocated_bytes() -> int:
    """Of all devices that this process uses, together."""
    return c.emulated_allocated_bytes()


def pinned_bytes() -> int:
    """Of all pinned buffers of this process."""
    return c.emulated_pinned_bytes()


@dataclass
class Record:
    """What happened while it was recorded."""

    counts: Counter[str] = field(default_factory=Counter)
    """By kind."""
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and operator."""
    lines: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and line of Python, ``file:line function``: the innermost outside of torch."""

    @property
    def waits(self) -> int:
        """How often the host waited for the device; pageable uploads are not among them."""
        return sum(self.counts[kind] for kind in WAITS)


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """Counts what all threads of this process do inside, with the lines that do it."""
    record = Record()

    def listen(kind: int, name: bytes) -> None:
        record.counts[KINDS[kind]] += 1
        record.operators[KINDS[kind], name.decode()] += 1
        record.lines[KINDS[kind], _line()] += 1

    listener = LISTENER(listen)
    c.emulated_listen(listener)
    try:
        yield record
    finally:
        c.emulated_listen(LISTENER())


_PASSED_OVER = (__file__, library.__file__, nccl.__file__, os.path.dirname(torch.__file__))


def _line() -> str:
    """Autograd's threads run lines of Python in custom functions and hooks alone."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        frame = frame.f_back
    if frame is None:
        return "autograd"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"


def take_in() -> None:
    """Make torch see the device."""
    for name, function in _FUNCTIONS.items():
        setattr(torch.cuda, name, _its_own(function))
    for module in (torch.cuda, torch.cuda.streams):
        module.Stream, module.Event = Stream, Event
    torch.cuda.device = EnteredDevice
    torch.cuda.default_generators = (torch.default_generator,) * c.emulated_num_gpus()
    torch.cuda.nccl = types.SimpleNamespace(version=lambda: (2, 28, 3))
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, _its_own(_nothing))
    torch.version.cuda = "13.0"
    torch.Tensor.cuda = _cuda
    nccl.take_in()
    if importlib.util.find_spec("triton"):
        _count_launches()


def _count_launches() -> None:
    """Triton's interpreter works on copies of the host; a GPU would launch one kernel."""
    from triton.runtime.interpreter import GridExecutor

    plain = GridExecutor.__call__

    def launch(self: Any, *arguments: Any, **options: Any) -> None:
        note("kernel", self.fn.__name__)
        with muted():
            plain(self, *arguments, **options)

    GridExecutor.__call__ = launch


class Stream(torch.Stream):
    """Nothing runs beside anything else; whoever waits for a stream is counted."""

    cuda_stream = 0

    def __new__(cls, device: Device = None, priority: int = 0, **kept: Any) -> Stream:
        if kept:  # a copy
            return super().__new__(cls, **kept)
        return super().__new__(cls, device=_device(device), priority=priority)

    def synchronize(self) -> None:
        note("synchronize", "Stream.synchronize")

    def query(self) -> bool:
        return True

    def wait_stream(self, stream: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()


class Event:
    """Recorded and reached at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        note("synchronize", "Event.synchronize")

    def elapsed_time(self, other: Event) -> float:
        return 0.0


_of_thread = threading.local()


def current_stream(device: Device = None) -> Stream:
    return getattr(_of_thread, "stream", None) or Stream(device)


def set_stream(stream: Stream | None) -> None:
    _of_thread.stream = stream


@contextlib.contextmanager
def stream(entered: Stream | None) -> Iterator[None]:
    before = getattr(_of_thread, "stream", None)
    set_stream(entered)
    try:
        yield
    finally:
        set_stream(before)


def _index(device: Device) -> int:
    index = device if isinstance(device, int) else torch.device(device or "cuda").index
    return c.emulated_gpu() if index is None else index


def _device(device: Device) -> torch.device:
    return torch.device("cuda", _index(device))


def set_device(device: Device) -> None:
    if _index(device) >= 0:
        torch._C._accelerator_setDeviceIndex(_index(device))


class EnteredDevice(contextlib.AbstractContextManager[None]):
    """``torch.cuda.device``"""

    def __init__(self, device: Device) -> None:
        self.index = -1 if device is None else _index(device)

    def __enter__(self) -> None:
        self.before = c.emulated_gpu()
        set_device(self.index)

    def __exit__(self, *_: object) -> None:
        set_device(self.before)


def synchronize(device: Device = None) -> None:
    note("synchronize", "torch.cuda.synchronize")


def set_sync_debug_mode(mode: int | str) -> None:
    c.emulated_make_waits_errors(mode in ("error", 2))


def memory_stats(device: Device = None) -> dict[str, int]:
    return {
        "allocation.all.allocated": c.emulated_num_allocations(),
        "allocated_bytes.all.current": allocated_bytes(),
        "allocated_bytes.all.peak": c.emulated_peak_bytes(),
    }


def _cuda(
    tensor: torch.Tensor, device: Device = None, non_blocking: bool = False, **kept: Any
) -> torch.Tensor:
    return tensor.to(_device(device), non_blocking=non_blocking, **kept)


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch._dynamo does not take one function under two names."""
    return lambda *arguments, **options: function(*arguments, **options)


_nothing = _always(None)
_PROPERTIES = types.SimpleNamespace(
    name="Emulated H200",
    major=9,
    minor=0,
    total_memory=TOTAL_BYTES,
    multi_processor_count=132,
    warp_size=32,
)


def _under(names: str, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return dict.fromkeys(names.split(), function)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_under("init _lazy_init empty_cache ipc_collect", _nothing),
    "is_available": lambda: c.emulated_num_gpus() > 0,
    "is_initialized": _always(True),
    "device_count": lambda: c.emulated_num_gpus(),
    "current_device": lambda: c.emulated_gpu(),
    "set_device": set_device,
    "get_device_properties": _always(_PROPERTIES),
    "get_device_name": _always(_PROPERTIES.name),
    "get_device_capability": _always((_PROPERTIES.major, _PROPERTIES.minor)),
    "get_arch_list": _always(["sm_90"]),
    "is_bf16_supported": _always(True),
    "synchronize": synchronize,
    "set_sync_debug_mode": set_sync_debug_mode,
    **_under("current_stream default_stream", current_stream),
    "set_stream": set_stream,
    "stream": stream,
    "memory_stats": memory_stats,
    "mem_get_info": lambda device=None: (TOTAL_BYTES - allocated_bytes(), TOTAL_BYTES),
    **_under(
        "memory_allocated memory_reserved memory_cached",
        lambda device=None: allocated_bytes(),
    ),
    **_under(
        "max_memory_allocated max_memory_reserved max_memory_cached",
        lambda device=None: c.emulated_peak_bytes(),
    ),
    **_under(
        "reset_peak_memory_stats reset_max_memory_allocated reset_max_memory_cached",
        lambda device=None: c.emulated_reset_peak(),
    ),
    # Its numbers are drawn from the host's generator.
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    "initial_seed": torch.initial_seed,
    **_under("manual_seed manual_seed_all seed seed_all", _nothing),
}
