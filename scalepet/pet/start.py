"""How trained tensors start: numbers that depend on seed and name alone, and where they are put."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn


def normal(name: str, shape: tuple[int, ...], *, std: float, seed: int) -> Tensor:
    """fp32 on the CPU, N(0, std); the same for one name and seed on any rank and machine."""
    return std * torch.randn(shape, generator=_generator(name, seed))


def uniform(name: str, shape: tuple[int, ...], *, low: float, high: float, seed: int) -> Tensor:
    """As ``normal``, uniform between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(shape, generator=_generator(name, seed))


def kaiming_uniform(name: str, shape: tuple[int, ...], *, seed: int) -> Tensor:
    """As ``uniform``, within 1 / sqrt(columns): the start of ``torch.nn.Linear`` and LoRA's A."""
    bound = 1 / math.sqrt(shape[-1])
    return uniform(name, shape, low=-bound, high=bound, seed=seed)


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def add_parameter(module: nn.Module, name: str, start: Tensor, *, like: Tensor) -> nn.Parameter:
    """Register a trained parameter with the type and device of ``like``."""
    parameter = nn.Parameter(start.to(like.device, like.dtype))
    module.register_parameter(name, parameter)
    return parameter
