"""A method is one file, one line in a dict and one row of a table: here is the file, and scalepet
with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalepet.backbones import Part, Site, match_sites, override
from scalepet.cli import main
from scalepet.pet import METHODS, Method
from scalepet.pet.start import add_parameter


@dataclass(frozen=True)
class Gains(Method):
    """``gain`` (1,) on the linear layer of every site: the factor of its output; starts at one."""

    sites: tuple[Site, ...]
    options: Mapping[str, Any]

    @property
    def num_parameters(self) -> int:
        return len(self.sites)

    def attach(self, model: Any) -> None:
        for site in self.sites:
            linear = model.get_submodule(site.module)
            add_parameter(linear, "gain", torch.ones(1), like=linear.weight)
            override(linear, lambda inner, x, linear=linear: inner(x) * linear.gain)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        gain = trained.get(f"{name.rpartition('.')[0]}.gain")
        return tensor if gain is None else tensor * gain.to(tensor.dtype)


def plan_gains(sites: Sequence[Site], *, parts: Sequence[Part] = ("ffn_out",)) -> Gains:
    """Choose the linear layers.

    Args:
        sites: the tensors of the backbone.
        parts: whose outputs are scaled.
    """
    return Gains(match_sites(sites, parts=parts), {"parts": list(parts)})


METHODS["gains"] = plan_gains

if __name__ == "__main__":
    main()
