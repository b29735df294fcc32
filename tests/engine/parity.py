"""Training that is held against plain torch: the cases, the reference, and the DeepSpeed worker.

As a script: ``parity.py '{"folder": ..., "out": ..., "cases": {...}}'``, on every rank.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from deepspeed.utils import safe_get_full_grad

from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.data import Encoded, TrainLoader
from scalepet.engine.parameters import gathered
from scalepet.pet import plan_apet

NUM_ROWS, NUM_CLASSES, BATCH_SIZE = 22, 3, 8
LEARNING_RATE, HEAD_LEARNING_RATE = 1e-2, 3e-3
# Adam with its usual epsilon turns the sign of a gradient of 1e-9 into a whole step; with a large
# one, values are a smooth function of the gradients, so that comparing them means something.
EPSILON = 1e-2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One way to run the same training."""

    backbone: str = "t5"
    stage: int = 3
    zero: dict[str, Any] = field(default_factory=dict, hash=False)
    precision: str = "fp32"
    micro_batch_size: int = 8
    clip: float | None = None
    checkpoint_activations: bool = False
    kinds: tuple[str, ...] = ("matrix", "embedding", "norm", "bias")
    num_steps: int = 6
    dropout: float = 0.0


def make_backbone(case: Case, folder: Path) -> Backbone:
    return Backbone(
        path=str(folder / case.backbone),
        num_classes=NUM_CLASSES if case.backbone == "bert" else None,
        dropout=case.dropout,
        checkpoint_activations=case.checkpoint_activations,
    )


def make_rows(case: Case) -> Encoded:
    """Random rows of unequal lengths, the same everywhere."""
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 9, (NUM_ROWS, 2))
    sources = [generator.integers(2, 60, length).astype(np.int32) for length in lengths[:, 0]]
    if case.backbone == "bert":
        classes = generator.integers(0, NUM_CLASSES, NUM_ROWS).astype(np.int32)
        return Encoded("head", sources, list(classes[:, None]), classes=classes)
    targets = [generator.integers(2, 60, length).astype(np.int32) for length in lengths[:, 1]]
    return Encoded("text", sources, targets)


def make_loader(case: Case, *, rank: int, world_size: int) -> TrainLoader:
    return TrainLoader(
        make_rows(case),
        batch_size=BATCH_SIZE,
        micro_batch_size=case.micro_batch_size,
        rank=rank,
        world_size=world_size,
        seed=1,
        pad_id=0,
    )


def make_method(case: Case, config: Any) -> Any:
    return plan_apet(backbones.sketch_sites(config), budget=400, kinds=case.kinds, seed=2)


def train_reference(case: Case, folder: Path) -> dict[str, Any]:
    """Losses, first gradients and final values of a plain model that is trained densely, masked.

    Every trained tensor has an fp32 master for torch's AdamW and a working copy in the model's
    dtype, as mixed precision has them; in fp32 the two are one. Of APET it uses the mask alone.
    """
    backbone = make_backbone(case, folder)
    config = backbones.read_model_config(backbone)
    dtype = DTYPES[case.precision]
    loaded = backbones.load_model(backbone, config, dtype=dtype)
    indices = {
        name: torch.from_numpy(positions).long()
        for name, positions in make_method(case, config).mask.positions.items()
    }
    model, parameters = loaded.model, dict(loaded.model.named_parameters())
    base = {name: parameters[name].detach().clone() for name in indices}
    values = {name: torch.zeros(len(index)) for name, index in indices.items()}
    head = {name: parameters[name].detach().float().clone() for name in loaded.head_names}
    for name in (*values, *head):
        parameters[name].requires_grad_(True)
    groups = [
        {"params": list(values.values()), "lr": LEARNING_RATE},
        {"params": list(head.values()), "lr": HEAD_LEARNING_RATE},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], eps=EPSILON, weight_decay=0)
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)
    losses, gradients = [], {}
    model.train()
    loader = make_loader(case, rank=0, world_size=1)
    for index in range(case.num_steps):
        step = loader.step(index)
        model.zero_grad()
        loss = sum(loss_sum(model, b.tensors) for b in step.micro_batches) / step.num_targets
        loss.backward()
        for name, value in values.items():
            value.grad = parameters[name].grad.flatten()[indices[name]].float()
        for name, value in head.items():
            value.grad = parameters[name].grad.float()
        if index == 0:
            gradients = {name: value.grad.clone() for name, value in values.items()}
        if case.clip is not None:
            torch.nn.utils.clip_grad_norm_([*values.values(), *head.values()], case.clip)
        optimizer.step()
        with torch.no_grad():
            for name, value in values.items():
                merged = base[name].clone()
                merged.view(-1)[indices[name]] += value.to(dtype)
                parameters[name].copy_(merged)
            for name, value in head.items():
                parameters[name].copy_(value)
        losses.append(loss.item())
    return {"losses": losses, "gradients": gradients, "values": values, "head": head}


