"""Parameters, whole or in ZeRO-3 shards: names, full shapes and contents, the same to callers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.engine.ds_config import zero_stage
from scalepet.engine.processes import quiet_deepspeed


@contextlib.contextmanager
def gathered(parameters: Sequence[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """The parameters whole on every rank; with ``write``, what rank 0 changes reaches all."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    deepspeed = quiet_deepspeed()
    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None):
        yield


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name; tied parameters once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write the working copies of what is trained in a model, sharded or not. DeepSpeed's masters
    stay: what trains on has to be loaded before DeepSpeed starts. All ranks together.
    """
    parameters = trained_parameters(model)
    assert parameters.keys() == tensors.keys(), parameters.keys() ^ tensors.keys()
    for name, parameter in parameters.items():
        write_whole(parameter, tensors[name])


@torch.no_grad()
def write_whole(parameter: nn.Parameter, whole: Tensor) -> None:
    """Write the working copy of a parameter, sharded or not. All ranks together."""
    with gathered([parameter], write=True):
        if not hasattr(parameter, "ds_id") or dist.is_main():
            parameter.copy_(whole)


def read_whole(parameter: nn.Parameter) -> Tensor:
    """The whole parameter on its device. All ranks together."""
    with gathered([parameter]):
        return parameter.detach().clone()


def shard_filler(
    ds_config: Mapping[str, Any],
) -> Callable[[nn.Parameter, Callable[[int, int], Tensor]], None] | None:
    """What fills the parameters of a model that is built into shards part by part; None where it is
    not sharded, or its parts lie on NVMe, where DeepSpeed alone can write.
    """
    if zero_stage(ds_config) < 3:
        return None
    offload = ds_config["zero_optimization"].get("offload_param") or {}
    return None if offload.get("device") == "nvme" else fill_shard


@torch.no_grad()
def fill_shard(parameter: Any, read: Callable[[int, int], Tensor]) -> None:
    """Fill this rank's part of a ZeRO-3 parameter with what it reads of it, and nothing else; also
    the larger part of its node (hpZ). Not a collective.

    Args:
        read: ``(start, stop) -> numbers start to stop of the flat tensor``.
    """
    own = parameter.ds_tensor
    _fill(own, dist.rank() * own.numel(), parameter.ds_numel, read)
    of_node = parameter.ds_secondary_tensor
    if of_node is not None:
        rank_in_node = dist.rank() % parameter.ds_secondary_tensor_group_size
        _fill(of_node, rank_in_node * of_node.numel(), parameter.ds_numel, read)


def _fill(part: Tensor, start: int, num_entries: int, read: Callable[[int, int], Tensor]) -> None:
    """Equal parts, zeros behind the end."""
    stop = min(start + part.numel(), num_entries)
    start = min(start, num_entries)
    flat = part.data.view(-1)
    flat[: stop - start].copy_(read(start, stop))
    flat[stop - start :].zero_()


def shard_of(whole: Tensor, parameter: Any) -> Tensor:
    """This rank's part of a tensor, as ZeRO-3 cuts it: equal parts, zeros behind the end."""
    size = parameter.ds_tensor.numel()
    padded = torch.nn.functional.pad(whole.flatten(), (0, size * dist.world_size() - whole.numel()))
    return padded.narrow(0, size * dist.rank(), size)
