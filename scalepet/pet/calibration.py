"""Calibrated adaptation speed: what a method adds is multiplied by a learnt scalar, at first one.

Scale and scaled tensor both move, so methods of few and of many numbers adapt at a similar pace and
share one learning rate. The scale of the tensor NAME is the parameter NAME_scale beside it.

Source: LAE, "A Unified Continual Learning Framework with General Parameter-Efficient Tuning" (arXiv
2303.10070), for adapter, LoRA and prefix; the other methods have it by analogy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scalepet.errors import ConfigError
from scalepet.pet.start import add_parameter

_SCALE = "_scale"


def add_scale(module: nn.Module, name: str, *, like: Tensor) -> nn.Parameter:
    """Give the tensor ``name`` of the module a scale, (1,): files and shards hold no 0-dim ones."""
    return add_parameter(module, f"{name}{_SCALE}", torch.ones(1), like=like)


def is_scale(name: str) -> bool:
    """Whether a trained tensor of this name is a scale."""
    return name.endswith(_SCALE)


def scaled(module: nn.Module, name: str) -> Tensor:
    """The tensor ``name`` of the module times its scale, or as it is where it has none.

    Both are read anew at every call: others may lie over them, see ``backbones.shadowed``.
    """
    tensor: Tensor = getattr(module, name)
    scale: Tensor | None = getattr(module, f"{name}{_SCALE}", None)
    return tensor if scale is None else tensor * scale


def scaled_in(trained: Mapping[str, Tensor], name: str) -> Tensor:
    """The same of what was trained, by name; a product is fp32."""
    tensor, scale = trained[name], trained.get(f"{name}{_SCALE}")
    return tensor if scale is None else tensor.float() * scale.float()


def check_replaced(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Calibrated, a method does not read these options.

    Raises:
        ConfigError: one of them was given, which shows where it is not the default.
    """
    faults = [
        f"{name}: {json.dumps(options[name])} has no meaning with calibrated: true; allowed: leave"
        " it out"
        for name, default in defaults.items()
        if options["calibrated"] and options[name] != default
    ]
    if faults:
        raise ConfigError(faults)
