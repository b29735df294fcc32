"""What a parameter-efficient tuning method is to the rest of scalepet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class Method(Protocol):
    """A plan that is complete before any weight is loaded, and can then be put on a model once.

    Attributes:
        num_parameters: how many numbers it trains, head not counted.
    """

    @property
    def num_parameters(self) -> int: ...

    def attach(self, model: nn.Module) -> None:
        """Add the trainable parameters to the frozen ``model`` and nothing else.

        Called after the weights are there (whole or in ZeRO-3 shards) and before DeepSpeed takes
        the model. The parameters with ``requires_grad`` afterwards are what is trained, saved and
        loaded, by their names.
        """
        ...

    def record(self) -> dict[str, Any]:
        """JSON-able; with the same sites it makes the same method again."""
        ...


MethodBuilder = Callable[..., Method]
