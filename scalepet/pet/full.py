"""Full fine-tuning: the weights of the backbone themselves train. The other end of the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scalepet.backbones import SITE_KINDS, Site, SiteKind, match_sites
from scalepet.pet.method import Method


@dataclass(frozen=True)
class Full(Method):
    """Trains whole tensors where they are. What is saved is as large as they are."""

    sites: tuple[Site, ...]
    options: Mapping[str, Any]

    keeps_backbone = False

    @property
    def num_parameters(self) -> int:
        return sum(site.numel for site in self.sites)

    def attach(self, model: nn.Module) -> None:
        for site in self.sites:
            model.get_parameter(site.name).requires_grad_(True)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}

    def may_rest(self, name: str) -> bool:
        return any(site.name == name and site.kind == "embedding" for site in self.sites)

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        return trained[name].to(tensor.dtype) if name in trained else tensor


def plan_full(
    sites: Sequence[Site],
    *,
    kinds: Sequence[SiteKind] = SITE_KINDS,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Full:
    """Choose the tensors.

    Args:
        sites: the tensors of the backbone.
        kinds: which kinds of tensors.
        include: patterns of tensor names: one must match.
        exclude: patterns of tensor names: none may match.

    Raises:
        ConfigError: patterns or kinds that match nothing.
    """
    options = {"kinds": list(kinds), "include": list(include), "exclude": list(exclude)}
    return Full(match_sites(sites, kinds=kinds, include=include, exclude=exclude), options)
