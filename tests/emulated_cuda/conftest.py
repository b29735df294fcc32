"""The device, and the tiny runs of tests/recipes for it."""

from __future__ import annotations

from types import ModuleType

import pytest
from recipes.conftest import (
    backbones_with_tokenizers,
    colour_rows,
    stream_rows,
    write_run,
    write_stream,
)

__all__ = ["backbones_with_tokenizers", "colour_rows", "stream_rows", "write_run", "write_stream"]


@pytest.fixture
def device() -> ModuleType:
    """``emulated_cuda.device``, which only a process can import that has taken the device in."""
    from emulated_cuda import device

    return device
