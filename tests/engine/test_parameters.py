"""Parameters, whole or in shards of sizes that do not come out even. This file is also the worker.

As a script: ``test_parameters.py '{"folder": ..., "out": ...}'``, on every rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.engine import full_shape, load_trained, trained_parameters
from scalepet.engine.parameters import gathered, shard_of
from scalepet.pet import plan_apet

# Every size is odd, so that no tensor can be cut into two equal halves.
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 15,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 21,
    "max_position_embeddings": 33,
    "type_vocab_size": 1,
}
NUM_CLASSES = 3
CUT_ALL = {"stage": 3, "stage3_param_persistence_threshold": 0}
CASES: dict[str, dict[str, Any]] = {
    "stage 0": {"stage": 0},
    "stage 1, bf16": {"stage": 1},
    "stage 2": {"stage": 2},
    "stage 3": CUT_ALL,
    "stage 3, all persistent": {"stage": 3, "stage3_param_persistence_threshold": 10**9},
    "stage 3, offload, bf16": {
        **CUT_ALL,
        "offload_param": {"device": "cpu"},
        "offload_optimizer": {"device": "cpu"},
    },
}
SHARDED = [case for case, zero in CASES.items() if zero["stage"] == 3]
HAND_WRITTEN = "bert.encoder.layer.0.output.dense.bias"


def precision_of(case: str) -> engine.Precision:
    return "bf16" if case.endswith("bf16") else "fp32"


def make_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> backbones.Loaded:
    backbone = Backbone(str(folder), num_classes=NUM_CLASSES, dropout=0.0, seed=4)
    return backbones.load_model(backbone, backbones.read_model_config(backbone), dtype=dtype)


def attach_method(loaded: backbones.Loaded, folder: Path) -> None:
    config = backbones.read_model_config(Backbone(str(folder), num_classes=NUM_CLASSES))
    sites = backbones.sketch_sites(config)
    kinds = ("matrix", "embedding", "norm", "bias")
    method = plan_apet(
        sites, budget=7 * len(sites), kinds=kinds, share="even", group_by="role", seed=2
    )
    method.attach(loaded.model)
    for name, parameter in loaded.model.named_parameters():
        if name in loaded.head_names:
            parameter.requires_grad_(True)


def make_numbers(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shapes[name], generator=generator) for name in sorted(shapes)}


class TestWhole:
    @pytest.fixture
    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
        model[1].weight.requires_grad_(False)
        return model

    def test_trained_parameters(self, model: nn.Module) -> None:
        assert list(trained_parameters(model)) == ["0.weight", "0.bias", "1.bias"]
        assert trained_parameters(model.requires_grad_(False)) == {}

    def test_tied_parameters_are_there_once(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        assert list(trained_parameters(model)) == ["0.weight", "0.bias", "1.bias"]

    def test_the_full_shape_is_the_shape(self, model: nn.Module) -> None:
        assert full_shape(model[0].weight) == (5, 3)
        assert full_shape(nn.Parameter(torch.tensor(1.0))) == ()

    def test_the_full_shape_of_a_shard(self) -> None:
        shard: Any = nn.Parameter(torch.zeros(0))
        shard.ds_shape = torch.Size([5, 3])
        assert full_shape(shard) == (5, 3)

    def test_gathered_changes_nothing(self, model: nn.Module) -> None:
        with torch.no_grad(), gathered([model[0].bias], write=True):
            model[0].bias.fill_(2.0)
        assert model[0].bias.tolist() == [2.0] * 5
        with gathered([]):
            pass

    def test_load_trained(self, model: nn.Module) -> None:
        frozen = model[1].weight.clone()
        numbers = make_numbers({n: full_shape(p) for n, p in model.named_parameters()}, seed=1)
        del numbers["1.weight"]
        load_trained(model, numbers)
        for name, parameter in trained_parameters(model).items():
            assert torch.equal(parameter, numbers[name])
            assert parameter.requires_grad
        assert torch.equal(model[1].weight, frozen)

    @pytest.mark.parametrize("name", ["1.bias", "1.weight"])
    def test_load_trained_takes_all_that_is_trained_and_nothing_else(
        self, name: str, model: nn.Module
    ) -> None:
        names = {*trained_parameters(model)} ^ {name}
        with pytest.raises(AssertionError, match=name):
            load_trained(model, {n: torch.zeros(()) for n in names})

    @pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 16])
    def test_shards_are_equal_parts_with_zeros_behind(
        self, world_size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, size = torch.arange(1.0, 16.0).reshape(5, 3), -(-15 // world_size)
        parameter = SimpleNamespace(ds_tensor=torch.empty(size))
        monkeypatch.setattr(dist, "world_size", lambda: world_size)
        shards = []
        for rank in range(world_size):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            shards.append(shard_of(whole, parameter))
        assert {len(shard) for shard in shards} == {size}
        padding = [0.0] * (size * world_size - 15)
        assert torch.cat(shards).tolist() == [*range(1, 16), *padding]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("odd-bert")
    transformers.BertModel(transformers.BertConfig(**SHAPE)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ranks(
    folder: Path, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Tensor]]:
    """All that each of two ranks saw: ``case/what/parameter`` -> tensor."""
    out = tmp_path_factory.mktemp("parameters")
    argument = {"folder": str(folder), "out": str(out)}
    run_ranks(Path(__file__), argument, num_ranks=2, timeout_seconds=100)
    return [safetensors.torch.load_file(out / f"{rank}.safetensors") for rank in range(2)]


def part(seen: Mapping[str, Tensor], case: str, what: str) -> dict[str, Tensor]:
    start = f"{case}/{what}/"
    found = {name.removeprefix(start): t for name, t in seen.items() if name.startswith(start)}
    assert found, f"nothing is seen of {start}"
    return found


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].float(), tensor.float()), name


@pytest.fixture
def plain(folder: Path) -> nn.Module:
    """The model as it is in one process, with the method on it."""
    loaded = make_model(folder)
    attach_method(loaded, folder)
    return loaded.model


@pytest.mark.distributed
@pytest.mark.timeout(150)
@pytest.mark.parametrize("case", CASES)
class TestTwoRanks:
    @pytest.fixture
    def trained(self, case: str, plain: nn.Module) -> dict[str, Tensor]:
        """What the worker loads, as precise as the model can hold it."""
        shapes = {name: tuple(p.shape) for name, p in trained_parameters(plain).items()}
        dtype = torch.bfloat16 if precision_of(case) == "bf16" else torch.float32
        return {n: t.to(dtype) for n, t in make_numbers(shapes, seed=1).items()}

    def test_sizes_do_not_come_out_even(self, case: str, plain: nn.Module) -> None:
        assert all(parameter.numel() % 2 for parameter in plain.parameters())
        assert {"classifier.weight", "classifier.bias"} < {*trained_parameters(plain)}

    def test_full_shapes(self, case: str, ranks: Any, plain: nn.Module) -> None:
        expected = {name: list(p.shape) for name, p in plain.named_parameters()}
        for seen in ranks:
            for moment in ("shape at attach", "shape in engine"):
                found = {name: t.tolist() for name, t in part(seen, case, moment).items()}
                assert found == expected

    def test_gathered_backbone(self, case: str, ranks: Any, plain: nn.Module) -> None:
        dtype = torch.bfloat16 if precision_of(case) == "bf16" else torch.float32
        expected = {
            name: parameter.detach().to(dtype)
            for name, parameter in plain.named_parameters()
            if not parameter.requires_grad
        }
        for seen in ranks:
            assert_same(part(seen, case, "frozen"), expected)

    def test_load_trained(self, case: str, ranks: Any, trained: dict[str, Tensor]) -> None:
        for seen in ranks:
            assert_same(part(seen, case, "loaded"), trained)

    def test_read_trained(self, case: str, ranks: Any, trained: dict[str, Tensor]) -> None:
        for seen in ranks:
            found = part(seen, case, "read")
            assert_same(found, trained)
            assert {tensor.dtype for tensor in found.values()} == {torch.float32}

    def test_masters_are_live_and_on_one_rank_each(self, case: str, ranks: Any) -> None:
        for seen in ranks:
            assert_same(part(seen, case, "mastered"), part(seen, case, "read"))
            assert_same(part(seen, case, "mastered after a step"), part(seen, case, "stepped"))

    def test_write_masters(self, case: str, ranks: Any) -> None:
        for seen in ranks:
            assert_same(part(seen, case, "rewritten"), part(seen, case, "read"))

    def test_read_after_a_step(self, case: str, ranks: Any, trained: dict[str, Tensor]) -> None:
        first, second = (part(seen, case, "stepped") for seen in ranks)
        assert_same(first, second)
        for name, tensor in trained.items():
            if name.endswith("key.bias_values"):
                continue  # attention does not see it, so it has no gradient
            # Adam's first step is the learning rate wherever there is a gradient.
            moved = (first[name] - tensor.float()).abs()
            assert moved.max() == pytest.approx(0.01, rel=1e-2), name

    def test_restore(self, case: str, ranks: Any) -> None:
        for seen in ranks:
            assert_same(part(seen, case, "restored"), part(seen, case, "stopped"))
            moments = part(seen, case, "moments")
            assert_same(part(seen, case, "restored moments"), moments)
            assert len(moments) == 2 * len(part(seen, case, "stopped"))
            seen_by_loss = [t for name, t in moments.items() if "key.bias" not in name]
            assert all(tensor.any() for tensor in seen_by_loss)

    def test_a_restored_engine_goes_on_as_the_first_one(self, case: str, ranks: Any) -> None:
        for seen in ranks:
            assert_same(part(seen, case, "resumed"), part(seen, case, "went on"))
            assert not torch.equal(
                part(seen, case, "went on")["classifier.bias"],
                part(seen, case, "stopped")["classifier.bias"],
            )


@pytest.mark.distributed
@pytest.mark.timeout(150)
@pytest.mark.parametrize("case", SHARDED)
class TestTwoShardedRanks:
    def test_shards(self, case: str, ranks: Any, plain: nn.Module) -> None:
        for rank, seen in enumerate(ranks):
            for name, shard in part(seen, case, "shard").items():
                size = plain.get_parameter(name).numel()
                assert len(shard) == (size + 1) // 2
                kept = slice(0, len(shard) - rank)  # rank 1 holds one number of padding
                assert torch.equal(shard[kept], part(seen, case, "cut")[name][kept])

    def test_what_rank_0_writes_reaches_all(self, case: str, ranks: Any) -> None:
        for seen in ranks:
            (written,) = part(seen, case, "written").values()
            assert written.tolist() == [7.0] * 15

    def test_only_shards_stay(self, case: str, ranks: Any) -> None:
        for seen in ranks:
            sizes = part(seen, case, "sizes")
            assert sizes["here"] == (sizes["whole"] if case.endswith("persistent") else 0)


def read_gathered(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    with gathered(list(parameters.values())):
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def shapes_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.tensor(full_shape(p)) for name, p in model.named_parameters()}


def write_by_hand(model: nn.Module) -> dict[str, Tensor]:
    parameter = model.get_parameter(HAND_WRITTEN)
    with torch.no_grad(), gathered([parameter], write=True):
        parameter.fill_(7.0 + dist.rank())
    return read_gathered({HAND_WRITTEN: parameter})


def look_at_shards(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The shards as DeepSpeed holds them, and as ``shard_of`` cuts them out of the whole."""
    shards: dict[str, Any] = {n: p for n, p in model.named_parameters() if hasattr(p, "ds_tensor")}
    whole = read_gathered(shards)
    return {
        "shard": {name: p.ds_tensor.detach().flatten().clone() for name, p in shards.items()},
        "cut": {name: shard_of(whole[name], p) for name, p in shards.items()},
    }


