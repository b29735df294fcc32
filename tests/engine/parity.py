"""Training that is held against plain torch: the cases, the reference, and the DeepSpeed worker.

As a script: ``parity.py '{"folder": ..., "out": ..., "cases": {...}}'``, on every rank.
"""

from __future__ import annotations

import gc
import io
import json
import sys
import traceback
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import safetensors.torch
import torch
from deepspeed.utils import safe_get_full_grad

from scalepet import backbones, build, dist, engine
from scalepet.backbones import Backbone, Loaded
from scalepet.build import DTYPES
from scalepet.data import Encoded, Step, TrainLoader
from scalepet.data.examples import Examples
from scalepet.data.picture import Picture
from scalepet.data.pictures import Pictures
from scalepet.engine.parameters import gathered
from scalepet.pet import METHODS
from scalepet.recipes.masks import MaskMover, chosen, saved_positions

NUM_ROWS, NUM_CLASSES, BATCH_SIZE = 22, 3, 8
LEARNING_RATE, HEAD_LEARNING_RATE = 1e-2, 3e-3
# Adam with its usual epsilon turns the sign of a gradient of 1e-9 into a whole step; with a large
# one, values are a smooth function of the gradients, so that comparing them means something.
EPSILON = 1e-2
WITH_HEAD = ("bert", "vit")
APET = {
    "name": "apet",
    "budget": 400,
    "kinds": ("matrix", "embedding", "norm", "bias"),
    "seed": 2,
}


@dataclass(frozen=True)
class Case:
    """One way to run the same training.

    Attributes:
        zero: options of ZeRO besides the stage.
        method: its name and options.
    """

    backbone: str = "t5"
    stage: int = 3
    zero: dict[str, Any] = field(default_factory=dict, hash=False)
    precision: str = "fp32"
    micro_batch_size: int = 8
    clip: float | None = None
    checkpoint_activations: bool = False
    method: dict[str, Any] = field(default_factory=lambda: APET, hash=False)
    num_steps: int = 6
    dropout: float = 0.0


def make_backbone(case: Case, folder: Path) -> Backbone:
    return Backbone(
        path=str(folder / case.backbone),
        num_classes=NUM_CLASSES if case.backbone in WITH_HEAD else None,
        dropout=case.dropout,
        checkpoint_activations=case.checkpoint_activations,
    )


def make_rows(case: Case) -> Examples:
    """Random rows, texts of unequal lengths or pictures, the same everywhere."""
    generator = np.random.default_rng(5)
    if case.backbone == "vit":
        return make_pictures(generator)
    lengths = generator.integers(3, 9, (NUM_ROWS, 2))
    sources = [generator.integers(2, 60, length).astype(np.int32) for length in lengths[:, 0]]
    if case.backbone == "bert":
        classes = generator.integers(0, NUM_CLASSES, NUM_ROWS).astype(np.int32)
        return Encoded("head", sources, list(classes[:, None]), classes=classes)
    targets = [generator.integers(2, 60, length).astype(np.int32) for length in lengths[:, 1]]
    return Encoded("text", sources, targets)


def make_pictures(generator: np.random.Generator) -> Pictures:
    files = []
    for pixels in generator.integers(0, 256, (NUM_ROWS, 16, 16, 3), dtype=np.uint8):
        PIL.Image.fromarray(pixels).save(file := io.BytesIO(), "png")
        files.append({"bytes": file.getvalue(), "path": None})
    return Pictures(
        Picture(size=16, resize=16, augment=False),
        "image",
        datasets.Dataset.from_dict({"image": files}),
        classes=generator.integers(0, NUM_CLASSES, NUM_ROWS).astype(np.int32),
    )


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
    options = {name: option for name, option in case.method.items() if name != "name"}
    return METHODS[case.method["name"]](backbones.sketch_sites(config), **options)


def draw_head(loaded: Loaded) -> None:
    """The same start in every precision; torch draws other numbers in other types."""
    generator = torch.Generator().manual_seed(0)
    for name in loaded.head_names:
        head: Any = loaded.model.get_parameter(name)
        engine.write_whole(head, 0.1 * torch.randn(engine.full_shape(head), generator=generator))


