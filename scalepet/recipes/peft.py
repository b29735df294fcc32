"""Adapters between scalepet and PEFT. No backbone is loaded for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from scalepet import backbones, build, pet
from scalepet.build import Plan
from scalepet.config import RunConfig, check_config, plain
from scalepet.errors import CheckpointError
from scalepet.pet import Apet, PeftAdapter
from scalepet.reading import check_file, parse_json, read_text
from scalepet.recipes.adapter import merge, open_adapter, save_adapter
from scalepet.recipes.adapter_tensors import check_tensors, own_tensors, trained_shapes
from scalepet.recipes.export import check_new
from scalepet.recipes.masks import saved_positions
from scalepet.recipes.run_folder import ADAPTER

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"


def export_peft(
    folder: Path, into: Path, *, overrides: Mapping[str, Any], other_weights: bool = False
) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained`` reads.

    Args:
        folder: of the adapter, or the run folder that holds it.
        into: the new folder; must not exist.
        overrides, other_weights: as for ``open_adapter``.

    Raises:
        CheckpointError: PEFT has no such method, or the folder exists or cannot be written.
    """
    check_new(into)
    adapter = open_adapter(folder, overrides=overrides, other_weights=other_weights)
    plan = adapter.plan
    head_names = own_tensors_among(plan, adapter.tensors)
    converted = pet.to_peft(
        plan.method,
        {name: t for name, t in adapter.tensors.items() if name not in head_names},
        head={name: adapter.tensors[name] for name in head_names},
        is_t5=_is_t5(plan),
    )
    config = {**converted.config, "base_model_name_or_path": plan.backbone.path}
    tensors = {name: tensor.contiguous() for name, tensor in converted.tensors.items()}
    try:
        into.mkdir(parents=True)
        safetensors.torch.save_file(tensors, into / TENSORS_FILE, metadata={"format": "pt"})
        (into / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{into} cannot be written: {error}") from error


def import_peft(config: RunConfig, peft_folder: Path) -> Path:
    """Write a PEFT adapter as one of scalepet, into the output folder of a run.

    Args:
        config: of the run that would have trained it: backbone, task, and the same method.

    Returns:
        The folder of the adapter.

    Raises:
        CheckpointError: the file is of another method or backbone; every difference is listed.
    """
    into = config.output / ADAPTER
    if into.exists():
        raise CheckpointError(f"{into} exists; allowed: an output folder without an adapter")
    found = _read(peft_folder)
    task, _ = build.load_rows(config)  # for the classes, in their order
    plan = build.plan_run(config, task)
    names = {name.removeprefix("base_model.").removeprefix("model.") for name in found.tensors}
    head_names = own_tensors_among(plan, names)
    method, tensors = pet.from_peft(
        plan.method,
        found,
        shapes=lambda method: trained_shapes(plan, method, head_names),
        head_names=head_names,
        is_t5=_is_t5(plan),
    )
    if isinstance(method, Apet):
        plan = _with_imported_mask(plan, method)
    whole = [name for name in head_names if not backbones.matches(name, plan.family.head)]
    check_tensors(str(peft_folder), plan, tensors, whole=whole)
    fixed = saved_positions(plan.method)
    save_adapter(into, plan, tensors, fixed=fixed, num_steps=0, metrics={}, whole=whole)
    return into


def _read(folder: Path) -> PeftAdapter:
    try:
        config = parse_json(read_text(folder / CONFIG_FILE))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG_FILE} is no table of fields")
        check_file(folder / TENSORS_FILE)
        return PeftAdapter(config, safetensors.torch.load_file(folder / TENSORS_FILE))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no adapter of PEFT ({error}); allowed: a folder with {CONFIG_FILE} and"
            f" {TENSORS_FILE}"
        ) from error


def _is_t5(plan: Plan) -> bool:
    return bool(plan.model_config.model_type == "t5")


def own_tensors_among(plan: Plan, names: Collection[str]) -> list[str]:
    """The whole tensors of the model that belong to an adapter with these ``names``: those of the
    head, and those of modules that PEFT was told to save.
    """
    own, head = own_tensors(plan), plan.family.head
    return sorted(name for name in own if name in names or backbones.matches(name, head))


def _with_imported_mask(plan: Plan, method: Apet) -> Plan:
    """A plan whose config says that the positions are no longer those of a seed."""
    changes = {"method": {"budget": method.count, "select": "imported"}}
    config = check_config(merge(plain(plan.config), changes))
    known = build.plan_run(config, plan.task).method
    assert isinstance(known, Apet) and method.mask is not None
    return dataclasses.replace(plan, config=config, method=known.with_mask(method.mask))
