"""Bad configs, made from the models of their fields: each is refused in words that name the field,
with exit code 2; none is taken, and none makes a traceback.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_CONFIG
from faults.bad_values import Bad, bad_leaves, bad_names, changed, takes
from faults.refusals import check_refused
from running import Ended, run_here

import scalepet.recipes
from scalepet.config import RunConfig, StreamConfig, StudyConfig
from scalepet.config.fields import NEEDED, fields_of
from scalepet.config.listing import fields_as_yaml
from scalepet.config.study import StudyMethod
from scalepet.pet import METHODS

SEED = 20_26
EACH = 2
"""Bad values of a field."""

NEEDED_OPTIONS: dict[str, dict[str, Any]] = {"apet": {"budget": 8}, "released": {"budget": 8}}
STREAM_CONFIG = {
    **{name: value for name, value in SMALL_CONFIG.items() if name != "task"},
    "stream": {"num_tasks": 2, "task": SMALL_CONFIG["task"]},
}

TESTED = {**SMALL_CONFIG["task"]["source"], "splits": {"test": "test"}}
STUDY = {
    "output": "studies/first",
    "base": {"train": {"steps": 3}},
    "backbones": {"small": {"path": "google/flan-t5-small"}},
    "tasks": {"mood": {**SMALL_CONFIG["task"], "source": TESTED}},
    "methods": {"lora": {"method": {"name": "lora"}, "learning_rate": 0.01}},
}


def cases() -> list[tuple[str, dict[str, Any], Bad]]:
    """(command, a good config, what makes it bad)."""
    chance = random.Random(SEED)
    made: list[tuple[str, dict[str, Any], Bad]] = []
    for command, content, kind in (
        ("train", SMALL_CONFIG, RunConfig),
        ("continual", STREAM_CONFIG, StreamConfig),
    ):
        bads = [
            *bad_leaves(kind, (), each=EACH, chance=chance),
            *bad_names(kind, (), chance=chance),
        ]
        made += [(command, content, bad) for bad in bads if "method" not in bad.trail]
    for name, builder in METHODS.items():
        content = {**SMALL_CONFIG, "method": {"name": name, **NEEDED_OPTIONS.get(name, {})}}
        bads = [
            *bad_leaves(builder, ("method",), each=EACH, chance=chance),
            *bad_names(builder, ("method",), chance=chance),
        ]
        made += [("train", content, bad) for bad in bads]
    for section, parents in ((StudyConfig, ()), (StudyMethod, ("methods", "lora"))):
        bads = [
            *bad_leaves(section, parents, each=EACH, chance=chance),
            *bad_names(section, parents, chance=chance),
        ]
        made += [("sweep", STUDY, bad) for bad in bads]
    return made


CASES = cases()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``refused("train", content)``: the end of a command that trains nothing, whatever it is."""
    monkeypatch.setattr(scalepet.recipes, "finetune", lambda *_, **__: None)
    monkeypatch.setattr(scalepet.recipes, "learn_stream", lambda *_, **__: ())
    monkeypatch.setattr("scalepet.recipes.study_plan.plan_study", lambda *_, **__: [])
    monkeypatch.setattr("scalepet.recipes.study_table.show_study", lambda *_, **__: None)

    def run(command: str, content: dict[str, Any]) -> Ended:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
        more = ["--plan"] if command == "sweep" else []
        return run_here(command, str(tmp_path / "run.yaml"), *more)

    return run


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 400
    kinds = {
        (command, yaml.safe_dump(content.get("method")), str(bad))
        for command, content, bad in CASES
    }
    assert len(kinds) > 0.98 * len(CASES)


@pytest.mark.parametrize(
    ("command", "content", "bad"),
    CASES,
    ids=[f"{command}-{bad}-{number}" for number, (command, _, bad) in enumerate(CASES)],
)
def test_a_bad_config_is_refused(
    refused: Any, command: str, content: dict[str, Any], bad: Bad
) -> None:
    ended = refused(command, changed(content, bad))
    check_refused(ended, why=bad.why, names=bad.names)


@pytest.mark.parametrize(
    ("command", "content"),
    sorted({(command, yaml.safe_dump(content)) for command, content, _ in CASES}),
)
def test_what_they_are_made_of_is_good(refused: Any, command: str, content: str) -> None:
    ended = refused(command, yaml.safe_load(content))
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(("command", "kind"), [("train", RunConfig), ("continual", StreamConfig)])
def test_a_good_value_is_noticed(refused: Any, command: str, kind: Any) -> None:
    """As it would be if a generator went wrong: each field with its own default."""
    content = yaml.safe_load(fields_as_yaml(kind))
    ended = refused(command, content)
    with pytest.raises(AssertionError, match="it was taken"):
        check_refused(ended, why="", names="")


@pytest.mark.parametrize("section", [RunConfig, StreamConfig, *METHODS.values()])
def test_the_rules_agree_with_the_defaults(section: Any) -> None:
    """They would call nothing bad that stands in ``--fields``."""
    for field in fields_of(section).values():
        if field.default is not NEEDED and not fields_of(field.kind):
            default = copy.deepcopy(field.default)
            default = list(default) if isinstance(default, tuple) else default
            if isinstance(default, list) and default and fields_of(type(default[0])):
                continue
            assert takes(field.kind, default), f"{field.name}: {default}"
