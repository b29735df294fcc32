"""What is known of a run, and what is refused, before one weight is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalepet import backbones
from scalepet.backbones import Backbone, read_model_config, sketch_sites
from scalepet.build import Plan, plan_run
from scalepet.config import check_config
from scalepet.errors import ConfigError
from scalepet.pet import METHODS

BACKBONES = ("t5", "t5-gated", "bert")
PlanOne = Callable[..., Plan]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "</s>", "[UNK]", "good", "bad"]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def plan(
    tiny_backbones: Path,
    tokenizer: Path,
    content: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> PlanOne:
    """``plan({"name": "lora"}, "t5")``: of a backbone of which only the config.json is there."""

    def no_weights(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a weight is loaded")

    monkeypatch.setattr(backbones, "load_model", no_weights)

    def plan_one(method: dict[str, Any], name: str = "t5") -> Plan:
        path = tmp_path / f"{name}.json"
        shutil.copy(tiny_backbones / name / "config.json", path)
        content["backbone"] = {
            "path": str(path),
            "random_start": True,
            "tokenizer": str(tokenizer),
        }
        content["task"] = {"labels": ["good", "bad"], "max_source_length": 20, **content["task"]}
        config = check_config({**content, "method": method})
        return plan_run(config, config.task)

    return plan_one


@pytest.fixture
def refuse(plan: PlanOne) -> Callable[..., list[str]]:
    """``refuse({"name": "lora", "r": 100}, "t5")``: the faults of the plan."""

    def faults_of(method: dict[str, Any], name: str = "t5") -> list[str]:
        with pytest.raises(ConfigError) as caught:
            plan(method, name)
        return list(caught.value.faults)

    return faults_of


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_counted_without_weights(plan: PlanOne, method: str, name: str) -> None:
    if method == "head" and name != "bert":
        return
    needed = {"budget": 999} if method in ("apet", "released") else {}
    planned = plan({"name": method, **needed}, name)
    assert (planned.method.num_parameters > 0) == (method != "head")


def test_a_method_that_would_train_nothing_is_refused(refuse: Callable[..., list[str]]) -> None:
    (fault,) = refuse({"name": "head"}, "t5")
    assert fault.startswith("method: name: head trains nothing on a t5 backbone, which has no head")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    ("other", "options"),
    [
        ("lora", {}),
        ("lora(r=2)", {"r": 2}),
        ("lora(r=3, alpha=8, parts=[q, k, v, o])", {"r": 3, "parts": ["q", "k", "v", "o"]}),
        ("adapter(bottleneck=4)", {"bottleneck": 4}),
        ("prompt(length=7)", {"length": 7}),
        ("prefix", {}),
        ("bitfit", {}),
        ("ia3", {}),
        ("full(kinds=[norm])", {"kinds": ["norm"]}),
        ("apet(budget=1%, kinds=[embedding])", {"budget": "1%", "kinds": ["embedding"]}),
    ],
)
def test_a_budget_by_another_method_is_the_number_of_its_parameters(
    plan: PlanOne, name: str, other: str, options: dict[str, Any]
) -> None:
    method = plan({"name": "apet", "budget": f"same-as:{other}"}, name).method
    direct = plan({"name": other.split("(")[0], **options}, name).method
    assert method.num_parameters == direct.num_parameters > 0


@pytest.mark.parametrize("name", BACKBONES)
def test_what_lora_counts_is_rank_times_both_sides(
    plan: PlanOne, tiny_backbones: Path, name: str
) -> None:
    config = read_model_config(Backbone(str(tiny_backbones / name)))
    sites = [site for site in sketch_sites(config) if site.part in ("q", "v")]
    expected = sum(4 * sum(site.shape) for site in sites)
    method = plan({"name": "apet", "budget": "same-as:lora(r=4, alpha=8)"}, name).method
    assert method.num_parameters == expected


def test_what_is_counted_by_stands_in_the_record_as_a_number(plan: PlanOne) -> None:
    method = plan({"name": "apet", "budget": "same-as:prompt(length=3)"}).method
    assert method.record()["options"]["budget"] == method.num_parameters == 3 * 24


def test_a_mix_meets_a_budget_by_another_method(plan: PlanOne) -> None:
    mixed = {"name": "apet", "budget": "same-as:lora(r=2)", "operation": "mix"}
    direct = plan({"name": "lora", "r": 2}).method.num_parameters
    assert plan(mixed).method.num_parameters == direct


def test_several_methods_have_one_exact_total(plan: PlanOne) -> None:
    also = [{"name": "prompt", "length": 5}, {"name": "lora", "r": 2}]
    total = plan({"name": "apet", "budget": "same-as:ia3", "also": also}).method.num_parameters
    assert total == sum(
        plan(method).method.num_parameters for method in ({"name": "ia3"}, also[0], also[1])
    )


def test_faults_of_several_methods_come_at_once(refuse: Any) -> None:
    faults = refuse(
        {
            "name": "apet",
            "budget": 10**9,
            "also": [
                {"name": "lora", "r": 25},
                {"name": "adapter", "bottleneck": 1000},
                {"name": "prompt"},
                {"name": "full", "include": ["*.nothing"]},
            ],
        }
    )
    starts = [
        "method: apet: budget: 1000000000 is 1,000,000,000 entries but ",
        "method: lora: r: 25; allowed: at most 24",
        "method: adapter: bottleneck: 1000; allowed: at most 24",
        "method: full: the include pattern '*.nothing' matches none",
        "method: full: tensors of the backbone, numbers left out: ",
    ]
    assert len(faults) == len(starts)
    for fault, start in zip(faults, starts, strict=True):
        assert fault.startswith(start)


def test_a_fault_of_the_method_that_counts_is_refused(refuse: Any) -> None:
    (fault,) = refuse({"name": "apet", "budget": "same-as:lora(r=25)"})
    assert fault.startswith("method: ")
    assert "r: 25; allowed: at most 24" in fault


def test_a_budget_by_a_method_that_trains_nothing_is_refused(refuse: Any) -> None:
    (fault,) = refuse({"name": "apet", "budget": "same-as:head"})
    assert fault.startswith("method: budget: 0 is not allowed")


@pytest.mark.parametrize("other", [{"name": "full"}, {"name": "released", "budget": 9999}])
def test_a_mask_on_weights_that_train_is_refused(refuse: Any, other: dict[str, Any]) -> None:
    for method in (
        {"name": "apet", "budget": 10, "also": [other]},
        {**other, "also": [{"name": "apet", "budget": 10}]},
    ):
        (fault,) = refuse(method)
        assert fault.startswith("method: apet with full or released: ")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(
    ("method", "fragments"),
    [
        ({"name": "lora", "r": 25}, ["r: 25", "at most 24"]),
        ({"name": "lora", "r": 30, "parts": ["ffn_in"]}, ["r: 30", "at most 24", "(40, 24)"]),
        ({"name": "lora", "include": ["*.gate.*"]}, ["include", "'*.gate.*'", "tensors of the"]),
        ({"name": "ia3", "exclude": ["nothing"]}, ["exclude", "'nothing'"]),
        ({"name": "prefix", "include": ["*layer_norm*", "*LayerNorm*"]}, ["include"]),
        ({"name": "apet", "budget": 9, "unit": "head", "kinds": ["norm"]}, ["unit: head", "parts"]),
        ({"name": "apet", "budget": 9, "unit": "head"}, ["have no heads", "[q, k, v, o]"]),
        ({"name": "apet", "budget": 9, "unit": "row", "select": "snip"}, ["unit: row", "element"]),
        ({"name": "apet", "budget": 9, "operation": "plug", "move_every": 2}, ["operation: plug"]),
        ({"name": "apet", "budget": 9, "move_share": 1.5}, ["move_share: 1.5", "at most 1"]),
        ({"name": "apet", "budget": 2, "operation": "mix"}, ["budget: 2", "three operations"]),
        ({"name": "apet", "budget": 9, "kinds": ["norm"], "parts": ["q"]}, ["kind norm and part"]),
        ({"name": "bitfit", "kinds": ["embedding"]}, ["kinds: embedding", "matrix, norm"]),
        ({"name": "prompt", "length": 10**9}, ["prompt trains 24,000,000,000 num"]),
        ({"name": "prefix", "length": 10**9}, ["prefix trains ", "as many as the backbone has"]),
        ({"name": "ia3", "also": [{"name": "prompt", "length": 10**4}]}, ["ia3 + prompt trains"]),
        ({"name": "released", "budget": 1}, ["budget: 1 fits no tensor"]),
    ],
)
def test_a_method_that_cannot_be_is_refused_before_any_weight_is_loaded(
    refuse: Any, method: dict[str, Any], fragments: list[str], name: str
) -> None:
    message = "\n".join(refuse(method, name))
    assert message.startswith("method: ")
    for fragment in fragments:
        assert fragment in message


def with_pictures(content: dict[str, Any], *, size: int = 16) -> None:
    content["task"].update(
        kind="image_classification",
        template="{image}",
        max_source_length=128,
        picture={"size": size, "resize": 32},
    )


def test_a_vit_reads_pictures_of_its_own_size_without_a_tokenizer(
    plan: PlanOne, refuse: Any, content: dict[str, Any]
) -> None:
    with_pictures(content)
    planned = plan({"name": "lora"}, "vit")
    assert (planned.form, planned.tokenizer, planned.pad_id) == ("head", None, None)
    with_pictures(content, size=24)
    (fault,) = refuse({"name": "lora"}, "vit")
    assert fault == (
        "task.picture.size: 24, with 3 channels; allowed: what the backbone reads,"
        " which is 16 x 16 pixels of 3 channels"
    )


def test_pictures_and_texts_are_refused_where_a_backbone_reads_the_other(
    refuse: Any, content: dict[str, Any]
) -> None:
    shown = "task.kind: a {} backbone cannot do {!r}; allowed: {}"
    (fault,) = refuse({"name": "lora"}, "vit")
    assert fault == shown.format("vit", "classification", "image_classification")
    with_pictures(content, size=20)
    for name, allowed in (
        ("bert", "classification"),
        ("t5", "classification, sequence_to_sequence"),
    ):
        (fault,) = refuse({"name": "lora"}, name)
        assert fault == shown.format(name, "image_classification", allowed)


def test_a_tokenizer_that_is_not_there_hides_no_other_fault(
    tiny_backbones: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    # Alone: other tests put a tokenizer beside the tiny backbone.
    path = Path(shutil.copy(tiny_backbones / "bert" / "config.json", tmp_path))
    content["backbone"] = {"path": str(path), "random_start": True}
    content["task"].update(kind="sequence_to_sequence", max_source_length=20)
    config = check_config({**content, "method": {"name": "lora", "r": 25}})
    with pytest.raises(ConfigError) as caught:
        plan_run(config, config.task)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "backbone.tokenizer",
        "task.kind",
        "method",
    ]


def test_a_task_that_the_backbone_cannot_do_is_refused_with_the_faults_of_the_method(
    refuse: Any, content: dict[str, Any]
) -> None:
    content["task"].update(kind="sequence_to_sequence", labels=[])
    faults = refuse({"name": "lora", "r": 25}, "bert")
    kind = "task.kind: a bert backbone cannot do 'sequence_to_sequence'; allowed: classification"
    assert faults == [kind, faults[-1]]
    assert faults[-1].startswith("method: r: 25; ")
