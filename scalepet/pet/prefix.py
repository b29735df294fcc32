"""Prefix tuning: learnt keys and values that the attention looks at besides those of the input.

Source: "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (arXiv 2101.00190), without
the re-parametrisation. The slots have no position: the position bias of a T5 is zero for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scalepet.backbones import Site, attend_prefix, match_sites
from scalepet.pet.method import Count, Method, Positive
from scalepet.pet.start import add_parameter, normal


class Slots(nn.Module):
    """``keys`` and ``values`` (slots, heads x head width), looked at by every example."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor, *, head_width: int, like: Tensor) -> None:
        super().__init__()
        self.head_width = head_width
        add_parameter(self, "keys", keys, like=like)
        add_parameter(self, "values", values, like=like)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each (batch, heads, slots, head width)."""
        keys, values = (
            rows.unflatten(1, (-1, self.head_width)).transpose(0, 1).expand(batch_size, -1, -1, -1)
            for rows in (self.keys, self.values)
        )
        return keys, values


@dataclass(frozen=True)
class PrefixTuning(Method):
    """``prefix.keys`` and ``prefix.values`` on the attention module of every site.

    Attributes:
        sites: the key projections of the attentions.
        length: slots of each.
    """

    sites: tuple[Site, ...]
    length: int
    options: Mapping[str, Any]

    starts_as_backbone = False
    cannot_merge = "a plain model has no place for a prefix"

    @property
    def num_parameters(self) -> int:
        return sum(2 * self.length * site.shape[0] for site in self.sites)

    def attach(self, model: nn.Module) -> None:
        for site in self.sites:
            path = site.module.rpartition(".")[0]
            shape = (self.length, site.shape[0])
            keys, values = (
                normal(f"{path}.{what}", shape, std=self.options["std"], seed=self.options["seed"])
                for what in ("keys", "values")
            )
            assert site.head_width is not None
            like = model.get_parameter(site.name)
            attention: Any = model.get_submodule(path)
            attention.prefix = Slots(keys, values, head_width=site.head_width, like=like)
            attend_prefix(model, attention, attention.prefix)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}


def plan_prefix(
    sites: Sequence[Site],
    *,
    length: Count = 20,
    std: Positive = 0.1,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> PrefixTuning:
    """Choose the attentions.

    Args:
        sites: the tensors of the backbone.
        length: slots of every attention.
        std: standard deviation of the start.
        include: patterns of the names of the key projections of attentions (*EncDecAttention.k.*):
            one must match.
        exclude: patterns of the same names: none may match.
        seed: of the start.

    Raises:
        ConfigError: patterns that match nothing.
    """
    options = {
        "length": length,
        "std": std,
        "include": list(include),
        "exclude": list(exclude),
        "seed": seed,
    }
    chosen = match_sites(sites, parts=("k",), include=include, exclude=exclude)
    return PrefixTuning(chosen, length, options)