def train_reference(case: Case, folder: Path) -> dict[str, Any]:
    """Losses, first gradients and final values of a plain model that is trained densely, masked.

    Every trained tensor has an fp32 master for torch's AdamW and a working copy in the model's
    dtype, as mixed precision has them; in fp32 the two are one. Of APET it uses the mask alone.
    """
    backbone = make_backbone(case, folder)
    config = backbones.read_model_config(backbone)
    dtype = DTYPES[case.precision]
    loaded = backbones.load_model(backbone, config, dtype=dtype)
    draw_head(loaded)
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
    """The same through the engine, with any method: (numbers, tensors), the same on every rank."""
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
    dtype, fill = DTYPES[case.precision], engine.shard_filler(ds_config)
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(backbone, config, dtype=dtype, fill=fill)
    draw_head(loaded)
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)
    method = chosen(
        make_method(case, config),
        loaded.model,
        ds_config=ds_config,
        loader=loader,
        loss_sum=loss_sum,
    )
    build.attach(method, loaded)
    with engine.Engine(
        loaded.model,
        head_names=loaded.head_names,
        optimizer=engine.AdamW(LEARNING_RATE, HEAD_LEARNING_RATE, epsilon=EPSILON),
        ds_config=ds_config,
    ) as runner:
        mover = MaskMover(method, runner, num_steps=case.num_steps)
        losses, tensors = make_steps(mover, loader, loss_sum)
        tensors |= {f"trained/{name}": tensor for name, tensor in runner.read_trained().items()}
        tensors |= saved_positions(mover.method)
        num_changed = count_changed(runner.module, backbone)
        device = runner.device.type
    return {"losses": losses, "num_changed": num_changed, "device": device}, tensors


def make_steps(
    mover: MaskMover, loader: TrainLoader, loss_sum: engine.LossSum
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """All losses, and the gradients of the first step."""
    runner, losses, gradients = mover.runner, [], {}
    plain_backward = runner.backward

    def backward_and_look(loss: torch.Tensor) -> None:
        """Gradients are whole after the last backward of a step, and gone after the optimizer."""
        plain_backward(loss)
        if not runner.in_training.is_gradient_accumulation_boundary():
            return
        for name, parameter in engine.trained_parameters(runner.module).items():
            gradient = safe_get_full_grad(parameter)
            if gradient is not None:
                gradients[f"gradient/{name}"] = gradient.detach().float().clone()

    runner.backward = backward_and_look  # type: ignore[method-assign]
    for index in range(mover.num_steps):
        with mover.watching(index + 1):
            report = make_step(runner, loader.step(index), loss_sum)
        mover.move(index + 1)
        losses.append(report.loss)
        runner.backward = plain_backward  # type: ignore[method-assign]
    return losses, gradients


def make_step(runner: engine.Engine, step: Step, loss_sum: engine.LossSum) -> engine.StepReport:
    """The report of the step once it is made: fp16's loss scale may be too high at first."""
    while True:
        report = engine.train_step(runner, step, loss_sum=loss_sum, learning_rate_factor=1.0)
        if report.skipped is None:
            return report
        assert report.skipped.is_overflow, report.skipped


def count_changed(model: torch.nn.Module, backbone: Backbone) -> int:
    """How many frozen numbers of the model differ from those in the file of its backbone."""
    stored, changed = read_file(backbone), 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            with gathered([parameter]):
                changed += int((parameter.cpu() != stored[name].to(parameter.dtype)).sum())
    return changed


@cache
def read_file(backbone: Backbone) -> dict[str, torch.Tensor]:
    """What the file of a backbone holds, by the names of the model."""
    config = backbones.read_model_config(backbone)
    model = backbones.load_model(backbone, config, dtype=torch.float32).model
    tensors: dict[str, torch.Tensor] = model.state_dict()
    return tensors


def try_case(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What fails does so on all ranks alike, and the cases behind it shall run."""
    try:
        return train_case(case, folder)
    except Exception:
        return {"fault": traceback.format_exc()}, {}


def main() -> None:
    argument = json.loads(sys.argv[1])
    folder, out = Path(argument["folder"]), Path(argument["out"])
    engine.join_processes(timeout_seconds=60)
    backbones.quiet_transformers(show_progress=False)
    for name, options in argument["cases"].items():
        gc.freeze()  # DeepSpeed collects garbage at every start, among all that was ever imported
        numbers, tensors = try_case(Case(**options), folder)
        if dist.is_main():
            (out / f"{name}.json").write_text(json.dumps(numbers))
            safetensors.torch.save_file(tensors, out / f"{name}.safetensors")
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
