"""Adapters: what was trained, and all that is needed to put it on its backbone again.

A few kilobytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import scalepet
from scalepet import engine
from scalepet.backbones import Loaded
from scalepet.build import Plan, plan_run
from scalepet.config import RunConfig, check_config, plain
from scalepet.data import Task
from scalepet.errors import CheckpointError
from scalepet.files import whole_folder
from scalepet.pet import POSITIONS
from scalepet.recipes.adapter_tensors import check_tensors
from scalepet.recipes.masks import saved_positions, with_saved_positions
from scalepet.tracking import without_secrets

FORMAT = 1
_NEEDED = ("config", "labels", "method", "backbone_fingerprint")


def save_adapter(
    folder: Path,
    plan: Plan,
    tensors: Mapping[str, Tensor],
    *,
    fixed: Mapping[str, Tensor],
    num_steps: int,
    metrics: Mapping[str, float],
    workplace: Path | None = None,
    whole: Sequence[str] = (),
) -> None:
    """Write the trained tensors (safetensors), the config, the mask's record and a card for people.

    Args:
        tensors: what was trained, by name.
        fixed: what is not trained but belongs to it, such as the positions of a mask.
        workplace: as for ``replace_file``.
        whole: names of ``tensors`` that are the backbone's own and take its place.

    Raises:
        CheckpointError: the folder cannot be written; what was there before is kept.
    """
    record = {
        "format": FORMAT,
        "scalepet": scalepet.__version__,
        "config": plain(plan.config),
        "labels": list(plan.task.labels),
        "backbone_fingerprint": plan.backbone_fingerprint,
        "method": plan.method.record(),
        "num_steps": num_steps,
        "metrics": dict(metrics),
        **({"whole": list(whole)} if whole else {}),
    }
    card = _card(plan, tensors, num_steps=num_steps, metrics=metrics)
    engine.write_folder(
        folder,
        tensors={**tensors, **fixed},
        record=record,
        texts={"README.md": without_secrets(card)},
        workplace=workplace,
    )


def _card(
    plan: Plan, tensors: Mapping[str, Tensor], *, num_steps: int, metrics: Mapping[str, float]
) -> str:
    total = sum(tensor.numel() for tensor in tensors.values())
    tuned = plan.method.num_parameters
    head = total - tuned
    scores = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    labels = f"- labels: {', '.join(plan.task.labels)}\n" if plan.task.labels else ""
    return f"""# scalepet adapter for {plan.config.backbone.path}

{total:,} trained numbers: {tuned:,} of method `{plan.config.method.names}`, {head:,} of the head.
The backbone is not in here.

- task: {plan.task.kind}, source `{plan.task.source.path}`
- template: `{plan.task.template}`
{labels}- trained for {num_steps:,} steps with scalepet {scalepet.__version__}

| metric | on the evaluation split |
|---|---|
{scores}

