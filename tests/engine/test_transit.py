"""Who is rounded to int8 in transit, with a recorder in the place of DeepSpeed's gathers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from scalepet.engine.transit import rounding_frozen_only

QWZ = {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}


class Recorder:
    """Shards parameters as DeepSpeed does for two ranks, and notes what is gathered how."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], bool]] = []

    def shard(self, parameter: Any, *, persists: bool = False) -> None:
        parameter.ds_id, parameter.ds_persist = id(parameter), persists
        parameter.ds_tensor, parameter.ds_secondary_tensor = parameter.data.view(-1)[::2], None
        parameter.all_gather_coalesced = self.gather

    def gather(self, parameters: list[Any], safe_mode: bool = False, quantize: bool = False) -> str:
        self.calls.append((parameters, quantize))
        return "handle"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def model(recorder: Recorder) -> nn.Module:
    """A backbone in shards of 32 numbers, and 4 of its bias."""
    model = nn.Sequential(nn.Linear(8, 8))
    for parameter in model.requires_grad_(False).parameters():
        recorder.shard(parameter)
    return model


def start(recorder: Recorder, model: nn.Module, trained: Iterable[nn.Parameter] = ()) -> None:
    with rounding_frozen_only(model, QWZ, trained=trained):
        for parameter in model.parameters():
            if not hasattr(parameter, "ds_id"):
                recorder.shard(parameter)


def rounded(recorder: Recorder, model: nn.Module) -> set[str]:
    """Names of what is rounded when all is gathered at once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters: list[Any] = list(model.parameters())
    recorder.calls.clear()
    handles = parameters[0].all_gather_coalesced(parameters, quantize=True).handles
    asked = [id(parameter) for call, _ in recorder.calls for parameter in call]
    assert sorted(asked) == sorted(names) and len(handles) == len(recorder.calls)
    return {names[id(p)] for call, is_rounded in recorder.calls if is_rounded for p in call}


def add(model: nn.Module, name: str = "values") -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(16))
    model[0].register_parameter(name, parameter)
    return parameter


def test_shards_that_the_kernel_does_not_take_are_left_alone(
    recorder: Recorder, model: nn.Module
) -> None:
    start(recorder, model)
    assert rounded(recorder, model) == {"0.weight"}


def test_persistent_tensors_are_not_rounded(recorder: Recorder, model: nn.Module) -> None:
    recorder.shard(model[0].weight, persists=True)
    start(recorder, model)
    assert rounded(recorder, model) == set()


def test_trained_weights_are_not_rounded(recorder: Recorder, model: nn.Module) -> None:
    start(recorder, model, [model[0].weight])
    assert rounded(recorder, model) == set()


def test_what_was_added_is_not_rounded_even_while_it_rests(
    recorder: Recorder, model: nn.Module
) -> None:
    """As in LAE's frozen epochs, and when a sharded model only answers."""
    first = add(model)
    start(recorder, model)
    assert rounded(recorder, model) == {"0.weight"}
    start(recorder, model, [first])
    add(model, "more")
    start(recorder, model)
    assert rounded(recorder, model) == {"0.weight"}
    assert len(recorder.calls) == 2


def test_whole_gathers_are_one_call(recorder: Recorder, model: nn.Module) -> None:
    start(recorder, model)
    model[0].weight.all_gather_coalesced(list(model.parameters()))
    assert [is_rounded for _, is_rounded in recorder.calls] == [False]


def test_nothing_is_touched_where_nobody_asks_for_it(model: nn.Module) -> None:
    before = model[0].weight.all_gather_coalesced
    with rounding_frozen_only(model, {"zero_optimization": {"stage": 3}}, trained=()):
        pass
    assert model[0].weight.all_gather_coalesced == before
