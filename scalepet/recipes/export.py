"""Take a saved adapter out of scalepet: merged into a plain model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from scalepet import backbones, build, dist, engine
from scalepet.backbones import Loaded
from scalepet.errors import CheckpointError
from scalepet.recipes.adapter import Adapter, open_adapter


def export_merged(
    folder: Path, into: Path, *, overrides: Mapping[str, Any], other_weights: bool = False
) -> None:
    """Write a plain transformers folder that computes what the backbone does with its adapter on.

    Tensor by tensor, at most one file of 5 GB in memory besides the backbone; with a launcher and a
    DeepSpeed file of stage 3, no rank ever holds the whole backbone.

    Args:
        folder: of the adapter, or the run folder that holds it.
        into: the new folder; must not exist.
        overrides, other_weights: as for ``open_adapter``.

    Raises:
        CheckpointError: the method's numbers have no place in a plain model, or the folder exists
            or cannot be written; on all ranks alike.
    """
    launched = engine.is_launched()
    if launched:
        engine.join_processes()
    adapter = dist.together(
        lambda: _mergeable(open_adapter(folder, overrides=overrides, other_weights=other_weights))
    )
    dist.together(lambda: check_new(into))
    ds_config = build.ds_config_for_answers(adapter.plan) if launched else {}
    loaded = dist.together(
        lambda: build.load_backbone(adapter.plan, ds_config, on_host=not launched)
    )
    merged = _merged(adapter, loaded)
    unfinished = into.with_name(into.name + ".new")
    if dist.is_main():
        fault = _write(unfinished, merged, adapter, loaded)
    else:
        fault = None
        for _ in merged:  # every tensor is gathered from all ranks
            pass
    dist.agree(fault)
    engine.on_main(lambda: _move(unfinished, into))
    engine.leave_processes()


def _mergeable(adapter: Adapter) -> Adapter:
    reason = adapter.plan.method.cannot_merge
    if reason is not None:
        raise CheckpointError(
            f"{adapter.folder}: {adapter.plan.config.method.names} cannot be merged: {reason};"
            " allowed: apet (operation add), lora, ia3, full, and bitfit where the backbone has"
            " biases"
        )
    return adapter


def check_new(into: Path) -> None:
    """Raises CheckpointError where something is there already."""
    if into.exists():
        raise CheckpointError(f"{into} exists; allowed: a folder that does not")


def _merged(adapter: Adapter, loaded: Loaded) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the plain model, whole, on the CPU. All ranks together."""
    for name, parameter in loaded.model.named_parameters():
        whole = engine.read_whole(parameter).cpu()
        if name in loaded.head_names:
            whole = adapter.tensors[name].to(whole.dtype)
        yield name, adapter.plan.method.merged(name, whole, adapter.tensors).contiguous()


def _write(
    folder: Path, merged: Iterator[tuple[str, Tensor]], adapter: Adapter, loaded: Loaded
) -> CheckpointError | None:
    """On rank 0. A fault is given back, once the other ranks have been served to the end."""
    plan, dtype = adapter.plan, build.DTYPES[adapter.plan.config.precision]
    sizes = {
        name: math.prod(engine.full_shape(parameter)) * dtype.itemsize
        for name, parameter in loaded.model.named_parameters()
    }
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        backbones.write_weights(folder, merged, sizes=sizes)
        backbones.write_model_config(
            folder, plan.backbone, plan.model_config, dtype=dtype, labels=plan.task.labels
        )
        if plan.tokenizer is not None:
            plan.tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        for _ in merged:
            pass
        return CheckpointError(f"{folder} cannot be written: {error}")
    return None


def _move(unfinished: Path, into: Path) -> None:
    try:
        unfinished.rename(into)
    except OSError as error:
        raise CheckpointError(f"{into} cannot be written: {error}") from error
