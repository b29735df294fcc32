"""BitFit: only biases train; where a layer has none (T5), it gets one that starts at zero.

Source: "BitFit: Simple Parameter-efficient Fine-tuning" (arXiv 2106.10199). What trains is the
change of each bias, so that the backbone stays as it is and can be had back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalepet.backbones import Site, SiteKind, match_sites, override
from scalepet.errors import ConfigError
from scalepet.pet.calibration import add_scale, scaled, scaled_in
from scalepet.pet.method import Keeps, Method
from scalepet.pet.start import add_parameter


@dataclass(frozen=True)
class BitFit(Method):
    """``bias_delta`` (outputs,) on the module of every site.

    Attributes:
        sites: the weights of the layers.
        lacking: the paths of the layers that have no bias of their own.
    """

    sites: tuple[Site, ...]
    lacking: frozenset[str]
    options: Mapping[str, Any]

    @property
    def num_parameters(self) -> int:
        scales = len(self.sites) if self.options["calibrated"] else 0
        return scales + sum(site.shape[0] for site in self.sites)

    @property
    def cannot_merge(self) -> str | None:  # type: ignore[override]
        if not self.lacking:
            return None
        return f"a plain model has no place for the biases of {len(self.lacking)} modules"

    def attach(self, model: nn.Module) -> None:
        for site in self.sites:
            module, weight = model.get_submodule(site.module), model.get_parameter(site.name)
            add_parameter(module, "bias_delta", torch.zeros(site.shape[0]), like=weight)
            if self.options["calibrated"]:
                add_scale(module, "bias_delta", like=weight)
            # The outputs of a convolution are followed by its places.
            num_places = max(0, len(site.shape) - 2)
            override(module, _then_add(module, shape=(-1, *(1,) * num_places)))

    def keeps_at(self, site: Site) -> Keeps:
        return Keeps(input=False)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}

    def may_rest(self, name: str) -> bool:
        # The bias of a key moves all scores of a query alike, which softmax does not see.
        of_keys = (f"{site.module}.bias_delta" for site in self.sites if site.part == "k")
        return super().may_rest(name) or name in of_keys

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        if f"{name}_delta" not in trained:  # of a bias; there is no weight_delta
            return tensor
        delta = scaled_in(trained, f"{name}_delta").float()
        return (tensor.float() + delta).to(tensor.dtype)


def _then_add(module: nn.Module, *, shape: tuple[int, ...]) -> Any:
    def forward(inner: Any, x: Tensor) -> Tensor:
        y: Tensor = inner(x)
        return y + scaled(module, "bias_delta").view(shape)

    return forward


def plan_bitfit(
    sites: Sequence[Site],
    *,
    kinds: Sequence[SiteKind] = ("matrix", "norm"),
    calibrated: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> BitFit:
    """Choose the layers whose biases train.

    Args:
        sites: the tensors of the backbone.
        kinds: layers by the kind of their weight: matrix (linear and convolution layers), norm.
        calibrated: a learnt scale for the change of each bias.
        include: patterns of the names of their weights: one must match.
        exclude: patterns of the names of their weights: none may match.

    Raises:
        ConfigError: patterns or kinds that match nothing, or a kind that has no biases.
    """
    options = {
        "kinds": list(kinds),
        "calibrated": calibrated,
        "include": list(include),
        "exclude": list(exclude),
    }
    wrong = sorted({*kinds} - {"matrix", "norm"})
    if wrong:
        raise ConfigError(f"kinds: {', '.join(wrong)} have no biases; allowed: matrix, norm")
    chosen = match_sites(sites, kinds=kinds, include=include, exclude=exclude)
    with_bias = {site.module for site in sites if site.kind == "bias"}
    lacking = frozenset(site.module for site in chosen) - with_bias
    return BitFit(chosen, lacking, options)
