"""All that the methods are for, through the command line: masks that a score chooses or that move,
several methods at once, several adapters on one backbone, and models without scalepet.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from running import SCALEPET, newest_state, read_losses, read_result, read_table, run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

KILLED = Path(__file__).with_name("killed.py")
MOVING = {"name": "apet", "budget": 200, "move_every": 3, "kinds": ["matrix", "embedding", "norm"]}
SHORT = {"steps": 6, "evaluate_every": 6}


@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ({"name": "apet", "budget": 200, "select": "snip"}, "t5-gated"),
        pytest.param(
            {"name": "apet", "budget": 200, "select": "magnitude"}, "bert", marks=pytest.mark.slow
        ),
        (MOVING, "bert"),
        ({"name": "apet", "budget": 800, "move_every": 1}, "bert"),
        ({"name": "apet", "budget": 400, "operation": "mix", "also": [{"name": "ia3"}]}, "t5"),
    ],
)
def test_one_and_two_ranks_train_the_same_mask(method, backbone, write_run, tmp_path):
    folders = [tmp_path / f"{num_ranks}" for num_ranks in (1, 2)]
    for num_ranks, folder in enumerate(folders, start=1):
        config = write_run(folder, backbone, method=method, train={"steps": 8})
        run([*SCALEPET, "train", config], num_ranks=num_ranks)
    one, two = (
        safetensors.torch.load_file(folder / "adapter" / "tensors.safetensors")
        for folder in folders
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if tensor.dtype == torch.uint8:
            assert torch.equal(tensor, two[name]), name
    assert read_losses(folders[0]) == pytest.approx(read_losses(folders[1]), abs=1e-5)
    scores = read_table(run([*SCALEPET, "evaluate", folders[1]]))
    assert scores["loss"] == pytest.approx(
        read_result(folders[1])["metrics"]["eval/loss"], rel=1e-4
    )


def test_a_moving_mask_is_resumed_where_it_was(write_run, tmp_path):
    """Killed after step 8, between the moves after 6 and 9."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run([*SCALEPET, "train", write_run(whole, method=MOVING)])
    config = write_run(broken, method=MOVING)
    run([sys.executable, KILLED, "2", "train", config], code=-signal.SIGKILL)
    run([*SCALEPET, "train", config, "--resume"])
    assert read_losses(broken) == read_losses(whole)
    left, right = (
        (newest_state(folder) / "tensors.safetensors").read_bytes() for folder in (whole, broken)
    )
    assert left == right


@pytest.fixture(scope="module")
def adapters(write_run, tmp_path_factory) -> dict[str, Path]:
    """Run folders of several methods on the same BERT."""
    root = tmp_path_factory.mktemp("adapters")
    methods = {
        "apet": {"name": "apet", "budget": 300, "kinds": ["matrix", "embedding", "norm", "bias"]},
        "lora": {"name": "lora", "r": 2, "also": [{"name": "bitfit"}]},
        "prefix": {"name": "prefix", "length": 3},
        "full": {"name": "full"},
    }
    for name, method in methods.items():
        run([*SCALEPET, "train", write_run(root / name, method=method, train=SHORT)])
    return {name: root / name for name in methods}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_adapters_are_switched_without_loading_the_backbone_again(num_ranks, adapters):
    folders = [adapters[name] for name in ("apet", "lora", "prefix", "apet")]
    also = [part for folder in folders[1:] for part in ("--also", folder)]
    shown = run([*SCALEPET, "evaluate", folders[0], *also], num_ranks=num_ranks)
    losses = next(line for line in shown.splitlines() if line.startswith("loss\t")).split("\t")[1:]
    expected = [read_result(folder)["metrics"]["eval/loss"] for folder in folders]
    assert [float(loss) for loss in losses] == pytest.approx(expected, rel=1e-4)


def test_what_changes_the_backbone_is_not_switched(adapters):
    shown = run([*SCALEPET, "evaluate", adapters["apet"], "--also", adapters["full"]], code=2)
    assert "holds the backbone's own weights" in shown


@pytest.mark.parametrize(
    ("name", "num_ranks"), [("apet", 1), ("apet", 2), ("lora", 1), ("full", 1)]
)
def test_a_merged_folder_is_a_plain_model(name, num_ranks, adapters, colour_rows, tmp_path):
    into = tmp_path / "merged"
    run([*SCALEPET, "export", adapters[name], into], num_ranks=num_ranks)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(into)
    tokenizer = transformers.AutoTokenizer.from_pretrained(into)
    lines = (colour_rows / "validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits
    classes = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    loss = torch.nn.functional.cross_entropy(logits, classes).item()
    expected = read_result(adapters[name])["metrics"]["eval/loss"]
    assert loss == pytest.approx(expected, abs=1e-5)


def test_a_merged_t5_keeps_its_own_head(write_run, tmp_path):
    run([*SCALEPET, "train", write_run(tmp_path / "run", "t5-gated", train=SHORT)])
    run([*SCALEPET, "export", tmp_path / "run", tmp_path / "merged"])
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    stored = safetensors.torch.load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_cannot_be_merged_is_refused(num_ranks, adapters, tmp_path):
    command = [*SCALEPET, "export", adapters["prefix"], tmp_path / "merged"]
    shown = run(command, num_ranks=num_ranks, code=2)
    assert shown.count("prefix cannot be merged: a plain model has no place for a prefix") == 1
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_exists_is_not_written_over(adapters, tmp_path):
    shown = run([*SCALEPET, "export", adapters["apet"], tmp_path], code=2)
    assert f"{tmp_path} exists" in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [("apet", "SHiRA has linear layers only"), ("lora", "PEFT has nothing like Together")],
)
def test_what_peft_has_not_is_refused(name, words, adapters, tmp_path):
    shown = run([*SCALEPET, "export", adapters[name], tmp_path / "peft", "--peft"], code=2)
    assert words in shown
    assert not (tmp_path / "peft").exists()
