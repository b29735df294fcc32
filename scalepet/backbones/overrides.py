"""Modules that compute something else than their class says, and how to make them plain again.

A module keeps its class, its name and its parameters; only ``forward`` is set on the instance. So
DeepSpeed's hooks, the names in a state dict and every ``isinstance`` stay those of the bare model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

Forward = Callable[..., Any]
"""``(inner, *args, **kwargs)``: ``inner`` is what the module computed before."""


def override(module: nn.Module, forward: Forward) -> None:
    """Let ``module`` compute ``forward(inner, ...)``. Overrides pile up: the last one is called
    first.
    """
    inner = module.forward

    @functools.wraps(inner)  # transformers looks at the signatures of some modules
    def overridden(*args: Any, **kwargs: Any) -> Any:
        return forward(inner, *args, **kwargs)

    module.forward = overridden


@contextlib.contextmanager
def shadowed(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> Iterator[None]:
    """The module computes with these in place of its own parameters of the same names.

    An entry of the instance's dict comes before the registered parameter. Shadows may lie on each
    other.
    """
    own = vars(module)
    before = {name: own[name] for name in tensors if name in own}
    own.update(tensors)
    try:
        yield
    finally:
        for name in tensors:
            del own[name]
        own.update(before)


def overridden_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of ``model`` that do not compute what their class says."""
    return [module for module in model.modules() if "forward" in vars(module)]


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[None]:
    """The model without its overrides, as if nothing had been attached to it."""
    forwards = [(module, vars(module).pop("forward")) for module in overridden_modules(model)]
    try:
        yield
    finally:
        for module, forward in forwards:
            module.forward = forward


@contextlib.contextmanager
def recording_additions(model: nn.Module) -> Iterator[list[tuple[nn.Module, str]]]:
    """A list that holds, at the end, every module, parameter and buffer that came to the model."""
    before = {(id(module), name) for module, name in _members(model)}
    added: list[tuple[nn.Module, str]] = []
    yield added
    added += [member for member in _members(model) if (id(member[0]), member[1]) not in before]


def detach(model: nn.Module, additions: list[tuple[nn.Module, str]]) -> None:
    """Take off what ``recording_additions`` saw come, and every override with it."""
    for module in overridden_modules(model):
        del module.forward
    for owner, name in additions:
        delattr(owner, name)


def _members(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Owner and name of all that is registered; what lies in an added module comes with it."""
    for module in model.modules():
        for name, _ in module.named_children():
            yield module, name
        for name, _ in module.named_parameters(recurse=False):
            yield module, name
        for name, _ in module.named_buffers(recurse=False):
            yield module, name
