"""Every method on every backbone under every ZeRO stage keeps the contract: see ``contract.py``."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from scalepet import backbones, build, engine, pet
from scalepet.recipes.masks import saved_positions, with_saved_positions

WORKER = Path(__file__).with_name("contract.py")


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["contract"] = module
    spec.loader.exec_module(module)
    return module


contract = load_worker()
ROWS, T5S = contract.ROWS, contract.T5S
GRID = [(row, name) for row, found in ROWS.items() for name in found.on]
ON_PICTURES = ("apet", "lora", "adapter beside", "prefix", "prompt", "calibrated prefix")

Wear = Callable[..., Any]


def each_row(on: tuple[str, ...] = contract.BACKBONES) -> pytest.MarkDecorator:
    """The test runs with every row on every backbone, or on those of ``on``."""
    grid = [(row, name) for row, name in GRID if name in on]
    return pytest.mark.parametrize(("row", "name"), grid, ids=[f"{r} on {b}" for r, b in grid])


@pytest.fixture(scope="module")
def wear(tiny_backbones: Path) -> Wear:
    """``wear("lora", "bert")``: a fresh backbone with the row's method, planned, not attached."""

    @cache
    def load(name: str, checkpoint_activations: bool) -> Any:
        backbone = contract.backbone_of(name, tiny_backbones)
        return contract.load(
            dataclasses.replace(backbone, checkpoint_activations=checkpoint_activations)
        )

    def fresh(row: str, name: str, *, checkpoint_activations: bool = False, **changes: Any) -> Any:
        bare = load(name, checkpoint_activations)
        loaded = dataclasses.replace(bare.loaded, model=copy.deepcopy(bare.model))
        return dataclasses.replace(bare, loaded=loaded).planned(row, **changes)

    return fresh


@torch.no_grad()
def logits_of(model: Any, name: str) -> Tensor:
    """In eval mode, of a batch with padding."""
    tensors = contract.make_tensors(name, 0)
    labels = tensors.pop("labels")
    if name in T5S:
        tensors["decoder_input_ids"] = labels.clamp(min=0)
    logits: Tensor = model.eval()(**tensors).logits
    return logits


@torch.no_grad()
def stir(worn: Any) -> None:
    """Move all that is trained by random numbers, as training would."""
    generator = torch.Generator().manual_seed(3)
    for parameter in worn.trained.values():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def layout_of(model: torch.nn.Module) -> dict[str, Any]:
    """What is trained, and where: by name the positions of a mask, else the shape."""
    positions = {n: b.tolist() for n, b in model.named_buffers() if n.endswith("positions")}
    return positions | {n: p.shape for n, p in engine.trained_parameters(model).items()}


@each_row()
def test_the_count_is_known_before_anything_is_built(row, name, wear):
    worn = wear(row, name).attached()
    tuned = [p for n, p in worn.trained.items() if n not in worn.loaded.head_names]
    assert worn.method.num_parameters == sum(p.numel() for p in tuned)
    assert (len(tuned) > 0) == (row != "head")


@each_row()
def test_it_starts_as_the_backbone_or_does_not(row, name, wear):
    worn = wear(row, name)
    bare = logits_of(worn.model, name)
    is_equal = torch.equal(logits_of(worn.attached().model, name), bare)
    assert is_equal == worn.method.starts_as_backbone


@each_row()
def test_the_backbone_can_be_had_back(row, name, wear):
    worn = wear(row, name)
    if not worn.method.keeps_backbone:
        return
    bare = logits_of(worn.model, name)
    with backbones.recording_additions(worn.model) as additions:
        worn.method.attach(worn.model)
    stir(worn)
    tuned = logits_of(worn.model, name)
    assert torch.equal(tuned, bare) == (row == "head")
    with backbones.bare(worn.model):
        assert torch.equal(logits_of(worn.model, name), bare)
    assert torch.equal(logits_of(worn.model, name), tuned)
    backbones.detach(worn.model, additions)
    assert torch.equal(logits_of(worn.model, name), bare)


@each_row()
def test_what_it_owns_is_trained_and_nothing_else(row, name, wear):
    worn = wear(row, name).attached()
    start = copy.deepcopy(worn.model.state_dict())
    optimizer = torch.optim.SGD(worn.trained.values(), lr=1.0)
    for index in range(2):
        worn.loss_sum(worn.model.train(), contract.make_tensors(name, index)).backward()
        without = [n for n, p in worn.model.named_parameters() if p.grad is None]
        assert without == [n for n, p in worn.model.named_parameters() if not p.requires_grad]
        optimizer.step()
    still = {n for n, p in worn.model.named_parameters() if torch.equal(p, start[n])}
    frozen = {n for n, p in worn.model.named_parameters() if not p.requires_grad}
    assert frozen <= still
    assert [n for n in still - frozen if not worn.method.may_rest(n)] == []


@each_row()
def test_its_record_makes_it_again(row, name, wear):
    worn = wear(row, name)
    record = worn.method.record()
    assert json.loads(json.dumps(record)) == record
    again = wear(row, name)
    assert again.method.record() == record
    assert layout_of(again.attached().model) == layout_of(worn.attached().model)


@pytest.mark.parametrize("name", contract.BACKBONES)
@pytest.mark.parametrize(
    "row",
    [
        "apet",
        "apet of rows",
        "apet of heads",
        "apet of blocks",
        "apet concat",
        "apet plug",
        "apet mix",
        "released",
    ],
)
def test_another_seed_trains_something_else(row, name, wear):
    layouts = [layout_of(wear(row, name, seed=seed).attached().model) for seed in (1, 2)]
    assert layouts[0] != layouts[1]


