"""APET: any number of weights, at any positions, of any tensors of the backbone.

Source: "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language
    Models"
(arXiv 2306.02320), operation ADD at the level of single entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from scalepet.backbones import Site, SiteKind, match_sites
from scalepet.masks import Share, SparseMask, describe, select_entries
from scalepet.pet.masked_forward import mask_module

Group = Literal["layer", "role"]


@dataclass(frozen=True)
class Apet:
    """Trains the entries of ``mask`` as deltas on frozen weights: W + scatter(values)."""

    mask: SparseMask
    options: Mapping[str, Any]
    """As given to ``plan_apet``."""

    @property
    def num_parameters(self) -> int:
        return self.mask.count

    def attach(self, model: nn.Module) -> None:
        """Give every masked tensor its values, (entries,) in its dtype; tied ones share theirs."""
        parameters = dict(model.named_parameters())
        users = _users_of(model)
        for name, positions in self.mask.positions.items():
            parameter = parameters[name]
            zeros = torch.zeros(len(positions), dtype=parameter.dtype, device=parameter.device)
            values = nn.Parameter(zeros)
            indices = torch.from_numpy(positions).to(parameter.device)
            for module, own_name in users[id(parameter)]:
                mask_module(module, own_name, values, indices)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options), "mask": describe(self.mask)}


def _users_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules that own a parameter, by its id: more than one where weights are tied."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append((module, own_name))
    return users


def plan_apet(
    sites: Sequence[Site],
    *,
    budget: int | str,
    kinds: Sequence[SiteKind] = ("matrix",),
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    share: Share = "uniform",
    group_by: Group = "layer",
    seed: int = 0,
) -> Apet:
    """Choose the entries to train.

    Args:
        sites: the tensors of the backbone.
        budget: how many entries: a count (``4096``) or a part of the eligible ones (``"0.1%"``).
        kinds: which kinds of tensors are eligible.
        include: patterns of tensor names (*SelfAttention.[qv].weight): one must match.
        exclude: patterns of tensor names: none may match.
        share: ``uniform`` over all eligible entries, or the same number (``even``) or a number in
            proportion to its size (``proportional``) for every group.
        group_by: what a group is: a ``layer`` (block), or a ``role`` (the same tensor of all
            layers).
        seed: of the positions.

    Raises:
        ConfigError: a pattern or kind that matches nothing, a budget that is not met exactly by
            what is eligible.
    """
    options = {
        "budget": budget,
        "kinds": list(kinds),
        "include": list(include),
        "exclude": list(exclude),
        "share": share,
        "group_by": group_by,
        "seed": seed,
    }
    eligible = match_sites(sites, kinds=kinds, include=include, exclude=exclude)
    mask = select_entries(
        {site.name: site.shape for site in eligible},
        budget=budget,
        seed=seed,
        share=share,
        groups={site.name: getattr(site, group_by) for site in eligible},
    )
    return Apet(mask, options)