def start(
    case: str,
    folder: Path,
    seen: dict[str, dict[str, Tensor]],
    *,
    numbers: Mapping[str, Tensor] | None = None,
) -> tuple[Any, Any]:
    """A new engine over the model with what is trained in place, and a loss of it."""
    precision = precision_of(case)
    ds_config = engine.compose_ds_config(
        {"zero_optimization": CASES[case]},
        precision=precision,
        micro_batch_size=2,
        num_micro_batches=1,
        clip=None,
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with engine.building_into_shards(ds_config):
        loaded = make_model(folder, dtype=dtype)
    attach_method(loaded, folder)
    model = loaded.model
    seen["shape at attach"] = shapes_of(model)
    trained = trained_parameters(model)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    seen["frozen"] = read_gathered(frozen)
    shapes = {name: full_shape(parameter) for name, parameter in trained.items()}
    load_trained(model, numbers or make_numbers(shapes, seed=1))
    seen["loaded"] = read_gathered(trained)
    if case in SHARDED:
        seen["written"] = write_by_hand(model)
    optimizer = engine.AdamW(learning_rate=0.01, head_learning_rate=0.01)
    runner = engine.Engine(
        model, head_names=loaded.head_names, optimizer=optimizer, ds_config=ds_config
    )
    seen["shape in engine"] = shapes_of(runner.module)
    loss_sum = partial(backbones.FAMILIES["bert"].loss_sum, config=None)
    ids = torch.arange(61).reshape(1, -1)[:, :32]
    tensors = {
        "input_ids": torch.cat([ids, ids + 29]),
        "attention_mask": torch.ones(2, 32, dtype=torch.int64),
        "labels": torch.tensor([0, 2]),
    }
    return runner, lambda: loss_sum(runner.in_training, tensors)


def step(runner: Any, loss: Any) -> dict[str, Tensor]:
    runner.backward(loss())
    runner.step()
    read: dict[str, Tensor] = runner.read_trained()
    return read


def whole_of(masters: Any, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The masters of all ranks, each number from the one rank that has it."""
    wholes = {}
    for name, shard in masters.items():
        assert shard.numbers.dtype == torch.float32
        flat = torch.zeros(like[name].numel())
        flat[shard.start : shard.start + len(shard.numbers)] = shard.numbers
        count = torch.zeros(like[name].numel())
        count[shard.start : shard.start + len(shard.numbers)] = 1
        assert (dist.sum_over_ranks(count) == 1).all(), name
        wholes[name] = dist.sum_over_ranks(flat).view(like[name].shape)
    return wholes


def work(case: str, folder: Path) -> dict[str, Tensor]:
    seen: dict[str, dict[str, Tensor]] = {}
    runner, loss = start(case, folder, seen)
    seen["read"] = runner.read_trained()
    seen |= look_at_shards(runner.module)
    masters = runner.masters(seen["read"])
    seen["mastered"] = whole_of(masters, seen["read"])
    seen["stepped"] = step(runner, loss)
    seen["mastered after a step"] = whole_of(masters, seen["read"])
    runner.write_masters(seen["read"])
    seen["rewritten"] = runner.read_trained()
    runner.write_masters(seen["stepped"])
    seen["stopped"] = step(runner, loss)
    seen["moments"] = runner.read_optimizer()
    adam_steps = runner.read_adam_steps()
    assert set(adam_steps.values()) == {2}, adam_steps
    seen["went on"] = step(runner, loss)
    whole = sum(int(shape.prod()) for shape in seen["shape in engine"].values())
    here = sum(parameter.numel() for parameter in runner.module.parameters())
    seen["sizes"] = {"whole": torch.tensor(whole), "here": torch.tensor(here)}

    again, loss = start(case, folder, {}, numbers=seen["stopped"])
    again.restore(seen["stopped"], seen["moments"], adam_steps=adam_steps, any_loss=loss)
    seen["restored"], seen["restored moments"] = again.read_trained(), again.read_optimizer()
    again.set_learning_rate_factor(1.0)
    seen["resumed"] = step(again, loss)
    return {f"{case}/{what}/{n}": t for what, tensors in seen.items() for n, t in tensors.items()}


def main() -> None:
    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    seen: dict[str, Tensor] = {}
    for case in CASES:
        seen |= work(case, Path(argument["folder"]))
    seen = {name: tensor.contiguous().clone() for name, tensor in seen.items()}
    safetensors.torch.save_file(seen, Path(argument["out"]) / f"{dist.rank()}.safetensors")
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
