"""APET's PLUG: layers of any number of weights, after every sub-layer.

Each place gets a bottleneck b with frozen random weights, of which the budget trains any entries:
y + b(y) - b0(y), where b0 is the bottleneck as it started. So the model starts as the backbone, and
yet every entry gets a gradient from the first step on; with a way up that starts at zero, an entry
of the way down would stay dead unless its partner on the way up happened to be chosen. The frozen
weights come from the seed and are not saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalepet.backbones import Site, match_sites, override
from scalepet.errors import ConfigError
from scalepet.masks import SparseMask, select_entries
from scalepet.pet.adapter import count_bottleneck
from scalepet.pet.method import Keeps, Method
from scalepet.pet.start import add_parameter, kaiming_uniform


class SparseBottleneck(nn.Module):
    """x -> b(x) - b0(x), where b differs from b0 by ``NAME_values`` at ``NAME_positions``.

    Args:
        start: the frozen weights of b0: down, down_bias, up, up_bias.
        positions: by the same names, of those that have entries.
    """

    def __init__(
        self, start: Mapping[str, Tensor], positions: Mapping[str, Tensor], *, like: Tensor
    ) -> None:
        super().__init__()
        for name, tensor in start.items():
            self.register_buffer(name, tensor.to(like.device, like.dtype), persistent=False)
        for name, where in positions.items():
            add_parameter(self, f"{name}_values", torch.zeros(len(where)), like=like)
            self.register_buffer(f"{name}_positions", where.to(like.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        frozen = [getattr(self, name) for name in ("down", "down_bias", "up", "up_bias")]
        tuned = [self._tuned(name) for name in ("down", "down_bias", "up", "up_bias")]
        return _bottleneck(x, *tuned) - _bottleneck(x, *frozen)

    def _tuned(self, name: str) -> Tensor:
        frozen: Tensor = getattr(self, name)
        values = getattr(self, f"{name}_values", None)
        if values is None:
            return frozen
        flat = frozen.flatten().index_add(0, getattr(self, f"{name}_positions"), values)
        return flat.view_as(frozen)


def _bottleneck(x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, down, down_bias)), up, up_bias)


@dataclass(frozen=True)
class Plug(Method):
    """A ``SparseBottleneck`` by the name of ``plug`` on the last projection of the sub-layers.

    Attributes:
        mask: entries of ``PATH.plug.down`` and so on, where PATH is the projection's.
        size: width of every bottleneck, the smallest that holds the budget.
    """

    mask: SparseMask
    sites: tuple[Site, ...]
    size: int
    options: Mapping[str, Any]

    cannot_merge = "a plain model has no place for a new layer"

    @property
    def num_parameters(self) -> int:
        return self.mask.count

    def attach(self, model: nn.Module) -> None:
        for site in self.sites:
            shapes = _host_shapes(site, self.size)
            here = {
                name.rpartition(".")[2]: torch.from_numpy(self.mask.positions[name]).long()
                for name in shapes
                if name in self.mask.positions
            }
            if not here:
                continue
            projection: Any = model.get_submodule(site.module)
            start = {
                name.rpartition(".")[2]: self._start(name, shape) for name, shape in shapes.items()
            }
            projection.plug = SparseBottleneck(start, here, like=projection.weight)
            override(projection, _then(projection.plug))

    def _start(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.zeros(shape)
        return kaiming_uniform(name, shape, seed=self.options["seed"])

    def keeps_at(self, site: Site) -> Keeps:
        # The input of both bottlenecks, and what is inside of them around the activation.
        return Keeps(input=False, numbers=site.shape[0] + 3 * self.size)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options), "mask": self.mask.checksum}


def _then(plug: nn.Module) -> Any:
    def forward(inner: Any, x: Tensor) -> Tensor:
        y: Tensor = inner(x)
        return y + plug(y)

    return forward


def _host_shapes(site: Site, size: int) -> dict[str, tuple[int, ...]]:
    width, path = site.shape[0], f"{site.module}.plug"
    return {
        f"{path}.down": (size, width),
        f"{path}.down_bias": (size,),
        f"{path}.up": (width, size),
        f"{path}.up_bias": (width,),
    }


def plan_plug(sites: Sequence[Site], count: int, *, options: Mapping[str, Any]) -> Plug:
    """New layers with exactly ``count`` weights that train.

    Raises:
        ConfigError: more than bottlenecks as wide as the layers hold.
    """
    places = match_sites(sites, parts=("o", "ffn_out"))
    widest = min(site.shape[0] for site in places)
    most = _capacity(places, widest)
    if count > most:
        raise ConfigError(
            f"budget: {count:,} for operation plug; allowed: at most {most:,}, which is what"
            f" bottlenecks of {widest} at {len(places)} places hold"
        )
    size = _smallest_size(places, count)
    hosts = {name: shape for site in places for name, shape in _host_shapes(site, size).items()}
    mask = select_entries(hosts, budget=count, seed=options["seed"])
    return Plug(mask, places, size, options)


def _capacity(places: Sequence[Site], size: int) -> int:
    return sum(count_bottleneck(size, site.shape[0]) for site in places)


def _smallest_size(places: Sequence[Site], count: int) -> int:
    """A bottleneck holds a + b * size numbers."""
    fixed = _capacity(places, 0)
    per_unit = _capacity(places, 1) - fixed
    return max(1, -((fixed - count) // per_unit))
