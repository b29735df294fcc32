"""A study file: every fault of the grid and of its runs at once, each at its field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalepet.config.loader import parse_yaml
from scalepet.config.study import GridCell, StudyConfig, interpolated, plain_study
from scalepet.config.study_check import check_study, read_study_config
from scalepet.config.study_listing import study_fields_as_yaml
from scalepet.errors import ConfigError

STUDY = """\
output: studies/first
base: {precision: fp32, train: {steps: 100}}
backbones:
  small: {path: google/flan-t5-small}
  base: {path: google/flan-t5-base}
tasks:
  sst2: sst2
  mood:
    kind: classification
    source: {path: csv, files: {train: a.csv, validation: b.csv, test: c.csv}, splits: {test: test}}
    template: "Input: {text} Output: "
    target: label
rate_factors: [0.3, 1, 3]
position_seeds: [0, 1]
methods:
  apet:
    method: {name: apet}
    budgets: [10, 1000]
    matches: [lora]
    learning_rate: {10: 1.0, 1000: 0.01}
  lora: {method: {name: lora, r: 4}, learning_rate: 1e-3, data_seeds: [0, 1, 2]}
"""


@pytest.fixture
def study() -> dict[str, Any]:
    return copy.deepcopy(parse_yaml(STUDY))


def faults_of(content: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_study(content)
    return list(caught.value.faults)


def test_cells_come_in_the_order_of_the_file(study: dict[str, Any]) -> None:
    cells = list(check_study(study).cells())
    assert len(cells) == 2 * 2 * 4
    assert [cell.name for cell in cells[:5]] == [
        "small/sst2/apet-10",
        "small/sst2/apet-1000",
        "small/sst2/apet-as-lora",
        "small/sst2/lora",
        "small/mood/apet-10",
    ]


def test_a_method_can_be_tried_on_some_backbones_alone(study: dict[str, Any]) -> None:
    study["methods"]["wide"] = {
        "method": {"name": "full"},
        "learning_rate": 1e-4,
        "backbones": ["small"],
    }
    names = [cell.name for cell in check_study(study).cells()]
    assert [name for name in names if "wide" in name] == ["small/sst2/wide", "small/mood/wide"]
    study["methods"]["lora"]["backbones"] = ["small"]
    study["methods"]["apet"]["matches"] = []
    study["methods"]["again"] = {**study["methods"]["lora"], "backbones": ["base"]}
    check_study(study)  # the same method under two names, on no backbone twice


def test_only_methods_that_choose_positions_have_several_of_their_seeds(
    study: dict[str, Any],
) -> None:
    checked = check_study(study)
    assert checked.seeds("apet") == [(0, 0), (1, 0)]
    assert checked.seeds("lora") == [(0, 0), (0, 1), (0, 2)]


def test_a_method_that_chooses_positions_beside_another_has_their_seeds(
    study: dict[str, Any],
) -> None:
    both = {"name": "prompt", "also": [{"name": "apet", "budget": 100}]}
    study["methods"]["both"] = {"method": both, "learning_rate": 1.0}
    assert check_study(study).seeds("both") == [(0, 0), (1, 0)]
    study["methods"]["both"]["position_seeds"] = [4, 5, 6]
    assert check_study(study).seeds("both") == [(4, 0), (5, 0), (6, 0)]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, 1.0), (10, 1.0), (100, 0.1), (1000, 0.01), (10**6, 0.01)],
)
def test_rates_lie_on_a_line_in_log_log_and_are_constant_beyond(
    budget: int, expected: float
) -> None:
    assert interpolated({10: 1.0, 1000: 0.01}, budget) == pytest.approx(expected)


def test_what_is_written_reads_back_as_the_same_study(
    study: dict[str, Any], tmp_path: Path
) -> None:
    checked = check_study(study)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(plain_study(checked)))
    assert read_study_config(path) == checked
    assert read_study_config(path, ["base.train.steps=7"]).base["train"] == {"steps": 7}


def test_the_listing_is_a_valid_study_with_every_field() -> None:
    text = study_fields_as_yaml()
    checked = check_study(parse_yaml(text))
    assert max(map(len, text.splitlines())) <= 80
    for field in (*StudyConfig.model_fields, *type(checked.methods["apet"]).model_fields):
        assert f"{field}:" in text


Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("base"), ["base: is missing"]),
        (lambda s: s.update(batch=3), ["batch: no such field"]),
        (lambda s: s.update(backbones={}), ["backbones: {}; allowed: at least one"]),
        (lambda s: s.update(rate_factors=[]), ["rate_factors: []; allowed: at least one"]),
        (lambda s: s.update(rate_factors=[1, -1]), ["rate_factors: [1, -1]; allowed: a list of"]),
        (lambda s: s.update(rate_factors=[True]), ["rate_factors: [true]; allowed: a list of"]),
        (
            lambda s: s.update(position_seeds=[0, 1, 0]),
            ["position_seeds: [0, 1, 0]; allowed: 0 on"],
        ),
        (lambda s: s["base"].update(seed=1), ["base.seed: 1; allowed: not here"]),
        (lambda s: s["base"].update(output="x"), ["base.output: 'x'; allowed: not here"]),
        (
            lambda s: s["base"]["train"].update(learning_rate=0.1, stepz=3),
            ["base.train.learning_rate: 0.1; allowed: not here", "base.train.stepz: no such field"],
        ),
        (lambda s: s["tasks"].update(sst3="sst3"), ["tasks.sst3: 'sst3'; did you mean sst2?"]),
        (lambda s: s["tasks"].update({"a/b": "rte"}), ["tasks: 'a/b' names folders"]),
        (lambda s: s["tasks"].update(more="sst2"), ["tasks.more: the same as sst2"]),
        (
            lambda s: s["tasks"]["mood"]["source"].update(splits={}, seed=1),
            ["tasks.mood.source.splits: {}; allowed: with test", "tasks.mood.source.seed: 1; allo"],
        ),
        (
            lambda s: s["tasks"]["mood"].update(kind="clasification", tagret=3),
            ["tasks.mood.kind: 'clasification'", "tasks.mood.tagret: no such field"],
        ),
        (
            lambda s: s["backbones"]["base"].update(dropout=2),
            ["backbones.base.dropout: 2; allowed: a number from 0 to below 1"],
        ),
        (
            lambda s: s["methods"].update(more={"method": {"name": "lorra"}}),
            ["methods.more.learning_rate: is missing"],
        ),
        (
            lambda s: s["methods"].update(more={"method": {"name": "lorra"}, "learning_rate": 1}),
            ["methods.more.method.name: 'lorra'; did you mean lora?"],
        ),
        (lambda s: s["methods"].update(more=3), ["methods.more: 3; allowed: the fields"]),
        (
            lambda s: s["methods"]["lora"].update(budgets=[5], matches=["apet"]),
            [
                "methods.lora.budgets: [5] of the method lora; allowed: with apet or released",
                "methods.lora.matches: ['apet'] of the method lora",
                "methods.lora.matches: 'apet', which has several counts",
                "methods.apet.matches: 'lora', which has several counts",
            ],
        ),
        (
            lambda s: s["methods"]["lora"].update(position_seeds=[1]),
            ["methods.lora.position_seeds: [1] of the method lora"],
        ),
        (
            lambda s: s["methods"]["lora"].update(data_seeds=[]),
            ["methods.lora.data_seeds: []; allowed: at least one, or null"],
        ),
        (
            lambda s: s["methods"]["lora"]["method"].update(seed=3),
            ["methods.lora.method.seed: 3; allowed: not here"],
        ),
        (
            lambda s: s["methods"].update(
                both={
                    "method": {
                        "name": "prompt",
                        "also": [{"name": "lora"}, {"budget": 100, "seed": 7}],
                    },
                    "learning_rate": 1.0,
                    "budgets": [5],
                }
            ),
            [
                "methods.both.budgets: [5] of the method prompt; allowed: with apet or released",
                "methods.both.method.also[1].seed: 7; allowed: not here",
            ],
        ),
        (
            lambda s: (
                s["methods"].update(
                    old={
                        "method": {"name": "released"},
                        "learning_rate": 1.0,
                        "matches": ["lora"],
                    },
                    one={"method": {"name": "released", "budget": 900}, "learning_rate": 1.0},
                    two={
                        "method": {"name": "lora", "also": [{"name": "released", "budget": 900}]},
                        "learning_rate": 1.0,
                    },
                ),
                s["methods"]["apet"].update(matches=["one", "two"]),
            ),
            [
                "methods.apet.matches: 'one', whose count varies with its seed; allowed: a method"
                " with one count",
                "methods.apet.matches: 'two', whose count varies with its seed",
                "methods.old.matches: ['lora'] of a method with released, whose count varies",
            ],
        ),
        (
            lambda s: s["methods"]["lora"].update(learning_rate={10: 0.1}),
            ["methods.lora.learning_rate: {10: 0.1} without budgets or matches"],
        ),
        (
            lambda s: s["methods"]["apet"].update(learning_rate={"ten": 0.1}),
            ["methods.apet.learning_rate: {ten: 0.1}; allowed: a number above 0 to"],
        ),
        (
            lambda s: s["methods"]["apet"].update(learning_rate={}),
            ["methods.apet.learning_rate: {}"],
        ),
        (
            lambda s: s["methods"]["apet"].update(budgets=[10, 0]),
            ["methods.apet.budgets: [10, 0]; allowed: a list of whole numbers from 1"],
        ),
        (
            lambda s: s["methods"]["apet"]["method"].update(budget=5),
            ["methods.apet.method.budget: 5 beside budgets or matches"],
        ),
        (
            lambda s: s["methods"]["apet"].update(matches=["lora", "apet", "none"]),
            [
                "methods.apet.matches: 'apet'; allowed: another method of the study: lora",
                "methods.apet.matches: 'none'; allowed: another method of the study: lora",
            ],
        ),
        (
            lambda s: s["methods"]["lora"].update(backbones=["base", "basis", "base"]),
            [
                "methods.lora.backbones: ['base', 'basis', 'base']; allowed: 'base' once",
                "methods.lora.backbones: 'basis'; allowed: of the study: small, base",
                "methods.apet.matches: 'lora', which is not tried on small; allowed: a method that",
            ],
        ),
        (
            lambda s: s["methods"]["apet"].update(backbones=[]),
            ["methods.apet.backbones: []; allowed: at least one, or null"],
        ),
        (
            lambda s: [own.update(backbones=["base"]) for own in s["methods"].values()],
            ["backbones.small: no method is tried on it; allowed: one at least"],
        ),
        (
            lambda s: s["methods"].update(
                again={"method": {"name": "lora", "alpha": 16, "r": 4}, "learning_rate": 1.0}
            ),
            ["methods.again: again is the same method as lora"],
        ),
        (
            lambda s: s["methods"].update(
                again={"method": {"name": "apet", "budget": 10}, "learning_rate": 1.0}
            ),
            ["methods.again: again is the same method as apet-10"],
        ),
        (
            lambda s: s["methods"].update(
                {"apet-10": {"method": {"name": "head"}, "learning_rate": 1.0}}
            ),
            ["methods: apet and apet-10 both have runs in apet-10"],
        ),
    ],
)
def test_a_fault_is_shown_once_at_its_field(
    study: dict[str, Any], change: Change, words: list[str]
) -> None:
    change(study)
    faults = faults_of(study)
    assert [
        next((f for f in faults if f.startswith(w)), f"none of {faults}")[: len(w)] for w in words
    ] == words
    assert len(faults) == len(words), faults


def test_faults_of_all_places_come_at_once(study: dict[str, Any], tmp_path: Path) -> None:
    study["base"]["train"]["steps"] = 0
    study["backbones"]["small"]["pathh"] = "x"
    study["methods"]["lora"]["method"]["rank"] = 4
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(ConfigError) as caught:
        read_study_config(path, ["nonsense"])
    starts = [fault.partition(":")[0] for fault in caught.value.faults]
    assert sorted(starts) == [
        "backbones.small.pathh",
        "base.train.steps",
        "methods.lora.method.rank",
        "override 'nonsense'",
    ]


def test_a_cell_has_the_name_of_its_folder() -> None:
    assert GridCell("a", "b", "apet", budget=10).name == "a/b/apet-10"
    assert GridCell("a", "b", "apet", matches="lora").name == "a/b/apet-as-lora"
    assert GridCell("a", "b", "lora").name == "a/b/lora"
