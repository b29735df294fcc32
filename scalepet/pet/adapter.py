"""Adapters: small bottlenecks in or beside the sub-layers, up(gelu(down(x))).

Sources: after both sub-layers of a block, "Parameter-Efficient Transfer Learning for NLP" (Houlsby,
arXiv 1902.00751); after the feed-forward layer alone, "AdapterFusion" (Pfeiffer, arXiv 2005.00247);
beside them, "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv 2110.04366);
beside the attention alone, LAE (arXiv 2303.10070).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalepet.backbones import Part, Site, family_of, match_sites, override
from scalepet.errors import ConfigError
from scalepet.pet.calibration import add_scale, scaled
from scalepet.pet.method import Count, Keeps, Method
from scalepet.pet.start import add_parameter, kaiming_uniform, normal

Placement = Literal["houlsby", "pfeiffer", "parallel", "parallel_attention"]
_PARTS: dict[Placement, tuple[Part, ...]] = {
    "houlsby": ("o", "ffn_out"),
    "pfeiffer": ("ffn_out",),
    "parallel": ("ffn_out",),
    "parallel_attention": ("o",),
}
_BESIDE: tuple[Placement, ...] = ("parallel", "parallel_attention")
_STD = 0.01
"""Of the start of the way down: near zero, as Houlsby has it."""


class Bottleneck(nn.Module):
    """x -> up(gelu(down(x))): ``down`` (bottleneck, width), ``up`` (width, bottleneck) and their
    biases; the way up starts at zero. Calibrated, it is up_scale * up(gelu(down(x))).
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    up_scale: Tensor

    def __init__(self, down: Tensor, *, like: Tensor, calibrated: bool = False) -> None:
        super().__init__()
        size, width = down.shape
        add_parameter(self, "down", down, like=like)
        add_parameter(self, "down_bias", torch.zeros(size), like=like)
        add_parameter(self, "up", torch.zeros(width, size), like=like)
        add_parameter(self, "up_bias", torch.zeros(width), like=like)
        self.calibrated = calibrated
        if calibrated:
            add_scale(self, "up", like=like)

    def forward(self, x: Tensor) -> Tensor:
        low = F.gelu(F.linear(x, self.down, self.down_bias))
        # Weights are scaled, not outputs, of which autograd would keep one for every token.
        bias = self.up_bias * self.up_scale if self.calibrated else self.up_bias
        return F.linear(low, scaled(self, "up"), bias)


@dataclass(frozen=True)
class Adapters(Method):
    """A ``Bottleneck`` by the name of ``adapter`` on the last projection of every sub-layer, or
    (parallel) on the module that owns it.
    """

    sites: tuple[Site, ...]
    bottleneck: int
    options: Mapping[str, Any]

    cannot_merge = "a plain model has no place for an adapter"

    @property
    def num_parameters(self) -> int:
        scales = len(self.sites) if self.options["calibrated"] else 0
        return scales + sum(count_bottleneck(self.bottleneck, s.shape[0]) for s in self.sites)

    def attach(self, model: nn.Module) -> None:
        beside, calibrated = family_of(model.config).beside, self.options["calibrated"]
        for site in self.sites:
            projection: Any = model.get_submodule(site.module)
            start = self._start(f"{site.module}.adapter", (self.bottleneck, site.shape[0]))
            adapter = Bottleneck(start, like=projection.weight, calibrated=calibrated)
            if self.options["placement"] in _BESIDE:
                sublayer: Any = model.get_submodule(site.module.rpartition(".")[0])
                sublayer.adapter = adapter
                beside(sublayer, adapter)
            else:
                projection.adapter = adapter
                override(projection, _then(adapter))

    def _start(self, name: str, shape: tuple[int, int]) -> Tensor:
        if self.options["calibrated"]:
            return kaiming_uniform(name, shape, seed=self.options["seed"])
        return normal(name, shape, std=_STD, seed=self.options["seed"])

    def keeps_at(self, site: Site) -> Keeps:
        # The bottleneck's own input, and what is inside before and behind its activation.
        return Keeps(input=False, numbers=site.shape[0] + 2 * self.bottleneck)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}


def _then(adapter: nn.Module) -> Any:
    def forward(inner: Any, x: Tensor) -> Tensor:
        y: Tensor = inner(x)
        return y + adapter(y)

    return forward


def count_bottleneck(size: int, width: int) -> int:
    """How many numbers a ``Bottleneck`` has."""
    return 2 * size * width + size + width


def plan_adapter(
    sites: Sequence[Site],
    *,
    placement: Placement = "houlsby",
    bottleneck: Count = 24,
    cross_attention: bool = False,
    calibrated: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> Adapters:
    """Choose the sub-layers.

    Args:
        sites: the tensors of the backbone.
        placement: after the attention and the feed-forward layer of every block (houlsby) or the
            latter alone (pfeiffer); beside the feed-forward layers (parallel) or the attentions
            (parallel_attention).
        bottleneck: width of the inner layer.
        cross_attention: cross-attentions count as attentions, too.
        calibrated: a learnt scale for what each adapter adds, and the start of LAE.
        include: patterns of the names of the sub-layers' last projections: one must match.
        exclude: patterns of the same names: none may match.
        seed: of the start.

    Raises:
        ConfigError: patterns that match nothing, a bottleneck wider than the layer.
    """
    options = {
        "placement": placement,
        "bottleneck": bottleneck,
        "cross_attention": cross_attention,
        "calibrated": calibrated,
        "include": list(include),
        "exclude": list(exclude),
        "seed": seed,
    }
    if cross_attention and not any(site.is_cross for site in sites):
        raise ConfigError("cross_attention: true, but the backbone has none; allowed: false")
    places = [site for site in sites if cross_attention or not site.is_cross]
    chosen = match_sites(places, parts=_PARTS[placement], include=include, exclude=exclude)
    width = min(site.shape[0] for site in chosen)
    if bottleneck > width:
        raise ConfigError(f"bottleneck: {bottleneck}; allowed: at most {width}, the layer's width")
    return Adapters(chosen, bottleneck, options)
