"""LoRA: low-rank deltas on linear layers, y = W x + s B A x.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685); rsLoRA: "A Rank
Stabilization Scaling Factor for Fine-Tuning with LoRA" (arXiv 2312.03732).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalepet.backbones import Part, Site, match_sites, override
from scalepet.errors import ConfigError
from scalepet.pet.calibration import add_scale, check_replaced, scaled, scaled_in
from scalepet.pet.method import Count, Keeps, Method, Positive
from scalepet.pet.start import add_parameter, kaiming_uniform

_ALPHA = 16.0


@dataclass(frozen=True)
class Lora(Method):
    """``lora_A`` (r, columns) and ``lora_B`` (rows, r) on the linear layer of every site; B starts
    at zero. Calibrated, ``lora_B_scale`` takes the place of alpha / r.
    """

    sites: tuple[Site, ...]
    r: int
    scaling: float
    options: Mapping[str, Any]

    @property
    def num_parameters(self) -> int:
        scales = len(self.sites) if self.options["calibrated"] else 0
        return scales + sum(self.r * sum(site.shape) for site in self.sites)

    def attach(self, model: nn.Module) -> None:
        for site in self.sites:
            linear: Any = model.get_submodule(site.module)
            rows, columns = site.shape
            name, seed = f"{site.module}.lora_A", self.options["seed"]
            down = kaiming_uniform(name, (self.r, columns), seed=seed)
            add_parameter(linear, "lora_A", down, like=linear.weight)
            add_parameter(linear, "lora_B", torch.zeros(rows, self.r), like=linear.weight)
            if self.options["calibrated"]:
                add_scale(linear, "lora_B", like=linear.weight)
            self._join(linear)

    def _join(self, linear: Any) -> None:
        def forward(inner: Any, x: Tensor) -> Tensor:
            low = F.linear(x, linear.lora_A)
            return inner(x) + F.linear(low, scaled(linear, "lora_B")) * self.scaling

        override(linear, forward)

    def keeps_at(self, site: Site) -> Keeps:
        return Keeps(numbers=self.r)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        module = name.removesuffix(".weight")
        if f"{module}.lora_A" not in trained:
            return tensor
        up = scaled_in(trained, f"{module}.lora_B").float()
        down = trained[f"{module}.lora_A"].float()
        return (tensor.float() + self.scaling * (up @ down)).to(tensor.dtype)


def plan_lora(
    sites: Sequence[Site],
    *,
    r: Count = 8,
    alpha: Positive = _ALPHA,
    rslora: bool = False,
    calibrated: bool = False,
    parts: Sequence[Part] = ("q", "v"),
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> Lora:
    """Choose the linear layers.

    Args:
        sites: the tensors of the backbone.
        r: rank of the deltas.
        alpha: deltas are scaled by alpha / r.
        rslora: scale them by alpha / sqrt(r).
        calibrated: a learnt scale for each of them instead; alpha is not read (LAE).
        parts: which linear layers of a block.
        include: patterns of tensor names: one must match.
        exclude: patterns of tensor names: none may match.
        seed: of the start of A.

    Raises:
        ConfigError: patterns or parts that match nothing, a rank above a side of a matrix,
            alpha or rslora with calibrated.
    """
    options = {
        "r": r,
        "alpha": alpha,
        "rslora": rslora,
        "calibrated": calibrated,
        "parts": list(parts),
        "include": list(include),
        "exclude": list(exclude),
        "seed": seed,
    }
    check_replaced(options, {"alpha": _ALPHA, "rslora": False})
    chosen = match_sites(sites, kinds=("matrix",), parts=parts, include=include, exclude=exclude)
    smallest = min(chosen, key=lambda site: min(site.shape))
    if r > min(smallest.shape):
        raise ConfigError(
            f"r: {r}; allowed: at most {min(smallest.shape)}, the smaller side of"
            f" {smallest.name} {smallest.shape}"
        )
    scaling = alpha / math.sqrt(r) if rslora else alpha / r
    return Lora(chosen, r, 1.0 if calibrated else scaling, options)
