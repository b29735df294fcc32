from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture
def device() -> ModuleType:
    """``emulated_cuda.device``, which only a process can import that has taken the device in."""
    from emulated_cuda import device

    return device
