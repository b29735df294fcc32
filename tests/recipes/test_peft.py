"""Adapters of PEFT, taken in and written: they compute the same on both sides, or are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from running import SCALEPET, run

from scalepet import build, engine
from scalepet.backbones.families import own_head_t5
from scalepet.config import read_config
from scalepet.errors import CheckpointError
from scalepet.recipes import export_merged, export_peft, import_peft
from scalepet.recipes.adapter import open_adapter, save_adapter
from scalepet.recipes.answer import wearer_of
from scalepet.recipes.masks import saved_positions

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
    return peft.PeftModel.from_pretrained(bare(backbone), adapter).eval()


@pytest.mark.distributed
def test_an_adapter_of_other_settings_is_refused_with_every_difference(write_run, tmp_path):
    save_random_adapter(write_run(tmp_path / "run", method={"name": "lora", "r": 2}))
    export_peft(tmp_path / "run", tmp_path / "peft", overrides={})
    other = write_run(tmp_path / "again", method={"name": "lora", "r": 4, "alpha": 3})
    shown = run([*SCALEPET, "import", other, tmp_path / "peft"], code=2)
    assert "lora_alpha is 16.0; allowed: 3.0" in shown
    assert "r is 2; allowed: 4" in shown
    assert "query.lora_A.weight is (2, 24); allowed: (4, 24)" in shown
    assert not (tmp_path / "again").exists()


TARGETS = {"bert": ["query", "value"], "t5-gated": ["q", "v"]}


def make_peft(
    folder: Path, backbone: Path, *, modules: Sequence[str] = (), **options: Any
) -> tuple[Path, Any]:
    """A LoRA of PEFT with random numbers, saved; and its model as PEFT reads it again."""
    config = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=TARGETS[backbone.name],
        modules_to_save=list(modules),
        **options,
    )
    torch.manual_seed(3)
    model = peft.get_peft_model(bare(backbone), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder, peft.PeftModel.from_pretrained(bare(backbone), folder).eval()


def bare(backbone: Path) -> Any:
    if backbone.name == "bert":
        return transformers.BertForSequenceClassification.from_pretrained(backbone, num_labels=2)
    return own_head_t5().from_pretrained(backbone)


MODULES = {
    "the pooler": ("bert", ["classifier", "pooler"]),
    "any module": ("bert", ["classifier", "bert.encoder.layer.1.output", "word_embeddings"]),
    "the head of a T5": ("t5-gated", ["lm_head"]),
}


@pytest.mark.parametrize(("backbone", "modules"), MODULES.values(), ids=MODULES)
def test_modules_that_peft_saved_whole_stay(
    backbone, modules, write_run, backbones_with_tokenizers, tmp_path
):
    """Through import, scoring, a merged model and back to PEFT."""
    place, inputs = backbones_with_tokenizers / backbone, make_inputs(is_t5=backbone != "bert")
    made, theirs = make_peft(tmp_path / "made", place, modules=modules)
    method = {"name": "lora", "r": 2, "alpha": 4}
    into = import_peft(read_config(write_run(tmp_path / "run", backbone, method=method)), made)
    with torch.no_grad():
        expected = theirs(**inputs).logits
        torch.testing.assert_close(logits_with(into, inputs), expected, atol=1e-5, rtol=1e-5)
        export_merged(into, tmp_path / "merged", overrides={})
        merged = type(bare(place)).from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        export_peft(into, tmp_path / "again", overrides={})
        again = peft.PeftModel.from_pretrained(bare(place), tmp_path / "again").eval()
        torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(CheckpointError, match="holds the backbone's own weights"):
        next(wearer_of([into, into], overrides={}).gen)


def test_a_table_that_peft_would_untie_is_refused(write_run, backbones_with_tokenizers, tmp_path):
    made, _ = make_peft(
        tmp_path / "made", backbones_with_tokenizers / "t5-gated", modules=["shared"]
    )
    config = read_config(write_run(tmp_path / "run", "t5-gated", method={"name": "lora", "r": 2}))
    with pytest.raises(CheckpointError, match=r"base_model.model.shared.weight is \(60, 24\)"):
        import_peft(config, made)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "eva", False])
def test_a_start_that_leaves_the_backbone_alone_is_taken(
    start, write_run, backbones_with_tokenizers, tmp_path
):
    """PEFT itself says so: it loads such a file onto the backbone as it is."""
    options = {"lora_dropout": 0.5, "init_lora_weights": start}
    if start == "eva":
        options["eva_config"] = peft.EvaConfig()
    made, theirs = make_peft(
        tmp_path / "made", backbones_with_tokenizers / "bert", modules=["classifier"], **options
    )
    assert json.loads((made / "adapter_config.json").read_text())["init_lora_weights"] == start
    config = read_config(write_run(tmp_path / "run", method={"name": "lora", "r": 2, "alpha": 4}))
    into, inputs = import_peft(config, made), make_inputs(is_t5=False)
    with torch.no_grad():
        expected = theirs(**inputs).logits
    torch.testing.assert_close(logits_with(into, inputs), expected, atol=1e-5, rtol=1e-5)


MADE_BY_PEFT = {
    "ia3": (
        "bert",
        {"name": "ia3"},
        lambda: peft.IA3Config(
            target_modules=["key", "value", "output.dense"],
            exclude_modules=["attention.output.dense"],
            feedforward_modules=["output.dense"],
            modules_to_save=["classifier"],
        ),
    ),
    "shira": (
        "bert",
        {"name": "apet", "budget": 500, "parts": ["q", "v"]},
        lambda: peft.ShiraConfig(
            r=2, target_modules=["query", "value"], modules_to_save=["classifier"], random_seed=1
        ),
    ),
    "prompt": (
        "t5-gated",
        {"name": "prompt", "length": 3},
        lambda: peft.PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1
        ),
    ),
    "prefix": (
        "bert",
        {"name": "prefix", "length": 3},
        lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    ),
}


@pytest.mark.parametrize("case", MADE_BY_PEFT)
def test_a_file_of_peft_computes_the_same(case, write_run, backbones_with_tokenizers, tmp_path):
    backbone, method, configure = MADE_BY_PEFT[case]
    place, inputs = backbones_with_tokenizers / backbone, make_inputs(is_t5=backbone != "bert")
    theirs = peft.get_peft_model(bare(place), configure()).eval()
    torch.manual_seed(3)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "made")
    into = import_peft(
        read_config(write_run(tmp_path / "run", backbone, method=method)), tmp_path / "made"
    )
    # PEFT counts the slots of a prefix as positions of the text.
    positions = {"position_ids": torch.arange(6)[None] - 3} if case == "prefix" else {}
    with torch.no_grad():
        expected = theirs(**inputs, **positions).logits
    torch.testing.assert_close(logits_with(into, inputs), expected, atol=1e-5, rtol=1e-5)


def test_what_changes_the_computation_is_refused_by_name(
    write_run, backbones_with_tokenizers, tmp_path
):
    place, inputs = backbones_with_tokenizers / "bert", make_inputs(is_t5=False)
    _, plain = make_peft(tmp_path / "plain", place, modules=["classifier"])
    config = read_config(write_run(tmp_path / "run", method={"name": "lora", "r": 2, "alpha": 4}))
    for name, value in {
        "alpha_pattern": {"value": 64},
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "use_dora": True,
    }.items():
        made, theirs = make_peft(tmp_path / name, place, modules=["classifier"], **{name: value})
        with torch.no_grad():
            assert not torch.allclose(theirs(**inputs).logits, plain(**inputs).logits, atol=1e-4)
        with pytest.raises(CheckpointError, match=f"{name} is "):
            import_peft(config, made)
    assert not (tmp_path / "run").exists()


def test_a_mask_comes_back_from_shira_as_it_was(write_run, backbones_with_tokenizers, tmp_path):
    method = {"name": "apet", "budget": 40, "kinds": ["matrix"]}
    save_random_adapter(write_run(tmp_path / "run", "t5-gated", method=method))
    export_peft(tmp_path / "run", tmp_path / "peft", overrides={})
    again = write_run(tmp_path / "again", "t5-gated", method=method)
    into = import_peft(read_config(again), tmp_path / "peft")
    before, after = (open_adapter(f, overrides={}) for f in (tmp_path / "run", into))
    assert after.plan.method.num_parameters == 40
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name])
    masks = [adapter.plan.method.mask.positions for adapter in (before, after)]
    assert all((masks[0][name] == masks[1][name]).all() for name in masks[0])


def test_a_head_that_peft_did_not_save_is_missed(write_run, backbones_with_tokenizers, tmp_path):
    made, _ = make_peft(tmp_path / "made", backbones_with_tokenizers / "bert", modules=["pooler"])
    config = read_config(write_run(tmp_path / "run", method={"name": "lora", "r": 2, "alpha": 4}))
    with pytest.raises(CheckpointError, match=r"classifier.weight is None; allowed: \(2, 24\)"):
        import_peft(config, made)
