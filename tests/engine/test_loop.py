"""What the training loop reports of every step. This file is also the worker that trains.

As a script: ``test_loop.py '{"folder": ..., "out": ...}'``, on every rank.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.data import Encoded, TrainLoader
from scalepet.engine import StepReport, learning_rate_factor, train_step
from scalepet.pet import plan_apet

NUM_ROWS, BATCH_SIZE, MICRO_BATCH_SIZE = 17, 8, 3  # the last batch of an epoch is one row
NUM_STEPS, NUM_MORE_STEPS = 4, 1
LEARNING_RATE, HEAD_LEARNING_RATE, EPSILON = 1e-2, 3e-3, 1e-2


@dataclass(frozen=True)
class Case:
    """One training."""

    backbone: str
    stage: int
    clip: float | None = None


CASES = {
    "bert, stage 0": Case("bert", stage=0),
    "t5, stage 0, clip": Case("t5", stage=0, clip=0.1),
    "bert, stage 2, clip": Case("bert", stage=2, clip=0.1),
    "t5, stage 3": Case("t5", stage=3),
}

schedule = partial(learning_rate_factor, "linear", num_steps=6, num_warmup_steps=2)


def make_rows(name: str) -> Encoded:
    """Random rows of unequal lengths, the same everywhere."""
    generator = np.random.default_rng(5)
    sources = [generator.integers(2, 60, n) for n in generator.integers(3, 9, NUM_ROWS)]
    texts = [generator.integers(2, 60, n) for n in generator.integers(2, 7, NUM_ROWS)]
    classes = generator.integers(0, 3, NUM_ROWS)
    sources, texts = ([row.astype(np.int32) for row in rows] for rows in (sources, texts))
    if name == "t5":
        return Encoded("text", sources, texts)
    classes = classes.astype(np.int32)
    return Encoded("head", sources, list(classes[:, None]), classes=classes)


def make_loader(name: str) -> TrainLoader:
    return TrainLoader(
        make_rows(name),
        batch_size=BATCH_SIZE,
        micro_batch_size=MICRO_BATCH_SIZE,
        rank=dist.rank(),
        world_size=dist.world_size(),
        seed=1,
        pad_id=0,
    )


def make_model(
    name: str, folder: Path, ds_config: Mapping[str, Any]
) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """The backbone with what is trained on it, its config, and the names of its head."""
    num_classes = 3 if name == "bert" else None
    backbone = Backbone(str(folder / name), num_classes=num_classes, dropout=0.0)
    config = backbones.read_model_config(backbone)
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(backbone, config, dtype=torch.float32)
    plan_apet(backbones.sketch_sites(config), budget=400, seed=2).attach(loaded.model)
    for parameter_name, parameter in loaded.model.named_parameters():
        if parameter_name in loaded.head_names:
            parameter.requires_grad_(True)
    return loaded.model, config, loaded.head_names


def row_loss(name: str, model: nn.Module, source: Any, target: Any) -> Tensor:
    """Summed cross-entropy of one row, without batch, padding or mask."""
    ids, labels = (torch.from_numpy(array).long()[None] for array in (source, target))
    if name == "bert":
        logits = model(input_ids=ids).logits
    else:
        start = torch.zeros(1, 1, dtype=torch.int64)
        decoder_inputs = torch.cat([start, labels[:, :-1]], dim=1)
        logits = model(input_ids=ids, decoder_input_ids=decoder_inputs).logits[0]
    return nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")


def train_plainly(case: Case, folder: Path) -> list[dict[str, float]]:
    """The same training by torch alone, row after row: loss, norm and tokens of every step."""
    name = case.backbone
    model, _, head_names = make_model(name, folder, {})
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained.items() if n not in head_names], "peak": LEARNING_RATE},
        {"params": [trained[n] for n in head_names], "peak": HEAD_LEARNING_RATE},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, eps=EPSILON, weight_decay=0.0)
    rows, loader, found = make_rows(name), make_loader(name), []
    for index in range(NUM_STEPS + NUM_MORE_STEPS):
        chosen = loader.global_rows(index)
        losses = [row_loss(name, model, rows.input_ids[r], rows.targets[r]) for r in chosen]
        loss = sum(losses) / sum(len(rows.targets[r]) for r in chosen)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(index)
        norms = torch.stack([p.grad.norm() for p in trained.values()])
        if case.clip is not None:
            nn.utils.clip_grad_norm_(trained.values(), case.clip)
        optimizer.step()
        num_tokens = sum(len(rows.input_ids[r]) for r in chosen)
        if name == "t5":
            num_tokens += sum(len(rows.targets[r]) for r in chosen)
        found.append({"loss": loss.item(), "norm": float(norms.norm()), "tokens": num_tokens})
    return found


@pytest.fixture(scope="module")
def plain(tiny_backbones: Path) -> dict[str, list[dict[str, float]]]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    found = {name: train_plainly(case, tiny_backbones) for name, case in CASES.items()}
    torch.set_num_threads(num_threads)
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def trained(
    request: pytest.FixtureRequest,
    tiny_backbones: Path,
    run_ranks: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """What every rank saw of each training."""
    out = tmp_path_factory.mktemp("loop")
    argument = {"folder": str(tiny_backbones), "out": str(out)}
    run_ranks(Path(__file__), argument, num_ranks=request.param, timeout_seconds=100)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.distributed
@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", CASES)
class TestReports:
    def test_steps_and_epochs(self, name: str, trained: list[Any]) -> None:
        for seen in trained:
            reports = seen[name]["reports"]
            assert [report["num_steps"] for report in reports] == [1, 2, 3, 4, 5]
            assert [report["epoch"] for report in reports] == [0, 0, 0, 1, 1]

    def test_losses_are_those_of_plain_torch(self, name: str, trained: Any, plain: Any) -> None:
        expected = [step["loss"] for step in plain[name]]
        for seen in trained:
            found = [report["loss"] for report in seen[name]["reports"]]
            assert found == pytest.approx(expected, abs=1e-5)
            assert found == [report["loss"] for report in trained[0][name]["reports"]]

    def test_learning_rates(self, name: str, trained: list[Any]) -> None:
        shares = [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4]
        for seen in trained:
            found = [report["learning_rate"] for report in seen[name]["reports"]]
            assert found == pytest.approx([LEARNING_RATE * share for share in shares])

    def test_gradient_norms_before_clipping(
        self, name: str, trained: list[Any], plain: Any
    ) -> None:
        """At stage 0 in fp32 DeepSpeed tells none, whether it clips or not."""
        expected = [step["norm"] for step in plain[name]]
        for seen in trained:
            found = [report["gradient_norm"] for report in seen[name]["reports"]]
            if CASES[name].stage == 0:
                assert found == [None] * len(expected)
            else:
                assert found == pytest.approx(expected, rel=1e-4)

    def test_tokens_are_those_of_the_global_batch(
        self, name: str, trained: list[Any], plain: Any
    ) -> None:
        for seen in trained:
            found = [report["num_tokens"] for report in seen[name]["reports"]]
            assert found == [step["tokens"] for step in plain[name]]
            assert found[2] < 15, "the one row that is left"

    def test_seconds(self, name: str, trained: list[Any]) -> None:
        for seen in trained:
            seconds = [report["seconds"] for report in seen[name]["reports"]]
            assert all(second > 0 for second in seconds)
            assert sum(seconds) <= seen[name]["seconds"]

    def test_every_forward_is_one_of_training(self, name: str, trained: list[Any]) -> None:
        """Also after an evaluation, which leaves the model in its own mode."""
        num_micro_batches = {1: 3, 2: 2}[len(trained)]
        for seen in trained:
            num_forwards = num_micro_batches * (NUM_STEPS + NUM_MORE_STEPS)
            assert seen[name]["training"] == [True] * num_forwards


def test_tokens_per_second() -> None:
    report = StepReport(
        num_steps=1,
        epoch=0,
        loss=1.0,
        learning_rate=0.1,
        gradient_norm=None,
        num_tokens=30,
        seconds=1.5,
    )
    assert report.tokens_per_second == 20
    assert report.speed == {"tokens_per_second": 20}
    of_pictures = replace(report, num_tokens=0, num_pictures=6)
    assert of_pictures.speed == {"pictures_per_second": 4}


def start_engine(case: Case, folder: Path, loader: TrainLoader) -> tuple[engine.Engine, Any]:
    ds_config = engine.compose_ds_config(
        {"zero_optimization": {"stage": case.stage}},
        precision="fp32",
        micro_batch_size=MICRO_BATCH_SIZE,
        num_micro_batches=loader.num_micro_batches,
        clip=case.clip,
    )
    model, config, head_names = make_model(case.backbone, folder, ds_config)
    optimizer = engine.AdamW(LEARNING_RATE, HEAD_LEARNING_RATE, epsilon=EPSILON)
    runner = engine.Engine(model, head_names=head_names, optimizer=optimizer, ds_config=ds_config)
    return runner, partial(backbones.family_of(config).loss_sum, config=config)


def train(case: Case, folder: Path) -> dict[str, Any]:
    loader, training = make_loader(case.backbone), []
    runner, loss_sum = start_engine(case, folder, loader)

    def loss_and_look(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
        training.append(runner.module.training)
        result: Tensor = loss_sum(model, tensors)
        return result

    started = time.perf_counter()
    reports: list[StepReport] = []
    for index in range(NUM_STEPS + NUM_MORE_STEPS):
        report = train_step(
            runner,
            loader.step(index),
            loss_sum=loss_and_look,
            learning_rate_factor=schedule(index),
        )
        reports.append(report)
        runner.module.eval()
    return {
        "reports": [asdict(report) for report in reports],
        "training": training,
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    found = {name: train(case, Path(argument["folder"])) for name, case in CASES.items()}
    (Path(argument["out"]) / f"{dist.rank()}.json").write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
