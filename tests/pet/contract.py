"""The contract of all methods, one line a row; ``test_contract.py`` holds every row to it.

As a script: ``contract.py '{"folder": ..., "out": ..., "cases": {NAME: [row, backbone, stage]}}'``,
on every rank, it trains the cases through the engine.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from scalepet import backbones, build, dist, engine, pet
from scalepet.backbones import Backbone, Loaded, Site
from scalepet.data import IGNORED, Batch, Step
from scalepet.engine.parameters import gathered
from scalepet.pet import METHODS, HeadOnly, Method

T5S = ("t5", "t5-gated")
WITH_HEAD = ("bert", "vit")
BACKBONES = T5S + WITH_HEAD
KINDS = ("matrix", "embedding", "norm", "bias")
PARTS = ("q", "k", "v", "o", "ffn_in", "ffn_out")
ATTENTION = ("q", "k", "v", "o")


@dataclass(frozen=True)
class Row:
    """Methods with their options, and the backbones that they are for."""

    sections: tuple[tuple[str, Mapping[str, Any]], ...]
    on: tuple[str, ...] = BACKBONES

    def __add__(self, other: Row) -> Row:
        return Row(self.sections + other.sections, self.on)

    def plan(self, sites: Sequence[Site], **changes: Any) -> Method:
        """The method on a backbone, with some options replaced."""
        return pet.together(
            METHODS[name](sites, **{**options, **changes}) for name, options in self.sections
        )


def of(method: str, *, on: tuple[str, ...] = BACKBONES, **options: Any) -> Row:
    return Row(((method, options),), on)


ROWS: dict[str, Row] = {
    "apet": of("apet", budget=400, kinds=KINDS),
    "apet of rows": of("apet", budget=300, unit="row"),
    "apet of heads": of("apet", budget=300, unit="head", parts=ATTENTION),
    "apet of blocks": of("apet", budget=300, unit="block", block=5),
    "apet by magnitude": of("apet", budget=400, select="magnitude", kinds=KINDS),
    "apet concat": of("apet", budget=100, operation="concat"),
    "apet plug": of("apet", budget=200, operation="plug"),
    "apet mix": of("apet", budget=300, operation="mix"),
    "lora": of("lora", r=3),
    "lora everywhere": of("lora", r=2, rslora=True, parts=PARTS),
    "adapter houlsby": of("adapter", bottleneck=4),
    "adapter pfeiffer": of("adapter", bottleneck=4, placement="pfeiffer"),
    "adapter parallel": of("adapter", bottleneck=4, placement="parallel"),
    "adapter beside": of("adapter", bottleneck=4, placement="parallel_attention"),
    "prefix": of("prefix", length=3),
    "prompt": of("prompt", length=3),
    "bitfit": of("bitfit"),
    "ia3": of("ia3"),
    "full": of("full"),
    "head": of("head", on=WITH_HEAD),
    "released": of("released", budget=6000),
    "apet + prompt": of("apet", budget=300) + of("prompt", length=3),
    "lora + ia3 + bitfit + apet": of("lora", r=2)
    + of("ia3")
    + of("bitfit")
    + of("apet", budget=400, kinds=KINDS),
    "calibrated prefix": of("prefix", length=3, calibrated=True),
    "calibrated adapter + prompt": of(
        "adapter", bottleneck=4, placement="parallel_attention", calibrated=True
    )
    + of("prompt", length=3, calibrated=True),
    "calibrated lora + ia3 + bitfit + apet": of("lora", r=2, parts=("k", "v"), calibrated=True)
    + of("ia3", calibrated=True)
    + of("bitfit", calibrated=True)
    + of("apet", budget=400, kinds=KINDS, calibrated=True),
}

NUM_CLASSES, NUM_EXAMPLES, NUM_STEPS = 3, 8, 4
# Adam with its usual epsilon turns the sign of a gradient of 1e-9 into a whole step; with a large
# one, values are a smooth function of the gradients, so that comparing them means something.
OPTIMIZER = engine.AdamW(learning_rate=1e-2, head_learning_rate=3e-3, epsilon=1e-2)


@dataclass(frozen=True)
class Worn:
    """A backbone, and the method that is planned for it and may be attached."""

    loaded: Loaded
    config: Any
    sites: Sequence[Site]
    method: Method = field(default_factory=HeadOnly)

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return engine.trained_parameters(self.model)

    def loss_sum(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        return backbones.family_of(self.config).loss_sum(model, tensors, config=self.config)

    def planned(self, row: str, **changes: Any) -> Worn:
        """With the method of a row; where the magnitude of the weights decides, with its mask."""
        method = ROWS[row].plan(self.sites, **changes)
        apet = pet.apet_of(method)
        if apet is not None and apet.mask is None:
            scores = pet.score_shards("magnitude", apet.shapes, whole=self._whole, gradients=None)
            method = pet.with_apet(method, apet.choose(scores))
        return dataclasses.replace(self, method=method)

    def _whole(self, name: str) -> Tensor:
        return engine.read_whole(self.model.get_parameter(name))

    def attached(self) -> Worn:
        build.attach(self.method, self.loaded)
        return self


def backbone_of(name: str, folder: Path) -> Backbone:
    return Backbone(
        str(folder / name),
        num_classes=NUM_CLASSES if name in WITH_HEAD else None,
        dropout=0.0,
    )


def load(backbone: Backbone, ds_config: Mapping[str, Any] | None = None) -> Worn:
    """The bare model, in shards where the DeepSpeed config says so."""
    config = backbones.read_model_config(backbone)
    sites = backbones.sketch_sites(config)
    with engine.building_into_shards(ds_config or {}):
        loaded = backbones.load_model(backbone, config, dtype=torch.float32)
    return Worn(loaded, config, sites)


def make_tensors(backbone: str, index: int) -> dict[str, Tensor]:
    """A global batch; texts are of unequal lengths."""
    generator = torch.Generator().manual_seed(index)
    classes = torch.randint(0, NUM_CLASSES, (NUM_EXAMPLES,), generator=generator)
    if backbone == "vit":
        pixels = torch.randn((NUM_EXAMPLES, 3, 16, 16), generator=generator)
        return {"pixel_values": pixels, "labels": classes}
    ids, mask = _make_texts(10, generator)
    labels, is_target = _make_texts(6, generator)
    is_text = backbone in T5S
    return {
        "input_ids": ids.masked_fill(~mask, 0),
        "attention_mask": mask.long(),
        "labels": labels.masked_fill(~is_target, IGNORED) if is_text else classes,
    }


def _make_texts(width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids (examples, width), and where they count: of all but the first, some end earlier."""
    ids = torch.randint(2, 60, (NUM_EXAMPLES, width), generator=generator)
    lengths = torch.randint(2, width, (NUM_EXAMPLES, 1), generator=generator)
    lengths[0] = width
    return ids, torch.arange(width) < lengths