Use it: `scalepet predict THIS_FOLDER {question(plan.task)}`
"""


def question(task: Task) -> str:
    """How ``scalepet predict`` is asked in this task."""
    return '--text "..."' if task.picture_column is None else "--input FILE_WITH_PATHS.csv"


@dataclass(frozen=True)
class Adapter:
    """A saved adapter whose plan fits its backbone; its trained tensors on the CPU.

    Attributes:
        whole: tensors of the backbone itself that it has beside those of method and head.
    """

    folder: Path
    plan: Plan
    tensors: Mapping[str, Tensor]
    whole: tuple[str, ...] = ()

    @property
    def keeps_backbone(self) -> bool:
        return self.plan.method.keeps_backbone and not self.whole

    def head_of(self, loaded: Loaded) -> Loaded:
        """The loaded backbone with all as its head that this adapter has in place of its own."""
        names = dict.fromkeys((*loaded.head_names, *self.whole))
        return dataclasses.replace(loaded, head_names=tuple(names))

    @property
    def positions(self) -> dict[str, bytes]:
        """The saved positions of its mask, to compare; none where the options give them."""
        saved = saved_positions(self.plan.method)
        return {name: tensor.numpy().tobytes() for name, tensor in saved.items()}


def open_adapter(
    folder: Path, *, overrides: Mapping[str, Any], other_weights: bool = False
) -> Adapter:
    """Read an adapter and plan its model.

    Args:
        folder: of the adapter, or the run folder that holds it.
        overrides: config fields to replace, nested.
        other_weights: accept a backbone whose weights are not those that it was trained on.

    Raises:
        CheckpointError: it is not whole, was trained on another backbone or mask (values of both
            are shown), or its tensors are not those of its method, or not finite.
        ConfigError: the backbone is not there.
    """
    if whole_folder(folder / "adapter").exists():
        folder = folder / "adapter"
    tensors, record = engine.read_folder(folder)
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: format {record.get('format')!r}; this scalepet reads {FORMAT}"
        )
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise CheckpointError(f"{folder}: scalepet.json lacks {', '.join(missing)}")
    _check_record(folder, record)
    config = check_config(merge(_as_recorded(record), overrides))
    if config.task.has_classes and not record["labels"]:
        raise CheckpointError(f"{folder}: labels is []; allowed: the classes of the task")
    plan = plan_run(config, _task_with_labels(config, record["labels"]))
    faults = []
    if not _agrees(record["method"], plan.method.record()):
        faults.append(
            f"{folder} was trained as {record['method']}, which comes out as {plan.method.record()}"
            f" on {config.backbone.path}; allowed: the backbone that it was trained on"
        )
    here = plan.backbone_fingerprint
    if here != record["backbone_fingerprint"] and not other_weights:
        faults.append(
            f"{folder} was trained on weights {record['backbone_fingerprint']},"
            f" {config.backbone.path} holds {here};"
            " --other-weights if you know that they are the same (converted, cut anew)"
        )
    if faults:
        raise CheckpointError(faults)
    fixed = {name: tensor for name, tensor in tensors.items() if name.endswith(POSITIONS)}
    method = with_saved_positions(plan.method, fixed)
    trained = {name: tensor for name, tensor in tensors.items() if name not in fixed}
    plan, whole = dataclasses.replace(plan, method=method), record.get("whole", [])
    check_tensors(str(folder), plan, trained, whole=whole)
    return Adapter(folder, plan, trained, tuple(whole))


def _as_recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a record; where it is of before ``released`` gave a T5 biases, it says so."""
    config, saved = dict(record["config"]), record["method"]
    parts = saved.get("methods", [saved]) if isinstance(saved, dict) else []
    known = {name for part in parts for name in part.get("options", ())}
    section = config.get("method")
    if "biases" in known or not isinstance(section, dict):
        return config

    def of_then(one: Any) -> Any:
        is_old = isinstance(one, dict) and one.get("name") == "released"
        return {"biases": False, **one} if is_old else one

    also = section.get("also")
    section = {**section, "also": [*map(of_then, also)]} if isinstance(also, list) else section
    return {**config, "method": of_then(section)}


def _check_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a part of the record is of another type than we write."""
    if not isinstance(record["config"], dict):
        raise CheckpointError(f"{folder}: config is {record['config']!r}; allowed: fields")
    for name in ("labels", "whole"):
        found = record.get(name, [])
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise CheckpointError(f"{folder}: {name} is {found!r}; allowed: a list of texts")


def _agrees(saved: Any, planned: Any) -> bool:
    """Whether the plan has all that was saved; options that have come to a method since then are as
    if they were not there.
    """
    if isinstance(saved, dict) and isinstance(planned, dict):
        return all(name in planned and _agrees(one, planned[name]) for name, one in saved.items())
    if isinstance(saved, list) and isinstance(planned, list) and len(saved) == len(planned):
        return all(_agrees(one, other) for one, other in zip(saved, planned, strict=True))
    return bool(saved == planned)


def _task_with_labels(config: RunConfig, labels: Sequence[str]) -> Any:
    return dataclasses.replace(config.task, labels=tuple(labels))


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of ``overrides`` in place of those in ``base``."""
    merged = dict(base)
    for name, value in overrides.items():
        inner = merged.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[name] = merge(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def load_adapter(model: Any, adapter: Adapter) -> None:
    """Put the tensors on a model that its plan has been attached to, sharded or not.

    Raises:
        CheckpointError: names or shapes differ.
    """
    there = {name: engine.full_shape(p) for name, p in engine.trained_parameters(model).items()}
    here = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    faults = [
        f"{adapter.folder}: {name} is {here.get(name)} in the adapter, {there.get(name)} in the"
        " model"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    if faults:
        raise CheckpointError(faults)
    engine.load_trained(model, adapter.tensors)
