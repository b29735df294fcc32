"""Take DeepSpeed off a model: the one door to what its engines leave behind when destroyed.

The names here are DeepSpeed's own (0.19.8) and none has a default: one that moves is an error
instead of a model that stays in memory for ever.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

ON_MODULES = (
    *("ds_id", "ds_recompute_parameters", "ds_inflight_param_registry", "ds_grads_remaining"),
    *("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt"),
    *("_external_params", "ds_external_parameters", "all_parameters", "_original_parameters"),
)
"""What stage 3 writes on modules. The two classes hold the engine that was there first, so that a
later one would gather and release by its records.
"""

ON_PARAMETERS = (
    *(
        "_z3_optimizer",
        "_hp_mapping",
        "_zero_optimizer",
        "_dp_group",
        "grad_accum",
        "load_hp_checkpoint_state",
    ),
    *("get_full_hp_param", "set_full_hp_param", "get_full_hp_grad", "set_full_hp_grad"),
    *("param_idx_in_group", "_index_in_param_group"),
)
"""What stages 1 to 3 write on trained parameters, by which one finds the optimizer."""


def take_off(engine: Any, model: nn.Module) -> None:
    """The model is as it was before DeepSpeed started on it, but that its shards stay shards.

    Not a collective. Nothing but the caller holds the engine after it.
    """
    engine.destroy()
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    for module in model.modules():
        _clean(module)
    for parameter in model.parameters():
        parameter.grad = None
        for name in ON_PARAMETERS:
            parameter.__dict__.pop(name, None)
    _forget_modules(model)
    _forget_releases()


def free() -> None:
    """Give back the memory of engines that nobody holds: they are cycles of objects."""
    from deepspeed.accelerator import get_accelerator

    gc.collect()
    get_accelerator().empty_cache()


@contextlib.contextmanager
def plain_linear_after() -> Iterator[None]:
    """``torch.nn.functional.linear`` is what it was, after models are built into shards inside:
    DeepSpeed replaces it for the rest of the process.
    """
    before = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = before


def forget_nodes() -> None:
    """DeepSpeed makes hpZ's groups of ranks once, and stops at the next model that is to have them.
    All ranks together; no model that was built with them can run any more.
    """
    from deepspeed.utils import groups

    of_before = groups._ZERO_PARAM_INTRA_PARALLEL_GROUP
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    if of_before is not None:
        with contextlib.suppress(ValueError):  # it has gone with the group of all
            torch.distributed.destroy_process_group(of_before)


def take_linear_of_shards(engine: Any) -> None:
    """While a sharded model runs, its linear layers must not keep weights for backward."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    if engine.zero_optimization_stage() == 3 and engine._config.zero_config.memory_efficient_linear:
        torch.nn.functional.linear = zero3_linear_wrap


def _clean(module: nn.Module) -> None:
    if "_original_parameters" in vars(module):
        # Not that original: parameters may have come or gone since.
        module._parameters = dict(module._parameters.items())
    for name in ON_MODULES:
        vars(module).pop(name, None)


def _forget_modules(model: nn.Module) -> None:
    """Each start at stage 3 puts the model on a list of running modules, and an exception in a
    forward leaves there what was running.
    """
    from deepspeed.runtime.zero import parameter_offload

    ours = set(model.modules())
    running = parameter_offload.FWD_MODULE_STACK
    running[:] = [module for module in running if module not in ours]


def _forget_releases() -> None:
    """A cache without bounds over a method: its keys are engines' coordinators and modules."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    method = vars(Coordinator)["_PartitionedParameterCoordinator__params_to_release"]
    inspect.getclosurevars(method).nonlocals["func"].cache_clear()
