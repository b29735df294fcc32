"""Prefix tuning: learnt keys and values that the attention looks at besides those of the input.

Source: "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (arXiv 2101.00190), without
the re-parametrisation. The slots have no position: the position bias of a T5 is zero for them.

Calibrated as in LAE (arXiv 2303.10070): of the attention's weights, a share m goes to the prefix
and varies with the query; compensated, the prefix adds all that it holds: (1 - m) Attn(tokens) +
Attn(prefix).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scalepet.backbones import Site, attend_prefix, match_sites
from scalepet.pet.calibration import add_scale, check_replaced, scaled
from scalepet.pet.method import Count, Keeps, Method, Positive
from scalepet.pet.start import add_parameter, normal, uniform

_STD = 0.1
_HIGH = 0.01
"""Calibrated slots start between zero and this, as LAE has it."""


class Slots(nn.Module):
    """``keys`` and ``values`` (slots, heads x head width), looked at by every example; calibrated,
    each times a scale of its own.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self, keys: Tensor, values: Tensor, *, head_width: int, like: Tensor, calibrated: bool
    ) -> None:
        super().__init__()
        self.head_width = head_width
        add_parameter(self, "keys", keys, like=like)
        add_parameter(self, "values", values, like=like)
        if calibrated:
            add_scale(self, "keys", like=like)
            add_scale(self, "values", like=like)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each (batch, heads, slots, head width)."""
        keys, values = (
            rows.unflatten(1, (-1, self.head_width)).transpose(0, 1).expand(batch_size, -1, -1, -1)
            for rows in (scaled(self, "keys"), scaled(self, "values"))
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
        scales = 2 * len(self.sites) if self.options["calibrated"] else 0
        return scales + sum(2 * self.length * site.shape[0] for site in self.sites)

    @property
    def num_slots(self) -> int:
        return self.length

    def attach(self, model: nn.Module) -> None:
        calibrated = self.options["calibrated"]
        for site in self.sites:
            path = site.module.rpartition(".")[0]
            assert site.head_width is not None
            attention: Any = model.get_submodule(path)
            attention.prefix = Slots(
                self._start(f"{path}.keys", site.shape[0]),
                self._start(f"{path}.values", site.shape[0]),
                head_width=site.head_width,
                like=model.get_parameter(site.name),
                calibrated=calibrated,
            )
            attend_prefix(model, attention, attention.prefix, compensated=calibrated)

    def _start(self, name: str, width: int) -> Tensor:
        shape, seed = (self.length, width), self.options["seed"]
        if self.options["calibrated"]:
            return uniform(name, shape, low=0.0, high=_HIGH, seed=seed)
        return normal(name, shape, std=self.options["std"], seed=seed)

    def keeps_at(self, site: Site) -> Keeps:
        return Keeps(input=False)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}


def plan_prefix(
    sites: Sequence[Site],
    *,
    length: Count = 20,
    std: Positive = _STD,
    calibrated: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> PrefixTuning:
    """Choose the attentions.

    Args:
        sites: the tensors of the backbone.
        length: slots of every attention.
        std: standard deviation of the start.
        calibrated: learnt scales for keys and values, and a prefix that adds all it holds however
            little of the attention goes to it; std is not read (LAE).
        include: patterns of the names of the key projections of attentions (*EncDecAttention.k.*):
            one must match.
        exclude: patterns of the same names: none may match.
        seed: of the start.

    Raises:
        ConfigError: patterns that match nothing, std with calibrated.
    """
    options = {
        "length": length,
        "std": std,
        "calibrated": calibrated,
        "include": list(include),
        "exclude": list(exclude),
        "seed": seed,
    }
    check_replaced(options, {"std": _STD})
    chosen = match_sites(sites, parts=("k",), include=include, exclude=exclude)
    return PrefixTuning(chosen, length, options)
