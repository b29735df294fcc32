"""A bench run of the tiniest shape: what is counted must be right, what is timed must be there."""

from __future__ import annotations

import json
import sys

import pytest
import safetensors.torch
import torch
from running import run

from scalepet.bench import Rounds, contenders, make_work, measure
from scalepet.bench.contenders import FLOOR

COMMAND = [sys.executable, "-m", "scalepet", "bench", "--shape", "tiny", "--rounds", "2"]


@pytest.fixture(scope="module")
def work():
    return make_work(
        "tiny",
        rows=4,
        source_length=12,
        target_length=6,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


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
    assert all(result.seconds > 0 and result.ratio > 0 for result in results.values())


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


def test_the_model_is_as_it_was(results, work):
    again = make_work(
        "tiny",
        rows=4,
        source_length=12,
        target_length=6,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
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