def num_targets(tensors: Mapping[str, Tensor]) -> int:
    return int((tensors["labels"] != IGNORED).sum())


def train_plainly(worn: Worn, backbone: str) -> tuple[list[float], dict[str, Tensor]]:
    """Losses; first gradients and final values by name. Plain torch, one process."""
    head = {name: p for name, p in worn.trained.items() if name in worn.loaded.head_names}
    tuned = {name: p for name, p in worn.trained.items() if name not in head}
    groups = [
        {"params": list(tuned.values()), "lr": OPTIMIZER.learning_rate},
        {"params": list(head.values()), "lr": OPTIMIZER.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], eps=OPTIMIZER.epsilon, weight_decay=0.0
    )
    losses, tensors = [], {}
    worn.model.train()
    for index in range(NUM_STEPS):
        batch = make_tensors(backbone, index)
        optimizer.zero_grad()
        loss = worn.loss_sum(worn.model, batch) / num_targets(batch)
        loss.backward()
        if index == 0:
            tensors = {f"gradient/{n}": p.grad.clone() for n, p in worn.trained.items()}
        optimizer.step()
        losses.append(loss.item())
    return losses, tensors | {f"trained/{n}": p.detach() for n, p in worn.trained.items()}


def train_in_engine(
    row: str, backbone: str, stage: int, folder: Path
) -> tuple[list[float], dict[str, Tensor], int]:
    """The same over all ranks, and how many numbers of the backbone changed that should not."""
    ds_config = engine.compose_ds_config(
        # Nothing stays whole: the weights are gathered for every use.
        {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
        precision="fp32",
        micro_batch_size=NUM_EXAMPLES,
        num_micro_batches=1,
        clip=None,
    )
    worn = load(backbone_of(backbone, folder), ds_config).planned(row).attached()
    runner = engine.Engine(
        worn.model,
        head_names=worn.loaded.head_names,
        optimizer=OPTIMIZER,
        ds_config=ds_config,
    )
    losses: list[float] = []
    tensors: dict[str, Tensor] = {}
    plain_backward = runner.backward
    runner.backward = _looking(runner, into=tensors)  # type: ignore[method-assign]
    for index in range(NUM_STEPS):
        report = engine.train_step(
            runner, _step_of(backbone, index), loss_sum=worn.loss_sum, learning_rate_factor=1.0
        )
        losses.append(report.loss)
        runner.backward = plain_backward  # type: ignore[method-assign]
    tensors |= {f"trained/{name}": tensor for name, tensor in runner.read_trained().items()}
    return losses, tensors, count_changed(runner.module, folder / backbone)


def _looking(runner: engine.Engine, *, into: dict[str, Tensor]) -> Callable[[Tensor], None]:
    """A backward that notes the gradients, which are whole after it and gone after the step."""
    from deepspeed.utils import safe_get_full_grad

    plain_backward = runner.backward

    def backward(loss: Tensor) -> None:
        plain_backward(loss)
        for name, parameter in engine.trained_parameters(runner.module).items():
            gradient = safe_get_full_grad(parameter)
            if gradient is not None:
                into[f"gradient/{name}"] = gradient.detach().float().clone()

    return backward


def _step_of(backbone: str, index: int) -> Step:
    """This rank's part of a global batch."""
    whole = make_tensors(backbone, index)
    mine = {name: t.tensor_split(dist.world_size())[dist.rank()] for name, t in whole.items()}
    rows = np.arange(len(mine["labels"]))
    batch = Batch(mine, num_targets=num_targets(mine), num_tokens=len(rows), rows=rows)
    return Step(index, epoch=0, micro_batches=[batch], num_targets=num_targets(whole))


def count_changed(model: nn.Module, folder: Path) -> int:
    """How many frozen numbers of the model differ from those in the file of its backbone."""
    stored = read_file(folder)
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    with gathered(list(frozen.values())):
        return sum(int((p.cpu() != stored[name]).sum()) for name, p in frozen.items())


@cache
def read_file(folder: Path) -> dict[str, Tensor]:
    """What the file of a backbone holds, by the names of the model."""
    tensors: dict[str, Tensor] = load(backbone_of(folder.name, folder.parent)).model.state_dict()
    return tensors


def _try_case(
    row: str, backbone: str, stage: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What fails does so on all ranks alike, and the cases behind it shall run."""
    try:
        losses, tensors, num_changed = train_in_engine(row, backbone, stage, folder)
    except Exception:
        return {"fault": traceback.format_exc()}, {}
    return {"losses": losses, "num_changed": num_changed}, tensors


def main() -> None:
    argument = json.loads(sys.argv[1])
    folder, out = Path(argument["folder"]), Path(argument["out"])
    engine.join_processes(timeout_seconds=60)
    backbones.quiet_transformers(show_progress=False)
    for name, (row, backbone, stage) in argument["cases"].items():
        gc.freeze()  # DeepSpeed collects garbage at every start, among all that was ever imported
        numbers, tensors = _try_case(row, backbone, stage, folder)
        if dist.is_main():
            (out / f"{name}.json").write_text(json.dumps(numbers))
            safetensors.torch.save_file(tensors, out / f"{name}.safetensors")
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
