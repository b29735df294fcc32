"""(IA)3: learnt factors of keys, values and the inner states of feed-forward layers.

Source: "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
(arXiv 2205.05638).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalepet.backbones import Part, Site, match_sites, override
from scalepet.pet.calibration import add_scale
from scalepet.pet.method import Keeps, Method
from scalepet.pet.start import add_parameter


@dataclass(frozen=True)
class Ia3(Method):
    """``ia3`` (width,) on every site: factors of the outputs of a projection of the attention, of
    the inputs of a feed-forward layer's way out; they start at one. Calibrated, a factor is
    1 + ia3_scale * (ia3 - 1).
    """

    sites: tuple[Site, ...]
    options: Mapping[str, Any]

    @property
    def num_parameters(self) -> int:
        scales = len(self.sites) if self.options["calibrated"] else 0
        return scales + sum(site.shape[_axis(site)] for site in self.sites)

    def attach(self, model: nn.Module) -> None:
        for site in self.sites:
            linear: Any = model.get_submodule(site.module)
            add_parameter(linear, "ia3", torch.ones(site.shape[_axis(site)]), like=linear.weight)
            if self.options["calibrated"]:
                add_scale(linear, "ia3", like=linear.weight)
            override(linear, _scale_input(linear) if _axis(site) else _scale_output(linear))

    def keeps_at(self, site: Site) -> Keeps:
        # What a factor is multiplied with: an input, or the outputs as they were before.
        return Keeps() if _axis(site) else Keeps(input=False, numbers=site.shape[0])

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        module, _, own_name = name.rpartition(".")
        site = next((site for site in self.sites if site.module == module), None)
        if site is None or (own_name == "bias" and _axis(site)):
            return tensor
        scale = trained.get(f"{module}.ia3_scale")
        factors = factors_of(trained[f"{module}.ia3"].float(), scale)
        by_row = own_name == "weight" and not _axis(site)
        return (tensor.float() * (factors[:, None] if by_row else factors)).to(tensor.dtype)


def _axis(site: Site) -> int:
    """Which side of the matrix is scaled: its rows are outputs, its columns are inputs."""
    return 1 if site.part == "ffn_out" else 0


def _scale_input(linear: Any) -> Any:
    return lambda inner, x: inner(x * _factors(linear))


def _scale_output(linear: Any) -> Any:
    return lambda inner, x: inner(x) * _factors(linear)


def _factors(linear: Any) -> Tensor:
    return factors_of(linear.ia3, getattr(linear, "ia3_scale", None))


def factors_of(learnt: Tensor, scale: Tensor | None) -> Tensor:
    """What is multiplied with; without a scale, what was learnt."""
    return learnt if scale is None else 1 + scale * (learnt - 1)


def plan_ia3(
    sites: Sequence[Site],
    *,
    parts: Sequence[Part] = ("k", "v", "ffn_out"),
    calibrated: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Ia3:
    """Choose the linear layers.

    Args:
        sites: the tensors of the backbone.
        parts: which linear layers; ffn_out has its inputs scaled, the others their outputs.
        calibrated: a learnt scale for how far the factors of each layer are from one.
        include: patterns of tensor names: one must match.
        exclude: patterns of tensor names: none may match.

    Raises:
        ConfigError: patterns or parts that match nothing.
    """
    options = {
        "parts": list(parts),
        "calibrated": calibrated,
        "include": list(include),
        "exclude": list(exclude),
    }
    chosen = match_sites(sites, kinds=("matrix",), parts=parts, include=include, exclude=exclude)
    return Ia3(chosen, options)
