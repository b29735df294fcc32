"""A bench run of the tiniest shape: what is counted must be right, what is timed must be there."""

from __future__ import annotations

import json
import math
import sys

import pytest
import safetensors.torch
import torch
from running import run
from torch.utils.flop_counter import FlopCounterMode

from scalepet.bench import SHAPES, Rounds, contenders, make_work, measure
from scalepet.bench.contenders import FLOOR
from scalepet.pet.value_gradients import plan_of

COMMAND = [sys.executable, "-m", "scalepet", "bench", "--shape", "tiny", "--rounds", "2"]


def tiny_work(**sizes):
    return make_work("tiny", dtype=torch.float32, device=torch.device("cpu"), **sizes)


@pytest.fixture(scope="module")
def work():
    return tiny_work(rows=4, source_length=12, target_length=6)


@pytest.fixture(scope="module")
def results(work):
    entrants = contenders(work, densities=["1%", "100%"], with_peft=True)
    return {result.name: result for result in measure(work, entrants, Rounds(2, 1))}


def test_all_that_was_asked_for_ran(results):
    assert list(results) == [
        FLOOR,
        "LoRA on q, v",
        "APET on q, v",
        "APET anywhere",
        "APET 1%",
        "full",
        "PEFT LoRA",
        "PEFT SHiRA",
    ]
    assert results[FLOOR].ratio == 1.0
    for result in results.values():
        assert result.seconds > 0 and result.ratio > 0
        assert result.tokens_per_second == pytest.approx(4 * (12 + 6) / result.seconds)


def test_counts_are_of_the_same_size(results, work):
    lora = sum(8 * sum(site.shape) for site in work.sites if site.part in ("q", "v"))
    for name in ("LoRA on q, v", "APET on q, v", "APET anywhere", "PEFT LoRA", "PEFT SHiRA"):
        assert results[name].num_trained == lora
    assert results["full"].num_trained == sum(s.numel for s in work.sites if s.kind == "matrix")
    assert results[FLOOR].num_trained == 0


def test_only_shira_keeps_tensors_of_the_shape_of_a_weight(results):
    found = {name: result.num_weight_shaped for name, result in results.items()}
    # q and v of 6 attentions, but for the two whose input, an embedding, needs no gradient.
    assert found.pop("PEFT SHiRA") == 8
    assert set(found.values()) == {0}, found


def test_a_seeded_mask_takes_4_bytes_an_entry(results):
    file = results["APET anywhere"]
    header = len(safetensors.torch.save({})) + 36 * 120  # a name, a type and a place a tensor
    assert 4 * file.num_trained < file.file_bytes < 4 * file.num_trained + header
    assert results["PEFT SHiRA"].file_bytes > 2.5 * file.file_bytes  # its positions besides


def sampled_operations(pattern, left, _right, **_options):
    """Of ``sampled_addmm``, which torch's counter does not know."""
    return 2 * pattern._nnz() * left.shape[1]


sampled_operations._get_raw = True
SAMPLED = {torch.ops.aten.sparse_sampled_addmm: sampled_operations}


@pytest.fixture(scope="module")
def wide_work():
    """Layers so wide that some of their value gradients are sparse products."""
    shape = {"d_model": 512, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", shape)
        return tiny_work(rows=2, source_length=9, target_length=5)


def test_a_step_costs_the_floor_and_the_value_gradients_and_nothing_else(wide_work):
    """Multiplications and additions of forward and backward, counted by torch."""
    floor, *others = contenders(wide_work, densities=["0.1%"], with_peft=False)
    operations, ways = {}, set()
    for contender in (floor, *(other for other in others if "APET" in other.name)):
        with contender.enter(wide_work) as entered:
            expected = 0
            for name, module in entered.model.named_modules():
                positions = getattr(module, "weight_positions", None)
                if positions is None or not isinstance(module, torch.nn.Linear):
                    continue
                is_read_by_source = name.startswith("encoder") or name.endswith(
                    ("EncDecAttention.k", "EncDecAttention.v")
                )
                tokens = 2 * (9 if is_read_by_source else 5)
                shape = tuple(module.weight.shape)
                plan = plan_of(positions, shape, torch.float32)
                touched = [
                    size if part is None else len(part)
                    for size, part in zip(shape, (plan.rows, plan.columns), strict=True)
                ]
                ways.add(plan.is_tiled)
                products = math.prod(touched) if plan.is_tiled else len(positions)
                expected += 2 * tokens * products
            with FlopCounterMode(display=False, custom_mapping=SAMPLED) as counter:
                wide_work.loss(entered.model).backward()
        operations[contender.name] = counter.get_total_flops(), expected
    assert ways == {True, False}
    (least, nothing) = operations.pop(floor.name)
    assert nothing == 0
    assert len(operations) == 3
    # The floor's backward goes on to both embedded inputs, below the first q, k and v.
    spared = 2 * (18 + 10) * 3 * 512 * 512
    for name, (counted, needed) in operations.items():
        assert needed > 0, name
        assert counted == least + needed - spared, name


def test_the_model_is_as_it_was(results, work):
    again = tiny_work(rows=4, source_length=12, target_length=6)
    theirs = dict(again.model.named_parameters())
    ours = dict(work.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())
    assert not any(parameter.requires_grad for parameter in ours.values())


def test_the_command_shows_its_conditions_and_writes_them(tmp_path):
    shown = run([*COMMAND, "--steps", "1", "--density", "1%", "--output", tmp_path / "bench"])
    assert "frozen floor" in shown and "torch" in shown and "command: scalepet bench" in shown
    content = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert content["conditions"]["command"].startswith("scalepet bench --shape tiny")
    assert len(content["results"]) == 7
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 5000


def test_every_wrong_choice_is_named():
    shown = run(
        [*COMMAND[:4], "--shape", "huge", "--precision", "fp8", "--density", "lots"], code=2
    )
    assert "--shape: 'huge'; allowed: tiny, small" in shown
    assert "--precision: 'fp8'; allowed: fp32, bf16" in shown
    assert "--density: 'lots'" in shown
