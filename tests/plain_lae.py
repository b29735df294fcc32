"""LAE in one process and plain torch, straight from the published algorithm (arXiv 2303.10070).

No engine, no shards, no offload: what every run of scalepet over the same stream must come to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from steady import EPSILON
from torch import Tensor

from scalepet import build, pet
from scalepet.config import read_stream_config
from scalepet.recipes.prepare_stream import prepare_stream


@dataclass
class Plain:
    """What came out."""

    losses: list[float] = field(default_factory=list)
    online: dict[str, Tensor] = field(default_factory=dict)
    offline: dict[str, Tensor] = field(default_factory=dict)
    heads: list[Tensor] = field(default_factory=list)
    matrix: dict[str, list[list[float]]] = field(
        default_factory=lambda: {"online": [], "offline": [], "ensemble": []}
    )


def plain_lae(path: Path, folder: Path) -> Plain:
    """Learn the stream of a config; ``folder`` is made and not used."""
    config = read_stream_config(path, [f"output={folder}"])
    prepared = prepare_stream(config, resume=False)
    loaded = build.load_backbone(prepared.plan)
    model: Any = loaded.model
    prepared.plan.method.attach(model)
    tuned = {n: p for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n}
    out, heads = Plain(), list[list[Tensor]]()
    width = model.config.hidden_size
    for index, lesson in enumerate(prepared.lessons):
        if index == 1:  # the offline copy starts with the second task
            out.offline = {n: p.detach().clone() for n, p in tuned.items()}
        num_new = len(lesson.classes)
        weight = pet.normal(f"head {index}", (num_new, width), std=0.001, seed=config.seed)
        heads.append([weight.requires_grad_(), torch.zeros(num_new).requires_grad_()])
        optimizer = torch.optim.AdamW(
            [
                {"params": list(tuned.values()), "lr": config.train.learning_rate},
                {"params": heads[-1], "lr": config.train.head_learning_rate},
            ],
            eps=EPSILON,
            weight_decay=0.0,
        )
        num_frozen = config.lae.freeze_epochs * lesson.loader.steps_per_epoch if index else 0
        alpha = (1 - config.lae.offline[0].travel) ** (1 / lesson.num_steps)
        model.train()
        for step in range(lesson.num_steps):
            for parameter in tuned.values():
                parameter.requires_grad_(step >= num_frozen)
            optimizer.zero_grad(set_to_none=True)  # a frozen one is not seen by Adam
            batches = lesson.loader.step(step).micro_batches
            loss = sum(new_loss(model, heads[-1], batch.tensors) for batch in batches)
            loss = loss / sum(batch.num_targets for batch in batches)
            loss.backward()
            seen = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(seen, config.train.clip)
            optimizer.step()
            out.losses.append(float(loss.detach()))
            for name, copy in out.offline.items():  # after every step, frozen epochs too
                copy.mul_(alpha).add_((1 - alpha) * tuned[name].detach())
        examine(model, prepared, tuned, heads, out, index)
    out.online = {n: p.detach().clone() for n, p in tuned.items()}
    out.heads = [torch.cat([head[own].detach() for head in heads]) for own in (0, 1)]
    return out


def pooled(model: Any, tensors: dict[str, Tensor]) -> Tensor:
    return model.bert(tensors["input_ids"], attention_mask=tensors["attention_mask"])[1]


def new_loss(model: Any, head: list[Tensor], tensors: dict[str, Tensor]) -> Tensor:
    """Among the new task's classes alone."""
    return F.cross_entropy(
        F.linear(pooled(model, tensors), *head), tensors["labels"], reduction="sum"
    )


@torch.no_grad()
def examine(
    model: Any, prepared: Any, tuned: Any, heads: list[list[Tensor]], out: Plain, index: int
) -> None:
    model.eval()
    weight, bias = (torch.cat([head[own] for head in heads]) for own in (0, 1))
    row: dict[str, list[float]] = {name: [] for name in out.matrix}
    for lesson in prepared.lessons[: index + 1]:
        rows = lesson.eval.batch(torch.arange(lesson.eval.num_rows).numpy(), pad_id=0)
        right = torch.tensor(lesson.classes)[rows.tensors["labels"]]

        def logits(rows: Any = rows) -> Tensor:
            return F.linear(pooled(model, rows.tensors), weight, bias)

        online = logits()
        offline = with_numbers(tuned, out.offline, logits)
        for name, scores in {
            "online": online,
            "offline": offline,
            "ensemble": torch.maximum(online.softmax(-1), offline.softmax(-1)),
        }.items():
            row[name].append(float((scores.argmax(-1) == right).double().mean()))
    for name, accuracies in row.items():
        out.matrix[name].append(accuracies)


def with_numbers(tuned: dict[str, Tensor], numbers: dict[str, Tensor], run: Any) -> Tensor:
    kept = {name: p.detach().clone() for name, p in tuned.items()}
    for name, one in numbers.items():
        tuned[name].copy_(one)
    result: Tensor = run()
    for name, one in kept.items():
        tuned[name].copy_(one)
    return result
