"""Several methods on one backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scalepet.errors import ConfigError
from scalepet.pet.method import Method


@dataclass(frozen=True)
class Together(Method):
    """All of ``methods``; what they train adds up."""

    methods: tuple[Method, ...]

    @property
    def num_parameters(self) -> int:
        return sum(method.num_parameters for method in self.methods)

    @property
    def starts_as_backbone(self) -> bool:  # type: ignore[override]
        return all(method.starts_as_backbone for method in self.methods)

    @property
    def keeps_backbone(self) -> bool:  # type: ignore[override]
        return all(method.keeps_backbone for method in self.methods)

    @property
    def cannot_merge(self) -> str | None:  # type: ignore[override]
        reasons = [method.cannot_merge for method in self.methods if method.cannot_merge]
        return "; ".join(reasons) or None

    @property
    def _in_order(self) -> list[Method]:
        return sorted(self.methods, key=lambda method: not method.goes_first)

    def attach(self, model: nn.Module) -> None:
        for method in self._in_order:
            method.attach(model)

    def record(self) -> dict[str, Any]:
        return {"methods": [method.record() for method in self.methods]}

    def may_rest(self, name: str) -> bool:
        return any(method.may_rest(name) for method in self.methods)

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        for method in self._in_order:
            tensor = method.merged(name, tensor, trained)
        return tensor


def together(methods: Iterable[Method]) -> Method:
    """One method as it is, several as one.

    Raises:
        ConfigError: one masks entries of tensors that another trains whole.
    """
    parts = [part for method in methods for part in parts_of(method)]
    if any(part.goes_first for part in parts) and not all(part.keeps_backbone for part in parts):
        raise ConfigError("apet with full or released: both would train the same tensors")
    return parts[0] if len(parts) == 1 else Together(tuple(parts))


def parts_of(method: Method) -> tuple[Method, ...]:
    """The methods of a ``Together``, or the one that it is."""
    return method.methods if isinstance(method, Together) else (method,)