@each_row()
def test_what_was_saved_computes_the_same(row, name, wear):
    worn = wear(row, name).attached()
    stir(worn)
    tensors = {n: p.detach() for n, p in worn.trained.items()}
    file = safetensors.torch.save(tensors | saved_positions(worn.method))
    fresh = wear(row, name)
    saved = safetensors.torch.load(file)
    fixed = {n: tensor for n, tensor in saved.items() if n.endswith(pet.POSITIONS)}
    method = with_saved_positions(ROWS[row].plan(fresh.sites), fixed)
    build.attach(method, fresh.loaded)
    trained = {n: tensor for n, tensor in saved.items() if n not in fixed}
    engine.load_trained(fresh.model, trained)
    assert torch.equal(logits_of(fresh.model, name), logits_of(worn.model, name))


@each_row()
def test_merged_into_a_plain_model_it_computes_the_same(row, name, wear):
    worn, plain = wear(row, name).attached(), wear(row, name).model
    stir(worn)
    trained = {n: p.detach() for n, p in worn.trained.items()}
    if worn.method.cannot_merge is not None:
        return
    with torch.no_grad():
        for n, parameter in plain.named_parameters():
            of_head = trained[n] if n in worn.loaded.head_names else None
            merged = worn.method.merged(n, parameter, trained) if of_head is None else of_head
            parameter.copy_(merged)
    torch.testing.assert_close(
        logits_of(plain, name), logits_of(worn.model, name), atol=1e-5, rtol=1e-5
    )


def test_what_can_be_merged_is_known_from_the_plan(wear):
    mergeable = [(row, name) for row, name in GRID if wear(row, name).method.cannot_merge is None]
    everywhere = ["apet", "apet of rows", "apet of heads", "apet of blocks", "apet by magnitude"]
    everywhere += ["lora", "lora everywhere", "ia3", "full"]
    assert mergeable == [
        (row, name)
        for row, name in GRID
        if row in everywhere
        or row == "head"
        or (row.endswith(("bitfit", "lora + ia3 + bitfit + apet")) and name not in T5S)
    ]


@each_row(on=T5S)
def test_it_writes_with_and_without_a_cache_the_same(row, name, wear):
    worn = wear(row, name).attached()
    stir(worn)
    batch = contract.make_tensors(name, 0)
    texts = [
        backbones.write_text(worn.model.eval(), batch, max_new_tokens=6, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*texts)


@each_row(on=T5S)
@torch.no_grad()
def test_a_label_word_has_the_probability_that_the_loss_says(row, name, wear):
    worn = wear(row, name).attached()
    stir(worn)
    batch, word = contract.make_tensors(name, 0), [7, 30, 1]
    batch["labels"] = torch.tensor(word).expand(contract.NUM_EXAMPLES, -1)
    model = worn.model.eval()
    scores = backbones.score_label_words(model, batch, [word, [4, 1]], config=model.config)
    assert float(scores[:, 0].sum()) == pytest.approx(-float(worn.loss_sum(worn.model, batch)))


@each_row()
def test_activation_checkpointing_changes_nothing(row, name, wear):
    results = []
    for checkpoint_activations in (False, True):
        worn = wear(row, name, checkpoint_activations=checkpoint_activations).attached()
        stir(worn)
        batch = contract.make_tensors(name, 0)
        loss = worn.loss_sum(worn.model.train(), batch) / contract.num_targets(batch)
        loss.backward()
        results.append({"loss": loss.detach()} | {n: p.grad for n, p in worn.trained.items()})
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-4)


STAGES = {1: (3,), 2: (0, 2, 3)}
"""By number of ranks."""
TRAINED = [
    (row, name)
    for row, name in GRID
    if name in ("t5-gated", "bert") or (name == "vit" and row in ON_PICTURES)
]


@pytest.fixture(scope="module", params=STAGES, ids=["1 rank", "2 ranks"])
def trained(request, tiny_backbones, run_ranks, tmp_path_factory) -> tuple[int, Path]:
    """All cases trained in one group of processes: (number of ranks, folder of results)."""
    out = tmp_path_factory.mktemp("contract")
    cases = {
        f"{row} {name} {stage}": (row, name, stage)
        for row, name in TRAINED
        for stage in STAGES[request.param]
    }
    argument = {"folder": str(tiny_backbones), "out": str(out), "cases": cases}
    run_ranks(WORKER, argument, num_ranks=request.param, timeout_seconds=300)
    return request.param, out


@pytest.fixture(scope="module")
def train_plainly(wear) -> Callable[[str, str], Any]:
    """The same in plain torch; it knows no stages."""
    return cache(lambda row, name: contract.train_plainly(wear(row, name).attached(), name))


@pytest.mark.distributed
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("row", "name"), TRAINED, ids=[f"{r} on {b}" for r, b in TRAINED])
def test_training_equals_plain_torch(row, name, trained, train_plainly):
    """Losses, first gradients and final values, of any ranks and stages."""
    num_ranks, out = trained
    losses, tensors = train_plainly(row, name)
    for stage in STAGES[num_ranks]:
        stem = f"{row} {name} {stage}"
        numbers = json.loads((out / f"{stem}.json").read_text())
        assert "fault" not in numbers, numbers["fault"]
        assert numbers["losses"] == pytest.approx(losses, abs=1e-5), f"stage {stage}"
        assert numbers["num_changed"] == 0, f"stage {stage}: frozen numbers have changed"
        found = safetensors.torch.load_file(out / f"{stem}.safetensors")
        assert found.keys() == tensors.keys()
        for key, expected in tensors.items():
            say = partial("stage {}: {}: {}".format, stage, key)
            torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=1e-4, msg=say)
