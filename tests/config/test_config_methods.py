"""Several methods at once, and budgets that count by another method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalepet.config import (
    FurtherMethod,
    check_config,
    fields_as_yaml,
    method_options,
    plain,
    read_config,
    same_as,
)
from scalepet.config.loader import parse_yaml
from scalepet.errors import ConfigError
from scalepet.pet import METHODS

Refuse = Callable[..., tuple[str, ...]]
PROMPT = {"name": "prompt", "length": 5}


@pytest.fixture
def refuse(with_fields: Callable[..., dict[str, Any]]) -> Refuse:
    """``refuse({"method.also": 3})``: the faults of the config with these fields."""

    def faults_of(fields: dict[str, Any]) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            check_config(with_fields(fields))
        return caught.value.faults

    return faults_of


def test_further_methods_keep_their_own_options(with_fields: Any) -> None:
    config = check_config(with_fields({"method.also": [PROMPT, {"name": "bitfit"}]}))
    assert [method.name for method in config.method.all] == ["apet", "prompt", "bitfit"]
    assert config.method.names == "apet + prompt + bitfit"
    assert config.method.options == {"budget": 4096}
    assert method_options(config.method.also[0]) == {
        "length": 5,
        "std": 0.1,
        "calibrated": False,
        "seed": 0,
    }
    assert method_options(config.method.also[1])["kinds"] == ("matrix", "norm")


@pytest.mark.parametrize("also", [[], (), [PROMPT], [PROMPT, {"name": "lora", "r": 2}]])
def test_several_methods_go_through_json_and_back(with_fields: Any, also: Any) -> None:
    config = check_config(with_fields({"method.also": also}))
    again = check_config(json.loads(json.dumps(plain(config))))
    assert plain(again) == plain(config)
    options = [[method_options(one) for one in each.method.all] for each in (config, again)]
    assert options[0] == options[1]
    assert len(options[0]) == 1 + len(also)


def test_a_config_without_further_methods_says_so(content: dict[str, Any]) -> None:
    assert check_config(content).method.also == ()
    assert plain(check_config(content))["method"] == {"name": "apet", "also": [], "budget": 4096}


def test_an_override_gives_further_methods(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    config = read_config(path, ["method.also=[{name: prompt, length: 5}]"])
    assert config.method.also == (FurtherMethod(**PROMPT),)
    assert config.method.options == {"budget": 4096}


def test_faults_of_further_methods_name_their_place(refuse: Refuse) -> None:
    faults = refuse(
        {
            "method.budget": 0,
            "method.also": [
                {"name": "prompt", "length": 0, "std": "wide", "lenght": 3},
                {"name": "lora", "alpha": float("inf"), "r": 2.0},
                {"name": "released"},
                {"name": "adaptor"},
                3,
            ],
        }
    )
    starts = [
        "method.budget: 0 is not allowed",
        "method.also[0].length: 0; allowed: a whole number from 1 (",
        "method.also[0].std: 'wide'; allowed: a number above 0 to below 1e+12 (",
        "method.also[0].lenght: no such option of the method prompt; did you mean length?",
        "method.also[1].r: 2.0; allowed: a whole number from 1 (rank",
        "method.also[1].alpha: inf; allowed: a number above 0 to below 1e+12 (",
        "method.also[2].budget: is missing; allowed: ",
        "method.also[3].name: 'adaptor'; did you mean adapter? allowed: apet, ",
        "method.also[4]: 3; allowed: fields, as in {name: ",
    ]
    assert len(faults) == len(starts)
    for fault, start in zip(faults, starts, strict=True):
        assert fault.startswith(start)


@pytest.mark.parametrize("also", [None, "prompt", 3, True, {"name": "prompt"}])
def test_further_methods_are_a_list(refuse: Refuse, also: Any) -> None:
    (fault,) = refuse({"method": {"budget": 4096, "also": also}})
    assert fault.startswith("method.also: ")
    assert fault.endswith("; allowed: a list of methods")


@pytest.mark.parametrize(
    ("also", "name"),
    [
        ([{"budget": 3}], "apet"),  # no name is the default method
        ([PROMPT, {"name": "prompt", "length": 6}], "prompt"),
    ],
)
def test_a_method_stands_once(refuse: Refuse, also: Any, name: str) -> None:
    (fault,) = refuse({"method.also": also})
    assert fault == f"method.also: {name} stands twice; allowed: every method once"


def test_what_is_no_method_does_not_stand_twice(refuse: Refuse) -> None:
    faults = refuse({"method.also": [3, None, {"name": None}, {"name": None}]})
    assert [fault.split(":")[0] for fault in faults] == [
        "method.also[0]",
        "method.also[1]",
        "method.also[2].name",
        "method.also[3].name",
    ]


@pytest.mark.parametrize("inner", [[], [{"name": "bitfit"}]])
def test_further_methods_have_none_of_their_own(refuse: Refuse, inner: Any) -> None:
    (fault,) = refuse({"method.also": [{**PROMPT, "also": inner}]})
    assert fault.startswith("method.also[0].also: no such option of the method prompt; ")
    assert fault.endswith("allowed: length, std, calibrated, seed")


@pytest.mark.parametrize(
    ("budget", "section"),
    [
        (4096, None),
        ("0.1%", None),
        ("samelora", None),
        (None, None),
        ("same-as:lora", {"name": "lora"}),
        (" same-as: lora ", {"name": "lora"}),
        ("same-as:lora()", {"name": "lora"}),
        ("same-as:lora(r=4)", {"name": "lora", "r": 4}),
        ("same-as:lora(r = 4, alpha=8)", {"name": "lora", "r": 4, "alpha": 8}),
        ("same-as:lora(r=4, parts=[q, v])", {"name": "lora", "r": 4, "parts": ["q", "v"]}),
        ("same-as:lora(include=['*.q.*'])", {"name": "lora", "include": ["*.q.*"]}),
        ("same-as:apet(budget=0.5%)", {"name": "apet", "budget": "0.5%"}),
    ],
)
def test_a_budget_names_a_method_and_its_options(budget: Any, section: Any) -> None:
    assert same_as(budget) == section


@pytest.mark.parametrize(
    "budget", ["same-as:lora", "same-as:lora(r=4, alpha=8)", "same-as:full(kinds=[bias])"]
)
def test_a_budget_by_another_method_is_kept_as_written(with_fields: Any, budget: str) -> None:
    config = check_config(with_fields({"method.budget": budget}))
    assert method_options(config.method)["budget"] == budget
    assert check_config(plain(config)) == config


@pytest.mark.parametrize(
    ("budget", "start"),
    [
        ("same-as:lor", "method.budget.name: 'lor'; did you mean lora? allowed: apet, "),
        ("same-as:7", "method.budget.name: 7; allowed: apet, "),
        ("same-as:lora(rank=4)", "method.budget.rank: no such option of the method lora; allowed"),
        ("same-as:lora(r=0)", "method.budget.r: 0; allowed: a whole number from 1"),
        ("same-as:lora(r=4))", "method.budget.r: '4)'; allowed: a whole number from 1"),
        ("same-as:lora(r=true)", "method.budget.r: true; allowed: a whole number from 1"),
        ("same-as:lora(also=[])", "method.budget.also: no such option of the method lora; "),
        ("same-as:released", "method.budget.budget: is missing; allowed: "),
        ("same-as:apet(budget=0)", "method.budget.budget: 0 is not allowed"),
    ],
)
def test_a_budget_by_a_method_with_faults_is_refused(
    refuse: Refuse, budget: str, start: str
) -> None:
    (fault,) = refuse({"method.budget": budget})
    assert fault.startswith(start)


@pytest.mark.parametrize(
    "budget",
    [
        "same-as",
        "same-as:",
        "same-as lora",
        "same-as:lora(",
        "same-as:lora(r=4",
        "same-as:lora r=4)",
        "same-as:lora(r=4})",
        "same-as:lora(r=4, r=8)",
        "same-as:lora(name=apet)",
        "same-as:lora(r=[)",
        "same-as:lora(r: 4: 5)",
        "same-as:apet(budget=same-as:lora()",
    ],
)
def test_a_malformed_budget_shows_how_it_is_written(refuse: Refuse, budget: str) -> None:
    (fault,) = refuse({"method.budget": budget})
    assert fault.startswith(f"method.budget: '{budget}': ")
    assert fault.endswith("; allowed: same-as:lora(r=4, alpha=8)")
    assert "\n" not in fault


@pytest.mark.parametrize("inner", ["same-as:lora", "'same-as:lora(r=4)'", "same-as:nonsense"])
def test_a_budget_does_not_count_by_a_budget_by_another_method(refuse: Refuse, inner: str) -> None:
    budget = f"same-as:apet(budget={inner})"
    (fault,) = refuse({"method.budget": budget})
    assert fault == f"method.budget: {budget!r}; allowed: a method with a budget of its own"


def test_a_budget_of_a_further_method_counts_by_another(refuse: Refuse) -> None:
    method = {"name": "prompt", "also": [{"name": "apet", "budget": "same-as:lora(r=-1)"}]}
    (fault,) = refuse({"method": method})
    assert fault.startswith("method.also[0].budget.r: -1; allowed: a whole number from 1")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"apet"}))
def test_the_options_in_the_comments_of_the_listing_can_be_copied(
    content: dict[str, Any], name: str
) -> None:
    lines = [line.removeprefix("  # ") for line in fields_as_yaml().splitlines()]
    start = next(i for i, line in enumerate(lines) if line.split("  (")[0] == f"name: {name}")
    end = next(i for i in range(start + 1, len(lines)) if lines[i].startswith(("name: ", "train:")))
    block = parse_yaml("\n".join([f"name: {name}", *lines[start + 1 : end]]))
    config = check_config({**content, "method": block})
    needed = {key: block[key] for key in ("name", "budget") if key in block}
    default = check_config({**content, "method": needed})
    written, filled = method_options(config.method), method_options(default.method)
    assert {k: plain_list(v) for k, v in written.items()} == {
        k: plain_list(v) for k, v in filled.items()
    }


def plain_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
