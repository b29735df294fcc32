"""Every fault of a config at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pydantic
from pydantic import TypeAdapter

from scalepet.config.catalogue import named_task
from scalepet.config.faults import did_you_mean, dotted, faults_of, wrong_value
from scalepet.config.fields import Trail, fields_of, walk
from scalepet.config.models import DEFAULT_METHOD, Config, RunConfig, StreamConfig
from scalepet.config.options import options_model, same_as
from scalepet.config.paths import unset_faults
from scalepet.config.slips import slips
from scalepet.config.stream import stream_faults
from scalepet.config.words import shown
from scalepet.data import Task
from scalepet.errors import ConfigError
from scalepet.masks import check_budget
from scalepet.pet import METHODS
from scalepet.tracking import credential_in

_STAND_INS = {
    "kind": "classification",
    "source": {"path": "csv", "files": {"train": "train.csv"}},
    "template": "{text}",
    "target": "label",
}
"""A task without a fault, in place of the fields of one that cannot be read."""


def check_config(content: Mapping[str, Any]) -> RunConfig:
    """The run that plain values describe.

    Raises:
        ConfigError: with every fault.
    """
    return _checked(content, RunConfig)


def check_stream_config(content: Mapping[str, Any]) -> StreamConfig:
    """As ``check_config``, for a run over a stream."""
    return _checked(content, StreamConfig)


def _checked(content: Mapping[str, Any], kind: type[Config]) -> Config:
    config, faults = check_all(content, kind)
    if config is None:
        raise ConfigError(faults)
    return config


def check_all(content: Any, kind: type[Config]) -> tuple[Config | None, list[str]]:
    """The run and no fault, or None and every fault."""
    if not isinstance(content, Mapping):
        return None, [f"config: {shown(content)}; allowed: fields such as backbone and method"]
    misnamed: list[str] = []
    if kind is RunConfig and "task" in content:
        task, misnamed = named_task(content["task"])
        content = {**content, "task": {**_STAND_INS, **task} if misnamed else task}
    config: Config | None = None
    unreadable: dict[Trail, str] = {}
    try:
        config = kind.model_validate(content)
    except pydantic.ValidationError as error:
        unreadable = faults_of(error, kind, content, elsewhere=[*walk(kind), *_options()])
    slipped = {trail: wrong_value(trail, *found) for trail, *found in slips(kind, content)}
    unreadable = {**slipped, **unreadable}
    faults = [
        *misnamed,
        *unset_faults(content),
        *(fault for trail, fault in unreadable.items() if trail[0] != "method"),
        *_all_method_faults(content.get("method", {})),
    ]
    if kind is RunConfig:
        faults += _length_faults(content.get("train"))
        faults += _task_faults(content.get("task"), unreadable)
    elif isinstance(config, StreamConfig):
        faults += stream_faults(config)
    faults += _credential_faults(content, ())
    return (None if faults else config), faults


def _credential_faults(value: Any, trail: Trail) -> Iterator[str]:
    """What must not get into a file that is kept and passed on."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _credential_faults(inner, (*trail, str(name)))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _credential_faults(inner, (*trail, str(index)))
    elif isinstance(value, str) and (kind := credential_in(trail[-1] if trail else "", value)):
        yield (
            f"{dotted(trail)}: holds {kind}, which config.yaml and adapters would pass on;"
            " allowed: credentials in the environment (HF_TOKEN, WANDB_API_KEY) or ~/.netrc"
        )


def _options() -> list[Trail]:
    return [("method", name) for method in METHODS.values() for name in fields_of(method)]


def _all_method_faults(method: Any) -> Iterator[str]:
    """All of the section: its model does not know the options."""
    yield from _method_faults(method, ("method",))
    also = method.get("also", ()) if isinstance(method, Mapping) else ()
    if not isinstance(also, (list, tuple)):
        yield f"method.also: {shown(also)}; allowed: a list of methods"
        return
    for index, further in enumerate(also):
        yield from _method_faults(further, ("method", f"also[{index}]"), may_nest=False)
    names = [_name_of(method), *map(_name_of, also)]
    for name in METHODS:
        if names.count(name) > 1:
            yield f"method.also: {name} stands twice; allowed: every method once"


def _name_of(method: Any) -> Any:
    return method.get("name", DEFAULT_METHOD) if isinstance(method, Mapping) else None


def _method_faults(method: Any, place: Trail, *, may_nest: bool = True) -> Iterator[str]:
    where = ".".join(place)
    if not isinstance(method, Mapping):
        yield f"{where}: {shown(method)}; allowed: fields, as in {{name: {DEFAULT_METHOD}}}"
        return
    name = _name_of(method)
    if not isinstance(name, str) or name not in METHODS:
        yield f"{where}.name: {shown(name)}; {did_you_mean(str(name), list(METHODS))}"
        return
    not_options = {"name", "also"} if may_nest else {"name"}
    options = {option: value for option, value in method.items() if option not in not_options}
    faults: dict[Trail, str] = {}
    try:
        options_model(name).model_validate(options)
    except pydantic.ValidationError as error:
        noun = f"option of the method {name}"
        faults = faults_of(error, METHODS[name], options, parent=place, noun=noun)
    if "budget" in options and "budget" in fields_of(METHODS[name]):
        faults.pop(("budget",), None)  # masks know better what a budget is
        yield from _budget_faults(options["budget"], where)
    yield from faults.values()


def _budget_faults(budget: Any, where: str) -> Iterator[str]:
    try:
        other = same_as(budget)
        if other is None:
            check_budget(budget)
            return
        is_own = same_as(other.get("budget")) is None
    except ConfigError as error:
        yield from (f"{where}.{fault}" for fault in error.faults)
        return
    except ValueError as error:
        yield f"{where}.budget: {shown(budget)}: {error}; allowed: same-as:lora(r=4, alpha=8)"
        return
    if not is_own:
        yield f"{where}.budget: {shown(budget)}; allowed: a method with a budget of its own"
        return
    yield from _method_faults(other, (*where.split("."), "budget"), may_nest=False)


def _length_faults(train: Any) -> Iterator[str]:
    """A run ends by epochs or by steps; a section with neither gets the default."""
    if not isinstance(train, Mapping) or not {"epochs", "steps"} & train.keys():
        return
    epochs, steps = train.get("epochs"), train.get("steps")
    if (epochs is None) == (steps is None):
        yield (
            f"train.epochs: {shown(epochs)} with train.steps: {shown(steps)};"
            " allowed: a number for one of them, null for the other"
        )


def _task_faults(task: Any, unreadable: Collection[Trail]) -> list[str]:
    """What ``data`` finds wrong with the fields that can be read."""
    if not isinstance(task, Mapping):
        return []
    left_out = {trail[1] for trail in unreadable if trail[0] == "task" and len(trail) > 1}
    if "labels" in left_out:
        left_out.add("label_values")  # they are words of the labels
    if "kind" in left_out:
        left_out.add("picture")  # whether it belongs there, the kind says
    readable = {
        name: value
        for name, value in task.items()
        if name in fields_of(Task) and name not in left_out
    }
    return TypeAdapter(Task).validate_python({**_STAND_INS, **readable}).faults()