def train_case(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The same through the engine: (numbers, tensors), the same on every rank."""
    backbone = make_backbone(case, folder)
    config = backbones.read_model_config(backbone)
    loader = make_loader(case, rank=dist.rank(), world_size=dist.world_size())
    ds_config = engine.compose_ds_config(
        {"zero_optimization": {"stage": case.stage, **case.zero}},
        precision=case.precision,
        micro_batch_size=case.micro_batch_size,
        num_micro_batches=loader.num_micro_batches,
        clip=case.clip,
    )
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(backbone, config, dtype=DTYPES[case.precision])
    make_method(case, config).attach(loaded.model)
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.head_names:
            parameter.requires_grad_(True)
    runner = engine.Engine(
        loaded.model,
        head_names=loaded.head_names,
        optimizer=engine.AdamW(LEARNING_RATE, HEAD_LEARNING_RATE, epsilon=EPSILON),
        ds_config=ds_config,
    )
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)
    tensors: dict[str, torch.Tensor] = {}
    plain_backward = runner.backward

    def backward_and_look(loss: torch.Tensor) -> None:
        """Gradients are whole after the last backward of a step, and gone after the optimizer."""
        plain_backward(loss)
        if not runner.in_training.is_gradient_accumulation_boundary():
            return
        for name, parameter in engine.trained_parameters(runner.module).items():
            gradient = safe_get_full_grad(parameter)
            if gradient is not None:
                tensors[f"gradient/{name}"] = gradient.detach().float().clone()

    runner.backward = backward_and_look  # type: ignore[method-assign]
    losses = []
    for index in range(case.num_steps):
        report = engine.train_step(
            runner, loader.step(index), loss_sum=loss_sum, learning_rate_factor=1.0
        )
        losses.append(report.loss)
        runner.backward = plain_backward  # type: ignore[method-assign]
    tensors |= {f"trained/{name}": tensor for name, tensor in runner.read_trained().items()}
    return {"losses": losses, "num_changed": count_changed(runner, folder / case.backbone)}, tensors


def count_changed(runner: Any, folder: Path) -> int:
    """How many numbers of the backbone differ from those in its file."""
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    changed = 0
    for name, parameter in runner.module.named_parameters():
        if parameter.requires_grad:
            continue
        with gathered([parameter]):
            original = stored.get(name, stored.get(name.removeprefix("bert.")))
            assert original is not None, name
            changed += int((parameter.detach() != original.to(parameter)).sum())
    return changed


def main() -> None:
    argument = json.loads(sys.argv[1])
    folder, out = Path(argument["folder"]), Path(argument["out"])
    engine.join_processes(timeout_seconds=60)
    for name, options in argument["cases"].items():
        numbers, tensors = train_case(Case(**options), folder)
        if dist.is_main():
            (out / f"{name}.json").write_text(json.dumps(numbers))
            safetensors.torch.save_file(tensors, out / f"{name}.safetensors")
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
