"""The baseline below all methods: nothing of the backbone is tuned, only the head learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from scalepet.backbones import Site
from scalepet.pet.method import Method


class HeadOnly(Method):
    """Tunes nothing; what trains is the head that the task brings."""

    num_parameters = 0

    def attach(self, model: nn.Module) -> None:
        """Nothing to add."""

    def record(self) -> dict[str, Any]:
        return {}


def plan_head_only(sites: Sequence[Site]) -> HeadOnly:
    """The method; ``sites`` is taken as by every builder and not needed."""
    return HeadOnly()
