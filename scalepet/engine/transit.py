"""How weights travel under ZeRO++'s qwZ: those of the frozen backbone as int8, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

_EXACT = "scalepet_travels_exactly"
"""Attribute of a parameter that is never rounded, whether it trains at the moment or rests."""

_MULTIPLE = 8
"""DeepSpeed's kernel takes shards of so many numbers, or a multiple of it."""


@contextlib.contextmanager
def rounding_frozen_only(
    model: nn.Module, ds_config: Mapping[str, Any], *, trained: Iterable[nn.Parameter]
) -> Iterator[None]:
    """DeepSpeed starts on the model inside. Where ``zero_quantized_weights`` asks for int8, what is
    trained or was added to the backbone travels as it is.

    DeepSpeed by itself rounds all that layers ask for, with one scale for up to 16,000 numbers of
    several tensors: small trained values beside large weights become zeros. Small persistent
    tensors it rounds in the first step alone, and at a shard that is no multiple of 8 it stops; all
    of these travel as they are, too.

    Args:
        ds_config: as ``compose_ds_config`` makes it.
    """
    if not ds_config["zero_optimization"].get("zero_quantized_weights"):
        yield
        return
    parameters: list[Any] = list(model.parameters())
    # What the backbone was built of is sharded from its first day; what came later is not yet.
    for parameter in (*trained, *(p for p in parameters if not hasattr(p, "ds_id"))):
        setattr(parameter, _EXACT, True)
    yield
    for parameter in parameters:
        gather = parameter.all_gather_coalesced
        if not isinstance(gather, _Gather):
            parameter.all_gather_coalesced = _Gather(gather)


@dataclass(frozen=True)
class _Gather:
    """In the place of the function of a parameter with which DeepSpeed gathers several."""

    plain: Callable[..., Any]

    def __call__(
        self, parameters: Iterable[Any], safe_mode: bool = False, quantize: bool = False
    ) -> Any:
        from deepspeed.runtime.zero.partition_parameters import MultipleAllGatherHandles

        groups: dict[bool, list[Any]] = {True: [], False: []}
        for parameter in parameters:
            groups[quantize and _may_be_rounded(parameter)].append(parameter)
        return MultipleAllGatherHandles(
            [
                self.plain(group, safe_mode=safe_mode, quantize=is_rounded)
                for is_rounded, group in groups.items()
                if group
            ]
        )


def _may_be_rounded(parameter: Any) -> bool:
    second = parameter.ds_secondary_tensor
    shard = parameter.ds_tensor if second is None else second
    is_exact = hasattr(parameter, _EXACT) or parameter.ds_persist
    return not is_exact and shard.numel() % _MULTIPLE == 0
