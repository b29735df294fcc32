"""All that the methods are for, through the command line: masks that a score chooses or that move,
several methods at once, several adapters on one backbone, and models without scalepet.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from running import SCALEPET, newest_state, read_losses, read_result, read_table, run

from scalepet import build, engine
from scalepet.backbones.families import own_head_t5
from scalepet.config import read_config
from scalepet.recipes import export_peft, import_peft
from scalepet.recipes.adapter import save_adapter
from scalepet.recipes.answer import wearer_of
from scalepet.recipes.masks import saved_positions

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


PEFT_METHODS = {
    "lora": ({"name": "lora", "r": 3, "alpha": 7, "rslora": True}, "bert"),
    "lora on t5": ({"name": "lora", "parts": ["q", "k", "ffn_in"]}, "t5-gated"),
    "ia3": ({"name": "ia3"}, "bert"),
    "prefix": ({"name": "prefix", "length": 3}, "bert"),
    "prompt": ({"name": "prompt", "length": 3}, "t5-gated"),
    "shira": ({"name": "apet", "budget": 500, "parts": ["q", "ffn_in"]}, "bert"),
    "shira, even": ({"name": "apet", "budget": 500, "share": "even"}, "t5-gated"),
}


@pytest.mark.parametrize("case", PEFT_METHODS)
def test_peft_computes_the_same_with_what_is_exported_and_it_comes_back(
    case, write_run, backbones_with_tokenizers, tmp_path
):
    method, backbone = PEFT_METHODS[case]
    into, again = tmp_path / "peft", tmp_path / "again"
    save_random_adapter(write_run(tmp_path / "run", backbone, method=method))
    export_peft(tmp_path / "run", into, overrides={})
    inputs = make_inputs(is_t5=backbone != "bert")
    ours = logits_with(tmp_path / "run", inputs)
    slots = method["length"] if case == "prefix" else 0
    # PEFT counts the slots of a prefix as positions of the text.
    positions = {"position_ids": torch.arange(6)[None] - slots} if slots else {}
    theirs = load_with_peft(into, backbones_with_tokenizers / backbone)
    with torch.no_grad():
        logits = theirs(**inputs, **positions).logits
    torch.testing.assert_close(logits, ours, atol=1e-5, rtol=1e-5)
    import_peft(read_config(write_run(again, backbone, method=method)), into)
    torch.testing.assert_close(logits_with(again, inputs), ours, atol=1e-6, rtol=1e-6)
    record = json.loads((again / "adapter" / "scalepet.json").read_text())
    assert record["labels"] == ["cold", "warm"]


def save_random_adapter(path: Path) -> None:
    """An adapter as a run leaves it, with random numbers in place of trained ones."""
    config = read_config(path)
    plan = build.plan_run(config, build.load_rows(config)[0])
    loaded = build.load_backbone(plan)
    build.attach(plan.method, loaded)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in engine.trained_parameters(loaded.model).items()
    }
    fixed = saved_positions(plan.method)
    save_adapter(config.output / "adapter", plan, tensors, fixed=fixed, num_steps=0, metrics={})


def logits_with(folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What scalepet computes with a saved adapter, in this process."""
    found = []
    with wearer_of([folder], overrides={}) as wearer, torch.no_grad():
        for ready in wearer.wearing():
            found.append(ready.model.eval()(**inputs).logits)
    return found[0]


def make_inputs(*, is_t5: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (3, 6), generator=generator)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * 6, [1] * 6, [1] * 4 + [0] * 2]),
    }
    return {**inputs, "decoder_input_ids": ids[:, :4]} if is_t5 else inputs


def load_with_peft(adapter: Path, backbone: Path):
    if backbone.name == "bert":
        base = transformers.BertForSequenceClassification.from_pretrained(backbone, num_labels=2)
    else:
        base = own_head_t5().from_pretrained(backbone)
    return peft.PeftModel.from_pretrained(base, adapter).eval()


@pytest.mark.parametrize(
    ("name", "words"),
    [("apet", "SHiRA has linear layers only"), ("lora", "PEFT has nothing like Together")],
)
def test_what_peft_has_not_is_refused(name, words, adapters, tmp_path):
    shown = run([*SCALEPET, "export", adapters[name], tmp_path / "peft", "--peft"], code=2)
    assert words in shown
    assert not (tmp_path / "peft").exists()


def test_an_adapter_of_other_settings_is_refused_with_every_difference(write_run, tmp_path):
    save_random_adapter(write_run(tmp_path / "run", method={"name": "lora", "r": 2}))
    export_peft(tmp_path / "run", tmp_path / "peft", overrides={})
    other = write_run(tmp_path / "again", method={"name": "lora", "r": 4, "alpha": 3})
    shown = run([*SCALEPET, "import", other, tmp_path / "peft"], code=2)
    assert "lora_alpha is 16.0; allowed: 3.0" in shown
    assert "query.lora_A.weight is (2, 24); allowed: (4, 24)" in shown
    assert not (tmp_path / "again").exists()
