"""The built device: what is in device.cpp, as Python functions.

It must be loaded before torch is imported, which then asks once what there is of CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)

assert "torch" not in sys.modules
c = ctypes.CDLL(str(Path(os.environ["SCALEPET_EMULATED_CUDA"], "device.so")), ctypes.RTLD_GLOBAL)
c.emulated_kind_name.restype = ctypes.c_char_p
c.emulated_host_waits.restype = ctypes.c_bool
for _name in ("count", "allocated_bytes", "peak_bytes", "num_allocations", "pinned_bytes"):
    getattr(c, f"emulated_{_name}").restype = ctypes.c_long

KINDS = [c.emulated_kind_name(kind).decode() for kind in range(c.emulated_num_kinds())]
WAITS = [name for kind, name in enumerate(KINDS) if c.emulated_host_waits(kind)]


def note(kind: str, name: str) -> None:
    """Count what happens in Python alone."""
    c.emulated_note(KINDS.index(kind), name.encode())


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """What this thread does inside is not counted."""
    c.emulated_mute(1)
    try:
        yield
    finally:
        c.emulated_mute(-1)
